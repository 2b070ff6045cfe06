"""A model of any kind -> a SavedModel under the YAML's names, or an ONNX file made of that."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from pipeline.base.errors import MissingError, StageError, flattened
from pipeline.base.values import Progress, Signature, Tensors
from pipeline.formats.saved_model import messages, models
from pipeline.formats.saved_model.messages import Answer, ModelFile, Values

_FINGERPRINT = "fingerprint.pb"  # holds a random number; loaders do without it


def save(values: Values, arrays: Tensors, tell: Progress) -> Answer:
    """Job: write ``model`` to the directory ``out`` as a SavedModel whose ``serving_default`` has the YAML's names.

    A SavedModel that is so already is copied as it is. Answers with ``as_given`` and ``notes``.
    """
    as_given, notes = _saved(*messages.subject(values), values["out"])
    return {"as_given": as_given, "notes": notes}, {}


def to_onnx(values: Values, arrays: Tensors, tell: Progress) -> Answer:
    """Job: write ``model`` as an ONNX file ``out`` of operator set ``opset``, by way of a SavedModel; ``notes``.

    tf2onnx 1.17 converts SavedModels by its command line alone, and its ``from_keras`` fails for Sequential models
    (KeyError 'keras_tensor_…'); so the command line's ``main`` is called here.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = str(Path(folder) / "saved_model")
        _, notes = _saved(*messages.subject(values), place)
        options = ["--saved-model", place, "--tag", models.SERVING_TAG, "--signature_def", models.DEFAULT_SIGNATURE]
        _convert([*options, "--opset", str(values["opset"]), "--output", values["out"]])
    return {"notes": notes}, {}


def _convert(options: Sequence[str]) -> None:
    try:
        from tf2onnx import convert
    except ImportError as error:
        raise MissingError(
            "export: tf2onnx is needed and does not load", found=str(error), hint="pip install tf2onnx==1.17.0"
        ) from error
    before = sys.argv
    sys.argv = ["tf2onnx.convert", *options]
    try:
        convert.main()
    except (Exception, SystemExit) as error:  # whatever a graph that it cannot convert makes it raise
        raise StageError(
            "export: tf2onnx cannot convert the model",
            found=f"{type(error).__name__}: {flattened(error)}".strip()[:600],
            hint="serve it as `format: saved_model`, or replace the operators it names",
        ) from error
    finally:
        sys.argv = before


def _saved(model: ModelFile, signature: Signature, out: str) -> tuple[bool, list[str]]:
    """Write the SavedModel; whether it is the given one, and the notes."""
    if model.kind == "saved_model":
        return _from_saved_model(model, signature, out)
    loaded = models.keras_model(model)
    function, notes = models.keras_function(loaded, signature, model.path)
    # A tf.function's variables are kept in a set of addresses: in the model's order they give the same bytes each time.
    place = {id(variable.value): number for number, variable in enumerate(loaded.variables)}
    graph = function.get_concrete_function(**models.tensor_specs(signature)).graph
    graph.variables = sorted(graph.variables, key=lambda one: place.get(id(one), len(place)))
    archive = keras.export.ExportArchive()
    archive.track(loaded)
    archive.add_endpoint(models.DEFAULT_SIGNATURE, function)
    archive.write_out(out, verbose=False)
    (Path(out) / _FINGERPRINT).unlink(missing_ok=True)
    return False, list(notes)


def _from_saved_model(model: ModelFile, signature: Signature, out: str) -> tuple[bool, list[str]]:
    served = models.ServedSignature(Path(model.path), model.signature)
    inputs, outputs, notes = models.matched(served, signature, model.path)
    named = all(ours == theirs for names in (inputs, outputs) for ours, theirs in names.items())
    if named and model.signature == models.DEFAULT_SIGNATURE:
        shutil.copytree(model.path, out, copy_function=shutil.copyfile)
        return True, []
    try:
        loaded = tf.saved_model.load(model.path)
        inner = loaded.signatures[model.signature]

        def call(**tensors: Any) -> dict[str, Any]:
            results = inner(**{inputs[name]: tensor for name, tensor in tensors.items()})
            return {name: tf.identity(results[theirs]) for name, theirs in outputs.items()}

        wrapped = tf.Module()
        wrapped.model = loaded
        function = tf.function(call).get_concrete_function(**models.tensor_specs(signature))
        tf.saved_model.save(wrapped, out, signatures={models.DEFAULT_SIGNATURE: function})
    except (ValueError, TypeError, KeyError, AttributeError, tf.errors.OpError) as error:
        what = "export: the SavedModel cannot be saved again under the YAML's names"
        hint = f"use its own names under `inputs` and `outputs`, and the signature {models.DEFAULT_SIGNATURE}"
        raise StageError(what, found=flattened(error), where=model.path, hint=hint) from error
    (Path(out) / _FINGERPRINT).unlink(missing_ok=True)
    return False, [
        *notes,
        f"saved again: its signature {model.signature} is {models.DEFAULT_SIGNATURE} of the YAML's names",
    ]
