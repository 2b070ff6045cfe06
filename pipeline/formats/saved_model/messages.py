"""What goes through the socket pair: a JSON text that names the arrays, then each as .npy bytes; no pickles."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from typing import Any, Literal

import numpy as np

from pipeline.base import signatures
from pipeline.base.values import Array, Signature, Tensors

Values = Mapping[str, Any]
"""A job's arguments: what is JSON."""
Answer = tuple[dict[str, Any], dict[str, Array]]
_ARRAYS = "arrays"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """What the TensorFlow process needs to open a model.

    Attributes:
        kind: ``keras``: a .keras or .h5 file; ``weights``: a .h5 of weights, for what ``callable`` builds;
            ``saved_model``: a directory.
        path: the file or directory.
        allow_lambda: consent to Python code kept in a Keras file.
        callable: ``file.py:name`` that builds the model, for ``weights``.
        args: its keyword arguments.
        folder: what ``callable`` is relative to.
        signature: the SavedModel's signature that is meant.
    """

    kind: Literal["keras", "weights", "saved_model"]
    path: str
    allow_lambda: bool = False
    callable: str = ""
    args: Mapping[str, Any] | None = None
    folder: str = ""
    signature: str = "serving_default"


def send(connection: Connection, values: Values, arrays: Tensors | None = None) -> None:
    """Send one message; an OSError where the other side is gone."""
    connection.send_bytes(json.dumps({**values, _ARRAYS: list(arrays or ())}).encode())
    for array in (arrays or {}).values():
        stream = io.BytesIO()
        np.save(stream, array, allow_pickle=False)
        connection.send_bytes(stream.getbuffer())


def receive(connection: Connection) -> Answer:
    """Wait for one message; an EOFError where the other side is gone."""
    values: dict[str, Any] = json.loads(connection.recv_bytes())
    names = values.pop(_ARRAYS)
    return values, {name: np.load(io.BytesIO(connection.recv_bytes()), allow_pickle=False) for name in names}


def about(model: ModelFile, signature: Signature) -> dict[str, Any]:
    """What jobs on a model are told of it: ``model`` and ``signature``."""
    return {"model": asdict(model), "signature": signatures.to_json(signatures.tensors(signature))}


def subject(values: Values) -> tuple[ModelFile, Signature]:
    """The opposite of ``about``."""
    return ModelFile(**values["model"]), signatures.from_json(values["signature"])
