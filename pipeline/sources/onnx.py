"""An ONNX file used as it is: copied with its external data, checked, compared with the YAML."""

from __future__ import annotations

import mmap
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.base import files, ports, signatures
from pipeline.base.errors import ConfigError, StageError
from pipeline.base.step import Outcome, Task
from pipeline.base.values import Progress, Signature, SourceModel
from pipeline.data.user_code import Resolve
from pipeline.formats import opening
from pipeline.schema.model import Source
from pipeline.sources.reads import Named, file_digest

FILE_NAME = "model.onnx"
_LOCATION_KEY = b"\x0a\x08location\x12"


def make(task: Task, progress: Progress) -> Outcome:
    """The step; see ``prepare``."""
    given = opening.section(task).onnx
    assert given is not None
    with files.disk_errors(task.out_dir, "source"):
        prepare(opening.resolver(task)(given.file), signatures.from_json(task.arguments["signature"]), task.out_dir)
    return Outcome(values={"kind": "onnx", "labels": [], "accuracy": None})


def opened(source: Source, *, signature: Signature, resolve: Resolve, directory: Path) -> SourceModel:
    """The copy that the step left."""
    from pipeline.formats.onnx.onnxruntime import OnnxRuntime

    path = directory / FILE_NAME
    return SourceModel(kind="onnx", module=None, path=path, runtime=OnnxRuntime(path, signature))


def named(source: Source) -> Iterator[Named]:
    """The file."""
    assert source.onnx is not None
    yield ("onnx", "file"), source.onnx.file, False


def digests(source: Source, resolve: Resolve) -> dict[str, str]:
    """Of the file, and of its external data; imports nothing heavy."""
    assert source.onnx is not None
    own = file_digest(source.onnx.file, resolve)
    external = external_files(resolve(source.onnx.file))
    return own | {f"external data {path.name}": files.sha256_file(path) for path in external}


def external_files(path: Path) -> list[Path]:
    """Files of external data that an ONNX file names, found without importing onnx.

    TensorProto.external_data is a list of StringStringEntryProto (onnx.proto): field 1 the key, ``location``; field 2
    the path, relative to the file. Scanning the bytes for such an entry misses none; a chance hit within weights names
    no file.

    Raises:
        ConfigError: a location leaves the file's folder.
    """
    found = dict.fromkeys(_locations(path))
    return [files.inside(path.parent, name) for name in found if (path.parent / name).is_file()]


def _locations(path: Path) -> Iterator[str]:
    if path.stat().st_size == 0:
        return
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        start = 0
        while (at := data.find(_LOCATION_KEY, start)) >= 0:
            start = at + len(_LOCATION_KEY)
            length, used = _varint(data[start : start + 2])
            raw = data[start + used : start + used + length]
            if len(raw) == length and length and b"\0" not in raw:
                yield raw.decode("utf-8", "replace")


def _varint(data: bytes) -> tuple[int, int]:
    """A protobuf length of one or two bytes, and how many it took."""
    if not data or data[0] < 0x80 or len(data) == 1:
        return (data[0] if data else 0), 1
    return (data[0] & 0x7F) | (data[1] << 7), 2


def prepare(path: Path, signature: Signature, out_dir: Path) -> None:
    """Copy the file and its external data into ``out_dir`` and check it.

    Raises:
        ConfigError: no such file.
        StageError: not a valid ONNX model, or its inputs and outputs are not the YAML's; all differences are listed.
    """
    import onnx
    from google.protobuf.message import DecodeError

    if not path.is_file():
        raise ConfigError("source: no such file", where=str(path))
    external = external_files(path)
    try:
        model = onnx.load(str(path), load_external_data=False)
        onnx.checker.check_model(str(path))
    except (onnx.checker.ValidationError, DecodeError, OSError, ValueError, RuntimeError) as error:
        raise StageError(
            "source: not a valid ONNX model", found=str(error).strip()[:600] or type(error).__name__, where=str(path)
        ) from error
    if wrong := differences(model, signature):
        what = "source: the ONNX file's inputs and outputs are not the YAML's"
        raise StageError(what, found="\n".join(wrong), where=str(path), hint="correct `inputs` and `outputs`")
    with files.disk_errors(out_dir, "source: copying the ONNX file"):
        shutil.copyfile(path, out_dir / FILE_NAME)
        for item in external:
            target = out_dir / item.relative_to(path.parent.resolve())
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(item, target)


def differences(model: Any, signature: Signature) -> list[str]:
    """One line for each name, dtype, rank or fixed size in which the graph's inputs and outputs are not the YAML's."""
    from pipeline.formats.onnx import interface

    def told(role: str, found: Sequence[ports.Port], item: ports.Difference) -> str:
        if item.kind == "unknown":
            return f"the file has an {role} {item.name} that the YAML leaves out"
        if item.kind == "missing":
            return f"the file has no {role} {item.name}; it has {', '.join(port.name for port in found)}"
        return item.told(f"{role} {item.name}")

    inputs, outputs = interface.ports(model)
    sides = (("input", inputs, signature.inputs), ("output", outputs, signature.outputs))
    return [told(role, found, item) for role, found, specs in sides for item in ports.differences(found, specs)]
