"""What goes through the socket pair comes out as it was."""

from __future__ import annotations

import socket
from multiprocessing.connection import Connection

import numpy as np
import pytest

from pipeline.base.values import Signature, TensorSpec
from pipeline.formats.saved_model import messages
from pipeline.formats.saved_model.messages import ModelFile


def test_values_and_arrays_arrive_whole() -> None:
    ours, theirs = (Connection(one.detach()) for one in socket.socketpair())
    arrays = {"file": np.arange(6, dtype=np.int64).reshape(2, 3), "é/x": np.zeros((0, 2), np.float16)}
    with ours, theirs:
        messages.send(ours, {"job": "x", "texts": ["ü"]}, arrays)
        messages.send(ours, {"job": "y"})
        values, received = messages.receive(theirs)
        assert values == {"job": "x", "texts": ["ü"]}
        assert list(received) == ["file", "é/x"]
        for name, array in arrays.items():
            assert received[name].dtype == array.dtype
            assert received[name].shape == array.shape
            assert received[name].tobytes() == array.tobytes()
        assert messages.receive(theirs) == ({"job": "y"}, {})
        ours.close()
        with pytest.raises(EOFError):
            messages.receive(theirs)


def test_objects_are_not_pickled() -> None:
    ours, theirs = (Connection(one.detach()) for one in socket.socketpair())
    with ours, theirs, pytest.raises(ValueError, match="allow_pickle"):
        messages.send(ours, {}, {"x": np.array([{}], object)})


def test_signatures() -> None:
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="int8", shape=("N", 3)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("N",)),),
        batch="N",
    )
    model = ModelFile(kind="keras", path="model.keras")
    assert messages.subject(messages.about(model, signature)) == (model, signature)
