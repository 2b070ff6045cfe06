"""Training a user's Keras classifier: seeded and deterministic on the CPU."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from pipeline.base.errors import StageError
from pipeline.base.values import Array, Progress, Tensors
from pipeline.data import user_code
from pipeline.formats.saved_model import messages, models, names
from pipeline.formats.saved_model.messages import Answer, Values

_EVALUATION_BATCH = 256


def train(values: Values, arrays: Tensors, tell: Progress) -> Answer:
    """Job: train what the user's callable builds, and write its weights.

    Adam on the cross entropy of the one output against the class index. Scores that are probabilities before the first
    step (not negative, each row's sum 1) are taken as such, any other as logits. The same seed on the same machine
    gives the same bytes: every generator is seeded, and operators are deterministic
    (tensorflow.org/api_docs/python/tf/config/experimental/enable_op_determinism).

    Args:
        values: ``model`` (its ``path`` receives the weights), ``signature``, ``seed``, ``epochs``, ``batch_size`` and
            ``learning_rate``.
        arrays: ``train/<input>``, ``test/<input>``, ``train_targets`` and ``test_targets``, one row per sample.
        tell: told of every epoch.

    Returns:
        ``accuracy`` (held-out, 0 to 1), ``history`` and ``notes``.

    Raises:
        StageError: the model failed, does not fit the data, or the loss is no longer finite.
    """
    settings, signature = messages.subject(values)
    tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(values["seed"])
    model = models.build(settings)
    inputs, note = names.match("inputs", models.input_ports(model), signature.inputs, settings.callable)
    by_port = {port: name for name, port in inputs.items()}
    order = [by_port[port.name] for port in models.input_ports(model)]

    def part(name: str) -> Any:
        return models.packed(model, [arrays[f"{name}/{key}"] for key in order])

    train_targets, test_targets = arrays["train_targets"], arrays["test_targets"]
    probabilities = _check_scores(model, part("test"), 1 + int(max(train_targets.max(), test_targets.max())))
    model.compile(
        optimizer=keras.optimizers.Adam(values["learning_rate"]),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=not probabilities),
    )
    watch = _Watch(model, part("test"), test_targets, values["epochs"], tell)
    with user_code.user_errors("source: the model failed in training"):
        model.fit(
            part("train"),
            train_targets,
            batch_size=values["batch_size"],
            epochs=values["epochs"],
            shuffle=True,
            verbose=0,
            callbacks=[watch],
        )
    model.save_weights(settings.path)
    return {"accuracy": watch.history[-1]["accuracy"], "history": watch.history, "notes": [note] if note else []}, {}


class _Watch(keras.callbacks.Callback):
    """After every epoch: stop where the loss is not finite, measure on the held-out part, tell."""

    def __init__(self, model: Any, inputs: Any, targets: Array, epochs: int, tell: Progress) -> None:
        super().__init__()
        self._watched, self._inputs, self._targets, self._epochs, self._tell = model, inputs, targets, epochs, tell
        self.history: list[dict[str, float]] = []

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        loss = float((logs or {})["loss"])
        if not math.isfinite(loss):
            what = f"source: training diverged in epoch {epoch + 1}"
            raise StageError(what, found=f"loss {loss}", hint="lower `learning_rate`, or scale the data")
        scores = np.asarray(next(iter(_outputs(self._watched, self._inputs).values())))
        accuracy = float((scores.argmax(axis=-1) == self._targets).mean())
        self.history.append({"loss": round(loss, 6), "accuracy": accuracy})
        text = f"epoch {epoch + 1}/{self._epochs}: loss {loss:.4f}, held-out accuracy {accuracy:.2%}"
        self._tell(text, (epoch + 1) / self._epochs)


def _outputs(model: Any, inputs: Any) -> dict[str, Any]:
    return models.output_tensors(model, model.predict(inputs, batch_size=_EVALUATION_BATCH, verbose=0))


def _check_scores(model: Any, inputs: Any, classes: int) -> bool:
    """Whether the untrained model's scores are probabilities."""
    with user_code.user_errors("source: the model failed in training"):
        outputs = _outputs(model, inputs)
    shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in outputs.items())
    scores = next(iter(outputs.values()))
    if len(outputs) != 1 or scores.ndim != 2 or scores.shape[1] < classes:
        raise StageError(
            "source: the model's scores do not fit the classes",
            found=f"outputs {shapes}; the data has {classes} classes",
            hint="one output with one score per class; train another kind of model yourself and use `keras: {file: …}`",
        )
    return bool((scores >= 0).all() and np.allclose(scores.sum(axis=1), 1.0, atol=1e-3))
