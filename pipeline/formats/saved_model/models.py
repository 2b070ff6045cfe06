"""Keras models and SavedModels, opened under the YAML's names and run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from pipeline.base.errors import StageError, flattened
from pipeline.base.ports import Port
from pipeline.base.values import Array, Progress, Signature, Tensors, TensorSpec, described
from pipeline.data import user_code
from pipeline.formats.saved_model import messages, names
from pipeline.formats.saved_model.messages import Answer, ModelFile, Values

SERVING_TAG = "serve"
DEFAULT_SIGNATURE = "serving_default"
_NO_ENDPOINTS = ("__saved_model_init_op", "__saved_model_train_op")
_LAMBDA_HINT = "say `allow_lambda: true` if you trust the file, or replace the Lambda layer by a layer of its own"
_KERAS_HINT = (
    "expected a file of model.save('….keras') or '….h5'; layers of your own must be registered by "
    "keras.saving.register_keras_serializable in a package that is imported: train it here, or export it as "
    "SavedModel and use `source: {saved_model: …}`"
)


@dataclass(frozen=True, slots=True)
class Opened:
    """A model under the YAML's names.

    Attributes:
        run: arrays by the YAML's names in, arrays by the YAML's names out.
        notes: how its tensors were matched.
    """

    run: Callable[[Tensors], dict[str, Array]]
    notes: tuple[str, ...]


tf.get_logger().setLevel("ERROR")  # its Python side warns of what it deprecates, and tells every file it writes
_opened: list[Opened] = []


def open_model(values: Values, arrays: Tensors, tell: Progress) -> Answer:
    """Job: open a model (``model``, ``signature``); answers with its ``handle`` and ``notes``."""
    opened = opening(*messages.subject(values))
    _opened.append(opened)
    return {"handle": len(_opened) - 1, "notes": opened.notes}, {}


def check(values: Values, arrays: Tensors, tell: Progress) -> Answer:
    """Job: open a model and forget it; answers with the ``notes``."""
    return {"notes": opening(*messages.subject(values)).notes}, {}


def run(values: Values, arrays: Tensors, tell: Progress) -> Answer:
    """Job: run an opened model (``handle``) once."""
    return {}, _opened[values["handle"]].run(arrays)


def opening(model: ModelFile, signature: Signature) -> Opened:
    """Open a model of any kind.

    Raises:
        ConfigError: the user's callable does not exist.
        StageError: it cannot be opened, or its inputs and outputs are not the signature's.
    """
    if model.kind == "saved_model":
        return _served(ServedSignature(Path(model.path), model.signature), signature)
    function, notes = keras_function(keras_model(model), signature, model.path)

    def call(arrays: Tensors) -> dict[str, Array]:
        with _failing("keras", arrays):
            tensors = {name: tf.constant(array) for name, array in arrays.items()}
            return {name: tensor.numpy() for name, tensor in function(**tensors).items()}

    return Opened(call, notes)


@contextlib.contextmanager
def _failing(what: str, inputs: Tensors) -> Iterator[None]:
    """Name the inputs that a model failed on."""
    try:
        yield
    except (ValueError, TypeError, tf.errors.OpError) as error:
        raise StageError(
            f"{what}: the model failed on a sample", found=flattened(error), hint=f"inputs were {described(inputs)}"
        ) from error


# ---- Keras --------------------------------------------------------------------------------------------------------


def keras_model(model: ModelFile) -> Any:
    """Load a Keras file, or build the user's model and load its weights.

    Raises:
        ConfigError: the user's callable does not exist.
        StageError: not a Keras file, damaged, or it holds code without consent.
    """
    if model.kind == "weights":
        built = build(model)
        built.load_weights(model.path)
        return built
    try:
        return keras.saving.load_model(model.path, compile=False, safe_mode=not model.allow_lambda)
    except Exception as error:  # h5py, zip, JSON and Keras each raise their own
        text = " ".join(str(error).split())
        what, found, hint = "source: not a readable Keras file", text[:600] or type(error).__name__, _KERAS_HINT
        if "safe_mode" in text or "unsafe deserialization" in text:
            what, found, hint = "source: the Keras file holds Python code", "a Lambda layer", _LAMBDA_HINT
        raise StageError(what, found=found, where=model.path, hint=hint) from error


def build(model: ModelFile) -> Any:
    """Call the user's callable, which returns a built Keras model; if it does not, or raises, that is a StageError."""
    keras.utils.clear_session()  # layers without a name are numbered from one again
    folder = Path(model.folder)
    built = user_code.call(model.callable, lambda name: folder / name, model.args or {}, "source: building the model")
    if not isinstance(built, keras.Model) or not built.built:
        raise StageError(
            f"source: {model.callable} returned no built Keras model",
            found=type(built).__name__ + (", not built" if isinstance(built, keras.Model) else ""),
            hint="return keras.Model(inputs, outputs), or keras.Sequential([keras.Input(…), …])",
        )
    return built


def keras_function(model: Any, signature: Signature, where: str) -> tuple[Any, tuple[str, ...]]:
    """A traced ``tf.function`` that takes and returns tensors by the YAML's names, as ``model.predict`` computes them.

    Returns:
        The function, with one trace, and how the model's tensors were matched.

    Raises:
        StageError: the model's inputs and outputs are not the signature's.
    """
    inputs, in_note = names.match("inputs", input_ports(model), signature.inputs, where)
    order = [port.name for port in input_ports(model)]
    by_port = {port: name for name, port in inputs.items()}
    found: dict[str, str] = {}
    notes = [in_note]

    def call(**tensors: Any) -> dict[str, Any]:
        results = output_tensors(
            model, model(packed(model, [tensors[by_port[name]] for name in order]), training=False)
        )
        ports = [Port(name=key, dtype=tensor.dtype.name, shape=_shape(tensor.shape)) for key, tensor in results.items()]
        matched, note = names.match("outputs", ports, signature.outputs, where)
        found.update(matched)
        notes.append(note)
        named = {spec.name: tf.identity(results[found[spec.name]]) for spec in signature.outputs}
        for spec in signature.outputs:
            named[spec.name].set_shape(dims(spec))
        return named

    function = tf.function(call, autograph=False)  # with it, errors from within come wrapped
    try:
        function.get_concrete_function(**tensor_specs(signature))
    except (ValueError, TypeError) as error:
        what = "source: the model does not take the YAML's inputs"
        raise StageError(what, found=flattened(error), where=where, hint="correct `inputs`") from error
    return function, tuple(dict.fromkeys(note for note in notes if note))


def input_ports(model: Any) -> list[Port]:
    """A Keras model's inputs, in the order of ``model.inputs``.

    Raises:
        StageError: it was saved without having been built.
    """
    tensors = getattr(model, "inputs", None)
    if not tensors:
        hint = "make it Functional or Sequential with a keras.Input, or export it as SavedModel"
        raise StageError("source: the Keras model does not tell its inputs", found=type(model).__name__, hint=hint)
    return [Port(name=_layer(tensor), dtype=str(tensor.dtype), shape=_shape(tensor.shape)) for tensor in tensors]


def _layer(tensor: Any) -> str:
    """The layer that gives a tensor of a model: its name is in the file, that of the tensor counts up in a process."""
    return str(tensor._keras_history.operation.name)


def packed(model: Any, tensors: Sequence[Any]) -> Any:
    """Tensors in the order of ``model.inputs``, as the model was built to take them: alone, a list or a mapping."""
    structure = getattr(model, "_inputs_struct", None)
    if structure is None or not keras.tree.is_nested(structure):
        return tensors[0] if len(tensors) == 1 else list(tensors)
    return keras.tree.pack_sequence_as(structure, list(tensors))


def output_tensors(model: Any, result: Any) -> dict[str, Any]:
    """A result by the model's names for it: a mapping's keys, else the names of the layers that give it."""
    if isinstance(result, Mapping):
        return dict(result)
    flat = keras.tree.flatten(result)
    layers = [_layer(tensor) for tensor in getattr(model, "outputs", None) or ()]
    known = layers if len(set(layers)) == len(flat) else [f"output_{index}" for index in range(len(flat))]
    return dict(zip(known, flat, strict=True))


def tensor_specs(signature: Signature) -> dict[str, Any]:
    """The YAML's inputs as TensorFlow describes them, by name."""
    return {spec.name: tf.TensorSpec(dims(spec), spec.dtype, name=spec.name) for spec in signature.inputs}


def dims(spec: TensorSpec) -> list[int | None]:
    """A YAML shape as TensorFlow writes it."""
    return [size if isinstance(size, int) else None for size in spec.shape]


def _shape(shape: Any) -> tuple[int | None, ...] | None:
    known = tf.TensorShape(shape)
    return None if known.rank is None else tuple(known.as_list())


# ---- SavedModels --------------------------------------------------------------------------------------------------


class ServedSignature:
    """One signature of a SavedModel, loaded into a session: what TF-Serving and Triton's C++ backend do with it.

    Raises:
        StageError: not a SavedModel, damaged, not for serving, or without that signature; the message names those there
            are.
    """

    def __init__(self, path: Path, signature: str) -> None:
        self._session = tf.compat.v1.Session(graph=tf.Graph())
        try:
            with self._session.graph.as_default():
                meta = tf.compat.v1.saved_model.load(self._session, [SERVING_TAG], str(path))
        except (OSError, RuntimeError, ValueError, tf.errors.OpError) as error:
            raise StageError(
                "source: not a SavedModel that can be served",
                found=flattened(error),
                where=str(path),
                hint="expected a folder with saved_model.pb and variables/, as written by model.export or "
                "tf.saved_model.save",
            ) from error
        self.definition = _definition(meta.signature_def, signature, path)
        self.inputs = names.ordered([_port(name, info) for name, info in self.definition.inputs.items()])
        self.outputs = names.ordered([_port(name, info) for name, info in self.definition.outputs.items()])

    def run(self, feeds: Tensors) -> dict[str, Array]:
        """Run once, by the signature's own names."""
        tensors = {self.definition.inputs[name].name: array for name, array in feeds.items()}
        fetched = {name: info.name for name, info in self.definition.outputs.items()}
        with _failing("saved_model", feeds):
            results: dict[str, Array] = self._session.run(fetched, tensors)
        return results


def require_signatures(signatures: Iterable[str], path: Path) -> list[str]:
    """The signatures that a server can be asked for, sorted; those that only initialise the model are none.

    Raises:
        StageError: there is none.
    """
    known = sorted(name for name in signatures if name not in _NO_ENDPOINTS)
    if not known:
        raise StageError(
            "the SavedModel has no signatures",
            found="nothing in it says which tensors a server takes and gives",
            where=str(path),
            hint="write it with model.export(…), or tf.saved_model.save(model, …, signatures={'serving_default': …})",
        )
    return known


def _definition(signatures: Mapping[str, Any], wanted: str, path: Path) -> Any:
    known = require_signatures(signatures, path)
    if wanted in known:
        return signatures[wanted]
    what = f"source: the SavedModel has no signature {wanted!r}"
    hint = f"name one of them: source: {{saved_model: {{signature: {known[0]}}}}}"
    raise StageError(what, found=f"it has {', '.join(known)}", where=str(path), hint=hint)


def _port(name: str, info: Any) -> Port:
    return Port(name=name, dtype=tf.dtypes.as_dtype(info.dtype).name, shape=_shape(info.tensor_shape))


def matched(
    served: ServedSignature, signature: Signature, where: str
) -> tuple[dict[str, str], dict[str, str], tuple[str, ...]]:
    """A SavedModel's names by the YAML's, of inputs and of outputs, and the notes; see ``names.match``."""
    inputs, in_note = names.match("inputs", served.inputs, signature.inputs, where)
    outputs, out_note = names.match("outputs", served.outputs, signature.outputs, where)
    return inputs, outputs, tuple(note for note in (in_note, out_note) if note)


def _served(served: ServedSignature, signature: Signature) -> Opened:
    inputs, outputs, notes = matched(served, signature, "")

    def call(arrays: Tensors) -> dict[str, Array]:
        results = served.run({inputs[name]: array for name, array in arrays.items()})
        return {name: np.asarray(results[outputs[name]]) for name in outputs}

    return Opened(call, notes)
