"""A C++ program's version: ``<root>/<name>_<key>/<N>/`` holds the TorchScript file, its source and a README."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.base.step import tool_versions
from pipeline.repository.versions import Version
from pipeline.servers.libtorch import program
from pipeline.servers.work import Emission, Given, Making


def sources(given: Given, making: Making) -> Iterator[Emission]:
    """The variant's TorchScript file, with the program around it."""
    output, answers = given.labelling
    torch_version = tool_versions(("torch",))["torch"].partition("+")[0]
    written: dict[str, Path] = {}
    found = program.sources(given.identifier, given.signature, output, answers, torch_version=torch_version)
    for name, content in found.items():
        written[name] = making.folder / name
        written[name].write_bytes(content)
    version = Version(
        model_name=given.identifier,
        file_name=program.MODEL_FILE,
        artifact=making.artifact.path,
        beside=written,
        model_files={},
        golden=given.golden_path,
        manifest=making.manifest,
    )
    yield Emission(version=version, artifact=making.artifact)
