"""Scores in, labels with probabilities out as JSON text: the last step of the ensemble.

Copied as it is into the repository, where this project's package is not installed. Beside it lie
``postprocessing.py`` and ``settings.json``.
"""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

sys.dont_write_bytecode = True  # of postprocessing.py; Triton's stub has written __pycache__ for this file already


class TritonPythonModel:
    """What Triton's python backend calls."""

    def initialize(self, args):
        """Read the settings."""
        folder = Path(args["model_repository"]) / args["model_version"]
        sys.path.insert(0, str(folder))
        self._code = importlib.import_module("postprocessing")
        self._how = self._code.Postprocessing.from_json((folder / "settings.json").read_text())
        config = json.loads(args["model_config"])
        self._input, self._output = config["input"][0]["name"], config["output"][0]["name"]

    def execute(self, requests):
        """One response per request, of one JSON text per row of scores."""
        given = (pb_utils.get_input_tensor_by_name(request, self._input).as_numpy() for request in requests)
        return [self._response(scores.reshape(len(scores), -1)) for scores in given]

    def _response(self, scores):
        try:
            texts = [[self._code.answer(row, self._how).encode()] for row in scores]
        except self._code.UnusableScores as unusable:
            error = pb_utils.TritonError(str(unusable), pb_utils.TritonError.INTERNAL)
            return pb_utils.InferenceResponse(error=error)
        return pb_utils.InferenceResponse([pb_utils.Tensor(self._output, np.array(texts, np.object_))])
