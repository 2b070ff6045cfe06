"""A Keras model, trained here or given as a file, or a SavedModel; TensorFlow runs in a process of its own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.base import files, signatures
from pipeline.base.errors import ConfigError, StageError
from pipeline.base.step import Outcome, Task
from pipeline.base.values import Array, Progress, Signature, SourceModel
from pipeline.data import datasets, user_code
from pipeline.data.user_code import Resolve
from pipeline.formats import opening
from pipeline.formats.saved_model import messages, process
from pipeline.formats.saved_model.messages import ModelFile
from pipeline.schema.model import Keras, KerasTrain, Source
from pipeline.sources.reads import Named, code_file

_WEIGHTS = "model.weights.h5"
_SAVED_MODEL = "saved_model"


def make(task: Task, progress: Progress) -> Outcome:
    """The step; see ``prepare``."""
    with files.disk_errors(task.out_dir, "source"):
        values = prepare(
            opening.section(task),
            signature=signatures.from_json(task.arguments["signature"]),
            resolve=opening.resolver(task),
            out_dir=task.out_dir,
            progress=progress,
        )
    notes = tuple(values.pop("notes"))
    return Outcome(notes=notes, values={"labels": [], "accuracy": None, **values})


def prepare(
    source: Source, *, signature: Signature, resolve: Resolve, out_dir: Path, progress: Progress
) -> dict[str, Any]:
    """Train the model into ``out_dir``, or copy the given one there and open it once.

    Returns:
        ``kind`` (``keras`` or ``saved_model``), ``notes`` that say how tensors were matched to the YAML's, and what
        training knows: ``accuracy`` (held-out, 0 to 1), ``labels``, ``epochs_run``, ``history``, ``train_samples`` and
        ``test_samples``.

    Raises:
        ConfigError: no such file, or data that cannot be trained on.
        MissingError: TensorFlow is not installed.
        StageError: the file is damaged, is not the YAML's model, or holds code without consent; or training failed.
    """
    if source.keras is not None and source.keras.train is not None:
        values = _train(source.keras.train, signature, resolve, out_dir, progress)
        return {"kind": "keras", **values}
    progress("opening the model", None)
    kind = "keras" if source.keras is not None else "saved_model"
    given = _copied(source, resolve, out_dir)
    model = _model_file(source, resolve, out_dir)
    try:
        answer, _ = process.shared().call("check", messages.about(model, signature))
    except StageError as error:  # the copy will be gone, and nobody knows it
        found, hint = (text.replace(model.path, str(given)) for text in (error.found, error.hint))
        raise StageError(error.what, found=found, where=str(given), hint=hint) from error
    return {"kind": kind, "notes": answer["notes"]}


def _copied(source: Source, resolve: Resolve, out_dir: Path) -> Path:
    """Copy the given model into ``out_dir``; returns where the user has it."""
    if source.keras is not None:
        path = _given(str(source.keras.file), resolve)
        shutil.copyfile(path, out_dir / _file_name(source.keras))
        return path
    assert source.saved_model is not None
    path = _given(source.saved_model.directory, resolve)
    try:
        shutil.copytree(path, out_dir / _SAVED_MODEL, copy_function=shutil.copyfile)
    except shutil.Error as error:
        raise StageError(
            "source: the SavedModel cannot be read whole",
            found="\n".join(reason for _, _, reason in error.args[0]),
            where=str(path),
            hint="copy it again with the files that its links mean: cp -rL",
        ) from error
    return path


def opened(source: Source, *, signature: Signature, resolve: Resolve, directory: Path) -> SourceModel:
    """Open what ``prepare`` left in ``directory``."""
    model = _model_file(source, resolve, directory)
    runtime = process.RemoteRuntime(model, signature)
    return SourceModel(kind="saved_model" if source.saved_model else "keras", module=model, path=None, runtime=runtime)


def named(source: Source) -> Iterator[Named]:
    """The files that the YAML's section names."""
    if source.saved_model is not None:
        yield ("saved_model", "directory"), source.saved_model.directory, True
    elif source.keras is not None and source.keras.file is not None:
        yield ("keras", "file"), source.keras.file, False
    elif source.keras is not None and source.keras.train is not None:
        yield from code_file(source.keras.train.callable, ("keras", "train"))


def digests(source: Source, resolve: Resolve) -> dict[str, str]:
    """SHA-256 of every file the source reads, user code included; a ConfigError where one is missing."""
    if source.saved_model is not None:
        folder = source.saved_model.directory
        return {f"{folder}/{name}": digest for name, digest in files.tree_digests(_given(folder, resolve)).items()}
    assert source.keras is not None
    if source.keras.train is not None:
        code = user_code.digests(source.keras.train.callable, resolve)
        return datasets.digests(source.keras.train.data, resolve) | code
    name = str(source.keras.file)
    return {name: files.sha256_file(_given(name, resolve))}


def tools(source: Source) -> tuple[str, ...]:
    """Distributions whose version decides the result."""
    names = {"keras", "numpy", "tensorflow", "tensorflow-cpu"}
    if source.keras is not None and source.keras.train is not None:
        names.update(datasets.tools(source.keras.train.data))
    return tuple(sorted(names))


def _given(name: str, resolve: Resolve) -> Path:
    path = resolve(name)
    if not path.exists():
        raise ConfigError("source: no such file", found=name, where=str(path), hint="paths are relative to the YAML")
    return path


def _file_name(keras: Keras) -> str:
    """Keras tells its two formats by the name's end."""
    return f"model{Path(str(keras.file)).suffix.lower()}"


def _model_file(source: Source, resolve: Resolve, directory: Path) -> ModelFile:
    directory = directory.absolute()
    if source.saved_model is not None:
        path = str(directory / _SAVED_MODEL)
        return ModelFile(kind="saved_model", path=path, signature=source.saved_model.signature)
    assert source.keras is not None
    if source.keras.train is not None:
        return _built(source.keras.train, resolve, directory)
    path = str(directory / _file_name(source.keras))
    return ModelFile(kind="keras", path=path, allow_lambda=source.keras.allow_lambda)


def _built(train: KerasTrain, resolve: Resolve, directory: Path) -> ModelFile:
    return ModelFile(
        kind="weights",
        path=str(directory / _WEIGHTS),
        callable=train.callable,
        args=train.args,
        folder=str(resolve(".").absolute()),
    )


def _train(
    train: KerasTrain, signature: Signature, resolve: Resolve, out_dir: Path, progress: Progress
) -> dict[str, Any]:
    progress("loading the data", None)
    dataset = datasets.load(train.data, signature=signature, resolve=resolve, seed=train.seed)
    parts = datasets.trainable(dataset)
    arrays: dict[str, Array] = {}
    for name, part in zip(("train", "test"), parts, strict=True):
        assert part.targets is not None
        arrays[f"{name}_targets"] = part.targets
        rows = [part.inputs[row] for row in range(len(part.inputs))]
        try:
            arrays |= {
                f"{name}/{spec.name}": np.concatenate([row[spec.name] for row in rows]) for spec in signature.inputs
            }
        except ValueError as error:
            hint = "make them equal in your data's callable, or train the model yourself: keras: {file: model.keras}"
            raise ConfigError("source: Keras trains on samples of one shape", found=str(error), hint=hint) from error
    settings = train.model_dump(include={"epochs", "batch_size", "learning_rate", "seed"})
    request = {**messages.about(_built(train, resolve, out_dir), signature), **settings}
    values, _ = process.shared().call("train", request, arrays, progress)
    return {
        **values,
        "epochs_run": train.epochs,
        "labels": list(dataset.labels),
        "train_samples": len(parts[0].inputs),
        "test_samples": len(parts[1].inputs),
    }
