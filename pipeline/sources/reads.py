"""What torch's sources and given files read, and what decides the result; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.base import files
from pipeline.base.errors import ConfigError
from pipeline.data import datasets, user_code
from pipeline.data.user_code import Resolve
from pipeline.schema.model import Source

Named = tuple[tuple[str, ...], str, bool]
"""A file that a source names: the path of the key under `source`, the name, whether it is a folder."""


def built_files(source: Source) -> Iterator[Named]:
    """The checkpoint's, and the user's code that builds a module."""
    if source.checkpoint is not None:
        yield ("checkpoint", "file"), source.checkpoint.file, False
    if source.built is not None:
        path = ("model",) if source.model is not None else (source.key, "model")
        yield from code_file(source.built.callable, path)


def code_file(named: str | None, path: tuple[str, ...]) -> Iterator[Named]:
    """The file of a ``file.py:name``; a ``module:name`` has none."""
    file = (named or "").partition(":")[0]
    if file.endswith(".py"):
        yield (*path, "callable"), file, False


def built_digests(source: Source, resolve: Resolve) -> dict[str, str]:
    """Of data, checkpoint, the user's code, and a local folder of transformers.

    Pretrained weights that a library fetches are named by the YAML and the library's version, and not hashed.
    """
    found: dict[str, str] = {}
    if source.train is not None:
        found |= datasets.digests(source.train.data, resolve)
    if source.checkpoint is not None:
        found |= file_digest(source.checkpoint.file, resolve)
    model = source.built
    if model is not None and model.callable is not None:
        found |= user_code.digests(model.callable, resolve)
    if model is not None and model.library == "transformers" and model.weights and resolve(str(model.name)).is_dir():
        folder = files.tree_digests(resolve(str(model.name)))
        found |= {f"{model.name}/{name}": digest for name, digest in folder.items()}
    return found


def file_digest(name: str, resolve: Resolve) -> dict[str, str]:
    """Of one file, by the name in the YAML; a ConfigError where it is missing."""
    path = resolve(name)
    if not path.is_file():
        raise ConfigError("source: no such file", found=name, where=str(path), hint="paths are relative to the YAML")
    return {name: files.sha256_file(path)}


def built_tools(source: Source) -> tuple[str, ...]:
    """Of a torch module."""
    names = {"torch", "safetensors"}
    if source.train is not None:
        names.update(datasets.tools(source.train.data))
    if source.built is not None and source.built.library is not None:
        names.add(source.built.library)
    return tuple(sorted(names))


def script_files(source: Source) -> Iterator[Named]:
    """The TorchScript file."""
    assert source.torchscript is not None
    yield ("torchscript", "file"), source.torchscript.file, False


def script_digests(source: Source, resolve: Resolve) -> dict[str, str]:
    """The TorchScript file's."""
    assert source.torchscript is not None
    return file_digest(source.torchscript.file, resolve)
