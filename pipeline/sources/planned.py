"""What a source's step depends on: files, libraries and the function that makes it; imports nothing heavy."""

from __future__ import annotations

from pipeline.base import files
from pipeline.base.errors import ConfigError
from pipeline.data import datasets, user_code
from pipeline.data.user_code import Resolve
from pipeline.schema.model import Source


def function(source: Source) -> str:
    """The step's function, by what the YAML's section holds."""
    if source.is_tensorflow:
        return "pipeline.sources.tensorflow:make"
    return "pipeline.sources.train:make" if source.train is not None else "pipeline.sources.given:make"


def export_kind(source: Source) -> str:
    """What formats are exported from; the kind of ``SourceModel`` that it opens as."""
    found = next(name for name, given in source if given is not None)
    return "torch" if found in ("train", "checkpoint", "model") else found


def words(source: Source) -> str:
    """What it is called in a message."""
    return {"onnx": "an ONNX file", "torch": "a torch model"}.get(export_kind(source), "a TensorFlow model")


def digests(source: Source, resolve: Resolve) -> dict[str, str]:
    """SHA-256 of every file the source reads, user code included; imports nothing heavy.

    Pretrained weights that a library fetches are named by the YAML and the library's version, and not hashed.

    Raises:
        ConfigError: a file is missing.
    """
    if source.is_tensorflow:
        from pipeline.sources import tensorflow

        return tensorflow.digests(source, resolve)
    found: dict[str, str] = {}
    if source.train is not None:
        found |= datasets.digests(source.train.data, resolve)
    if source.checkpoint is not None:
        found[source.checkpoint.file] = _file_digest(source.checkpoint.file, resolve)
    if source.torchscript is not None:
        found[source.torchscript.file] = _file_digest(source.torchscript.file, resolve)
    if source.onnx is not None:
        from pipeline.sources import onnx

        found[source.onnx.file] = _file_digest(source.onnx.file, resolve)
        external = onnx.external_files(resolve(source.onnx.file))
        found |= {f"external data {path.name}": files.sha256_file(path) for path in external}
    model = source.built
    if model is not None and model.callable is not None:
        found |= user_code.digests(model.callable, resolve)
    if model is not None and model.library == "transformers" and model.weights and resolve(str(model.name)).is_dir():
        folder = files.tree_digests(resolve(str(model.name)))
        found |= {f"{model.name}/{name}": digest for name, digest in folder.items()}
    return found


def tools(source: Source) -> tuple[str, ...]:
    """Distributions whose version decides the result."""
    if source.is_tensorflow:
        from pipeline.sources import tensorflow

        return tensorflow.tools(source)
    if source.onnx is not None:
        return ("onnx",)
    names = {"torch", "safetensors"}
    if source.train is not None:
        names.update(datasets.tools(source.train.data))
    model = source.built
    if model is not None and model.library is not None:
        names.add(model.library)
    return tuple(sorted(names))


def _file_digest(name: str, resolve: Resolve) -> str:
    path = resolve(name)
    if not path.is_file():
        raise ConfigError("source: no such file", found=name, where=str(path), hint="paths are relative to the YAML")
    return files.sha256_file(path)
