"""What an archive's model is, told by reading: nothing is imported, unpickled, or loaded by torch.

``torch.jit.load`` is no way to look at a TorchScript file of unknown origin: it runs the ``__setstate__`` of the
file's modules, and TorchScript's operators include ``aten::save``, which writes to any path (both seen with torch
2.13.0). So its signature is read from the source text in the archive. That text is also searched for the two operators
that touch files; a search is a screen and no proof, so a model of unknown origin is built where it can do no harm.
"""

from __future__ import annotations

import ast
import zipfile
import zlib
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pipeline.base.errors import ConfigError
from pipeline.importing import screen, tensors, zips
from pipeline.importing.manifest import MAX_TEXT_BYTES, Manifest
from pipeline.importing.tensors import Tensor
from pipeline.lint import torchscript as lint
from pipeline.sources import onnx as given_onnx

_MAX_RECORDS = 30_000  # of a file of torch: one for each tensor and each file of code
_BROKEN = (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, zlib.error)
"""What zipfile and pickletools raise for files that are damaged or exotic."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A model that the pipeline can start from.

    Attributes:
        kind: the key of the YAML's ``source``.
        file: path in the archive; for ONNX, the file whose tensors have usable names.
        callable: ``file.py:Class`` of a checkpoint's architecture; empty where it could not be named.
        inputs: as far as known, and ``outputs``: empty where not even their number is.
        todo: what must be said about ``callable``.
    """

    kind: Literal["onnx", "torchscript", "checkpoint"]
    file: str
    callable: str = ""
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    notes: tuple[str, ...] = ()
    todo: str = ""


def find(folder: Path, manifest: Manifest, archive: Path) -> Found:
    """Say what the serialized file of an archive, unpacked into ``folder``, is by its content.

    Raises:
        ConfigError: no model, one of a kind that the pipeline has no source for, damaged, or unsafe.
    """
    name = manifest.serialized_file
    if not name:
        raise ConfigError(
            "import-mar: the archive names no serialized file",
            found=f"handler {manifest.handler!r}, which finds its model in another way",
            where=str(archive),
            hint="write the YAML by hand; `source` takes checkpoint, library models, onnx or torchscript",
        )
    path = folder / name
    if path.suffix == ".onnx":
        return _onnx(folder, name, archive)
    try:
        kind = _kind_of_torch_file(path)
    except _BROKEN as error:
        raise _damaged(archive, name, error) from error
    if kind == "torchscript":
        return _torchscript(path, name, archive)
    if kind == "checkpoint":
        return _checkpoint(folder, name, manifest)
    raise ConfigError(
        "import-mar: the model is of a kind that the pipeline has no source for",
        found=f"{name}: neither ONNX, TorchScript, a file of torch.save, nor safetensors",
        where=str(archive),
        hint="compiled models (.so, .pt2, engines) hold no portable graph: import the archive they were made from",
    )


def _kind_of_torch_file(path: Path) -> str:
    if path.suffix == ".safetensors":
        return "checkpoint"
    with path.open("rb") as stream:
        start = stream.read(2)
    if start == b"PK":
        if (count := zips.count(path)) > _MAX_RECORDS:
            raise ValueError(f"{count} records; at most {_MAX_RECORDS}")
        with zipfile.ZipFile(path) as inner:
            names = [name.casefold() for name in inner.namelist()]
        if any(name.endswith("/constants.pkl") for name in names):
            return "torchscript"
        return "checkpoint" if any(name.endswith("data.pkl") for name in names) else ""
    return "checkpoint" if start[:1] == b"\x80" and path.suffix in (".pt", ".pth", ".bin") else ""


def _onnx(folder: Path, name: str, archive: Path) -> Found:
    import onnx
    from google.protobuf.message import DecodeError

    path = folder / name
    try:
        model = onnx.load(str(path), load_external_data=False)
    except (DecodeError, OSError, ValueError) as error:
        raise _damaged(archive, name, error) from error
    external = given_onnx.external_files(path)
    inputs, outputs = tensors.of_onnx(model.graph)
    names = _usable_names([tensor.name for tensor in (*inputs, *outputs)])
    notes = [f"weights in {', '.join(item.name for item in external)}"] if external else []
    if renamed := {old: new for old, new in names.items() if old != new}:
        name = f"{name.removesuffix('.onnx')}_renamed.onnx"
        if (folder / name).exists():
            raise ConfigError("import-mar: two files of one name", found=name, where=str(archive))
        _rename(model.graph, renamed)
        onnx.save(model, str(folder / name))
        notes.append(f"tensors renamed in {name}: " + ", ".join(f"{old} to {new}" for old, new in renamed.items()))
    inputs, outputs = (tuple(replace(item, name=names[item.name]) for item in side) for side in (inputs, outputs))
    return Found(kind="onnx", file=name, inputs=inputs, outputs=outputs, notes=tuple(notes))


def _usable_names(names: list[str]) -> dict[str, str]:
    """Each tensor's name in the YAML; those that are fine stay."""
    chosen = {name: name for name in names if tensors.usable_name(name) == name}
    for name in names:
        wanted = tensors.usable_name(name)
        while name not in chosen and wanted in chosen.values():
            wanted = f"{wanted[:60]}_{len(chosen)}"
        chosen.setdefault(name, wanted)
    return chosen


def _rename(graph: Any, names: dict[str, str]) -> None:
    """Rename values of a graph, in its nodes and in the graphs inside them, where ONNX lets nothing be redefined."""
    for item in (*graph.input, *graph.output, *graph.value_info):
        item.name = names.get(item.name, item.name)
    for node in graph.node:
        for values in (node.input, node.output):
            values[:] = [names.get(value, value) for value in values]
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                _rename(inner, names)


def _torchscript(path: Path, name: str, archive: Path) -> Found:
    """The signature in the source text of a TorchScript file: names of arguments, number of results, no shapes."""
    try:
        with zipfile.ZipFile(path) as inner:
            if unsafe := screen.finding(inner):
                raise ConfigError(
                    "import-mar: the archive is refused as unsafe",
                    found=f"{name}: {unsafe}, which touches files when it runs",
                    where=str(archive),
                    hint="no model needs that; ask where the archive comes from",
                )
            forward = lint.read_forward(path, inner)
    except _BROKEN as error:
        raise _damaged(archive, name, error) from error
    if forward is None:
        return Found(kind="torchscript", file=name)
    arguments = [argument for argument, kind in forward.arguments if kind == "Tensor"]
    others = [f"{argument}: {kind}" for argument, kind in forward.arguments if kind != "Tensor"]
    results = ["output"] if forward.results == 1 else [f"output_{number}" for number in range(forward.results or 0)]
    notes = [f"arguments that are no tensors are not fed: {', '.join(others)}"] if others else []
    return Found(
        kind="torchscript",
        file=name,
        inputs=tuple(Tensor(name=new) for new in _usable_names(arguments).values()),
        outputs=tuple(Tensor(name=result) for result in results),
        notes=tuple(notes),
    )


def _checkpoint(folder: Path, name: str, manifest: Manifest) -> Found:
    """Weights whose class stands in the model file: its only class, called without arguments, as TorchServe does."""
    unnamed = partial(Found, kind="checkpoint", file=name)
    if not manifest.model_file:
        return unnamed(todo="the archive has no model file: name the class that the weights are of")
    path = folder / manifest.model_file
    try:
        if path.stat().st_size > MAX_TEXT_BYTES:
            raise ValueError("too long to read")
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return unnamed(todo=f"{manifest.model_file} is no Python that can be parsed: {error}")
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    if len(classes) != 1:
        found = ", ".join(node.name for node in classes) or "none"
        todo = f"{manifest.model_file} must define one class, as TorchServe demands too; it defines {found}"
        return unnamed(todo=todo)
    (model,) = classes
    required = _required(model, "__init__")
    inputs = [argument for argument in _required(model, "forward") if tensors.usable_name(argument) == argument]
    return unnamed(
        callable=f"{manifest.model_file}:{model.name}",
        inputs=tuple(Tensor(name=argument) for argument in inputs),
        todo=f"{model.name} cannot be made without {', '.join(required)}: give them as `args`" if required else "",
    )


def _required(model: ast.ClassDef, method: str) -> list[str]:
    """Names of a method's arguments that have no default, without self; none where the class does not define it."""
    found = [node for node in model.body if isinstance(node, ast.FunctionDef) and node.name == method]
    if not found:
        return []
    signature = found[-1].args
    positional = [item.arg for item in (*signature.posonlyargs, *signature.args)]
    keywords = zip(signature.kwonlyargs, signature.kw_defaults, strict=True)
    needed = [item.arg for item, default in keywords if default is None]
    return [*positional[1 : len(positional) - len(signature.defaults)], *needed]


def _damaged(archive: Path, name: str, error: BaseException) -> ConfigError:
    found = f"{name}: {type(error).__name__}: {error}"[:300]
    hint = "is the file whole? compare its size and checksum with where it came from"
    return ConfigError("import-mar: the model in the archive is damaged", found=found, where=str(archive), hint=hint)
