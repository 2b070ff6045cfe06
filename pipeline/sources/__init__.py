"""Where the model comes from: trained here, a checkpoint, a library, user code, TensorFlow, or a file as given.

``prepare`` is the cached step; ``open_source`` opens what it left. Only ``digests`` and ``tools`` run when a build is
planned, so heavy libraries are imported inside the functions that need them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.base import files
from pipeline.base.errors import ConfigError
from pipeline.base.values import Progress, Signature, SourceModel
from pipeline.config.schema.model import Checkpoint, Model, Source
from pipeline.data import datasets, user_code
from pipeline.data.user_code import Resolve

if TYPE_CHECKING:
    import torch

_PICKLED = "module.pt"
_SEED = 0  # of the initial weights of a model that is not trained


def prepare(
    source: Source, *, signature: Signature, resolve: Resolve, out_dir: Path, partial_dir: Path, progress: Progress
) -> dict[str, Any]:
    """Make the model: train it, load its weights, or copy the given file into ``out_dir``.

    Args:
        source: the YAML's section.
        signature: inputs and outputs.
        resolve: turns a path relative to the YAML into a path.
        out_dir: receives ``weights.safetensors``, ``module.pt``, ``model.onnx`` or ``model.pt``; from TensorFlow
            ``model.weights.h5``, ``model.keras``, ``model.h5`` or ``saved_model``.
        partial_dir: where training keeps its state between epochs.
        progress: told what is being done.

    Returns:
        ``kind`` (``torch``, ``torchscript``, ``onnx``, ``keras`` or ``saved_model``), ``labels``, ``notes`` and
        ``accuracy`` (held-out, 0 to 1, or None); after training also ``epochs_run``, ``history``, ``train_samples`` and
        ``test_samples``.

    Raises:
        ConfigError: a file or name is wrong.
        MissingError: a library is absent, weights could not be fetched, or the disk is full.
        StageError: training failed, or a file is damaged or does not fit.
    """
    notes: list[str] = []
    values: dict[str, Any] = {"kind": "torch", "labels": [], "accuracy": None}
    with files.disk_errors(out_dir, "source"):
        if source.is_tensorflow:
            from pipeline.sources import tensorflow

            made = tensorflow.prepare(source, signature=signature, resolve=resolve, out_dir=out_dir, progress=progress)
            return values | made
        if source.train is not None:
            with _waiting_threads():
                from pipeline.sources.train import train

            values |= train(
                source.train,
                signature=signature,
                resolve=resolve,
                out_dir=out_dir,
                partial_dir=partial_dir,
                progress=progress,
                notes=notes,
            )
        elif source.checkpoint is not None:
            progress("loading the checkpoint", None)
            _prepare_checkpoint(source.checkpoint, resolve, out_dir, notes)
        elif source.model is not None:
            progress("building the model", None)
            values["labels"] = _prepare_model(source.model, resolve, out_dir, notes)
        elif source.onnx is not None:
            from pipeline.sources import onnx

            values["kind"] = "onnx"
            onnx.prepare(resolve(source.onnx.file), signature, out_dir)
        else:
            from pipeline.sources import torchscript

            assert source.torchscript is not None
            values["kind"] = "torchscript"
            notes += torchscript.prepare(resolve(source.torchscript.file), signature, out_dir)
    return values | {"notes": notes}


def open_source(source: Source, *, signature: Signature, resolve: Resolve, directory: Path) -> SourceModel:
    """Open what ``prepare`` left in ``directory``.

    Raises:
        StageError: it cannot be opened.
    """
    if source.is_tensorflow:
        from pipeline.sources import tensorflow

        return tensorflow.open_source(source, signature=signature, resolve=resolve, directory=directory)
    if source.onnx is not None:
        from pipeline.formats.onnx.onnxruntime import OnnxRuntime
        from pipeline.sources import onnx

        path = directory / onnx.FILE_NAME
        return SourceModel(kind="onnx", module=None, path=path, runtime=OnnxRuntime(path, signature))

    from pipeline.capture.torch_module import NamedModule, TorchRuntime

    if source.torchscript is not None:
        from pipeline.sources import torchscript

        path = directory / torchscript.FILE_NAME
        module = torchscript.load(path)
        runtime = TorchRuntime(NamedModule(module, signature), signature)
        return SourceModel(kind="torchscript", module=module, path=path, runtime=runtime)
    module = _open_module(source, resolve, directory).eval()
    return SourceModel(
        kind="torch", module=module, path=None, runtime=TorchRuntime(NamedModule(module, signature), signature)
    )


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
    model = _model(source)
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
    model = _model(source)
    if model is not None and model.library is not None:
        names.add(model.library)
    return tuple(sorted(names))


@contextlib.contextmanager
def _waiting_threads() -> Iterator[None]:
    """Import torch so that its idle threads wait instead of spinning (OMP_WAIT_POLICY is read when libgomp is loaded).

    Spinning threads fight other processes for the cores: beside busy processes on 2 cores, a step of ResNet-18 took
    14 s with spinning threads, and 1 s with waiting ones.
    """
    chosen = os.environ.get("OMP_WAIT_POLICY")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        yield
    finally:
        if chosen is None:
            os.environ.pop("OMP_WAIT_POLICY", None)


def _model(source: Source) -> Model | None:
    owner = source.train or source.checkpoint
    return owner.model if owner is not None else source.model


def _file_digest(name: str, resolve: Resolve) -> str:
    path = resolve(name)
    if not path.is_file():
        raise ConfigError("source: no such file", found=name, where=str(path), hint="paths are relative to the YAML")
    return files.sha256_file(path)


def _prepare_model(model: Model, resolve: Resolve, out_dir: Path, notes: list[str]) -> list[str]:
    from pipeline.sources import determinism, library, weights

    with determinism.reproducible(_SEED, notes):
        built = library.build(model, resolve)
        weights.save(built.module, out_dir)
    if model.library == "transformers":
        library.keep_config(built.module, out_dir)
    if model.library is not None and model.weights is None:
        notes.append("no `weights`: the model has random ones")
    return list(built.labels)


def _prepare_checkpoint(settings: Checkpoint, resolve: Resolve, out_dir: Path, notes: list[str]) -> None:
    from pipeline.sources import checkpoint, determinism, library, weights

    path = resolve(settings.file)
    content = checkpoint.read(path, settings)
    if settings.model is None:
        checkpoint.keep_module(content, path, out_dir / _PICKLED)
        return
    state = checkpoint.state_of(content, path)
    with determinism.reproducible(_SEED, notes):
        module = library.build(settings.model, resolve).module
    notes += checkpoint.apply(module, state, settings)
    weights.save(module, out_dir)
    if settings.model.library == "transformers":
        library.keep_config(module, out_dir)


def _open_module(source: Source, resolve: Resolve, directory: Path) -> torch.nn.Module:
    from pipeline.sources import checkpoint, determinism, library, weights

    model = _model(source)
    if model is None:
        assert source.checkpoint is not None
        return checkpoint.open_module(directory / _PICKLED, resolve(source.checkpoint.file).parent)
    with determinism.reproducible(_SEED, []):
        module = library.rebuild(model, resolve, directory)
    weights.load(module, directory)
    return module
