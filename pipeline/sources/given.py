"""A model that is not trained here: a checkpoint, a library's or user's module, an ONNX or a TorchScript file."""

from __future__ import annotations

from pathlib import Path

from pipeline.base import files, signatures
from pipeline.base.files import canonical_json
from pipeline.base.step import Outcome, Task
from pipeline.base.values import Progress
from pipeline.data.user_code import Resolve
from pipeline.schema.model import Checkpoint, Model, Source


def make(task: Task, progress: Progress) -> Outcome:
    """Load the weights, build the module, or copy the given file.

    Arguments: ``source``, as in the YAML, and ``signature``. Unkeyed: ``folder`` of the YAML.

    Returns:
        The values ``kind``, ``labels`` and ``accuracy`` (None).

    Raises:
        ConfigError: a file or name is wrong.
        MissingError: a library is absent, weights could not be fetched, or the disk is full.
        StageError: a file is damaged or does not fit.
    """
    source = Source.model_validate_json(canonical_json(task.arguments["source"]))
    signature, resolve = signatures.from_json(task.arguments["signature"]), Path(task.arguments["folder"]).joinpath
    kind, labels, notes = "torch", list[str](), list[str]()
    with files.disk_errors(task.out_dir, "source"):
        if source.checkpoint is not None:
            progress("loading the checkpoint", None)
            _prepare_checkpoint(source.checkpoint, resolve, task.out_dir, notes)
        elif source.model is not None:
            progress("building the model", None)
            labels = _prepare_model(source.model, resolve, task.out_dir, notes)
        elif source.onnx is not None:
            from pipeline.sources import onnx

            kind = "onnx"
            onnx.prepare(resolve(source.onnx.file), signature, task.out_dir)
        else:
            from pipeline.sources import torchscript

            assert source.torchscript is not None
            kind = "torchscript"
            notes += torchscript.prepare(resolve(source.torchscript.file), signature, task.out_dir)
    return Outcome(notes=tuple(notes), values={"kind": kind, "labels": labels, "accuracy": None})


def _prepare_model(model: Model, resolve: Resolve, out_dir: Path, notes: list[str]) -> list[str]:
    from pipeline.sources import determinism, library, weights

    with determinism.reproducible(determinism.INITIAL_SEED, notes):
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
        checkpoint.keep_module(content, path, out_dir / checkpoint.PICKLED)
        return
    state = checkpoint.state_of(content, path)
    with determinism.reproducible(determinism.INITIAL_SEED, notes):
        module = library.build(settings.model, resolve).module
    notes += checkpoint.apply(module, state, settings)
    weights.save(module, out_dir)
    if settings.model.library == "transformers":
        library.keep_config(module, out_dir)
