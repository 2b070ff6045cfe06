"""A repository in a temporary folder, and versions to publish into it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from pipeline.base import files
from pipeline.base.values import ProofLevel, RepositoryEntry
from pipeline.repository import candidate as candidates
from pipeline.repository import publish as publishing
from pipeline.repository.versions import Version


def publish(root: Path, version: Version, *, retain: int | None = None, proof: ProofLevel = "none") -> RepositoryEntry:
    """Emit one version into a candidate, and publish it."""
    with candidates.opened(root, [version.model_name], run_id=uuid4().hex) as candidate:
        candidate.add(version, retain=retain)
        entry = publishing.put(candidate, version.model_name, proof=proof)
        publishing.narrow(candidate, version.model_name)
        return entry


class Bench:
    """A root below a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root = folder, folder / "repo"

    def version(
        self, model: str = "weights", config: str = "max_batch_size: 4\n", name: str = "m_onnx", **extra: bytes
    ) -> Version:
        artifact, golden = self.folder / f"artifact-{model}", self.folder / "samples.npz"
        artifact.write_text(model)
        golden.write_bytes(b"golden")
        return Version(
            model_name=name,
            file_name="model.onnx",
            artifact=artifact,
            model_files={"config.pbtxt": config.encode(), **extra},
            golden=golden,
            manifest={"schema": 1},
        )

    def ensemble(self, members: Mapping[str, int], name: str = "m") -> Version:
        """An ensemble whose steps name versions of its members; -1 is the newest."""
        wiring = self.folder / f"wiring-{name}.json"
        wiring.write_text(json.dumps(members))
        steps = " ".join(
            f'step {{ model_name: "{member}" model_version: {number} }}' for member, number in members.items()
        )
        config = f'ensemble_scheduling {{ {steps} }} platform: "ensemble"\n'
        plain = self.version("", config, name=name)
        return replace(plain, file_name="wiring.json", artifact=wiring)

    def publish(self, version: Version, retain: int | None = None, proof: ProofLevel = "none") -> RepositoryEntry:
        return publish(self.root, version, retain=retain, proof=proof)

    @property
    def tree(self) -> dict[str, str]:
        return {name: (self.root / name).read_text() for name in files.tree_digests(self.root)}


def engine(bench: Bench, content: str, identity: str, config: str = "max_batch_size: 4\n") -> Version:
    """An engine with its sidecar; equal inputs give an equal identity, but never equal bytes."""
    sidecar = bench.folder / "engine.json"
    sidecar.write_text(json.dumps({"plan": content}))
    plain = bench.version(content, config)
    manifest: dict[str, Any] = {
        "schema": 1, "sha256": files.sha256_file(plain.artifact), "properties": {"identity": identity},
    }  # fmt: skip
    return replace(
        plain, file_name="model.plan", beside={"model.plan.json": sidecar}, identity=identity, manifest=manifest
    )
