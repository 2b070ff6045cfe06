"""What tritonclient makes of a reply, as arrays of the model's own types."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tritonclient.http import InferResult

from pipeline.base.values import Array
from pipeline.servers.triton.client import connection


@pytest.mark.parametrize(("datatype", "wanted"), [("INT64", np.int64), ("FP16", np.float16), ("BOOL", np.bool_)])
def test_an_answer_without_rows_keeps_its_type(datatype: str, wanted: type[np.generic]) -> None:
    output = {"name": "y", "datatype": datatype, "shape": [0, 4], "parameters": {"binary_data_size": 0}}
    header = json.dumps({"model_name": "m", "outputs": [output]}).encode()
    result = InferResult.from_response_body(header, header_length=len(header))
    request = connection.Request(model="m", inputs={}, outputs=("y",))
    found: dict[str, Array] = connection._tensors(result, request)
    assert found["y"].dtype == wanted
    assert found["y"].shape == (0, 4)
