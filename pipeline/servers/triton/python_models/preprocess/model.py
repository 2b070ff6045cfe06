"""Image files in, the model's input out: the first step of the ensemble.

Copied as it is into the repository, where this project's package is not installed. Beside it lie ``preprocessing.py``,
``settings.json`` and, below ``vendor``, Pillow for the Pythons that are expected to run it.
"""

import importlib
import json
import os
import platform
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

sys.dont_write_bytecode = True  # of all that lies here; Triton's stub has written __pycache__ for this file already


class TritonPythonModel:
    """What Triton's python backend calls."""

    def initialize(self, args):
        """Find Pillow and read the settings; without Pillow the model does not load."""
        folder = Path(args["model_repository"]) / args["model_version"]
        _require_pillow(folder)
        warnings.filterwarnings("ignore", module="PIL")  # of odd files that it reads all the same
        sys.path.insert(0, str(folder))
        self._code = importlib.import_module("preprocessing")
        self._how = self._code.Preprocessing.from_json((folder / "settings.json").read_text())
        config = json.loads(args["model_config"])
        self._input, self._output = config["input"][0]["name"], config["output"][0]["name"]
        self._dims = tuple(int(size) for size in config["output"][0]["dims"])
        self._pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))

    def execute(self, requests):
        """One response per request; an image that is refused fails its own request only."""
        given = [pb_utils.get_input_tensor_by_name(request, self._input).as_numpy() for request in requests]
        files = [file for tensor in given for file in tensor.reshape(-1)]
        made = iter(self._pool.map(self._made, files) if len(files) > 1 else map(self._made, files))
        return [self._response([next(made) for _ in range(tensor.size)]) for tensor in given]

    def finalize(self):
        """Let the threads go."""
        self._pool.shutdown()

    def _made(self, file):
        """A sample, or the error that this image makes."""
        try:
            return self._code.tensor(bytes(file), self._how)
        except self._code.RefusedImage as error:
            return pb_utils.TritonError(f"not a usable image: {error}", pb_utils.TritonError.INVALID_ARG)
        except Exception as error:  # noqa: BLE001 - one image shall not fail the others of its batch
            return pb_utils.TritonError(f"{type(error).__name__}: {error}", pb_utils.TritonError.INTERNAL)

    def _response(self, made):
        failed = next((item for item in made if isinstance(item, pb_utils.TritonError)), None)
        if failed is not None:
            return pb_utils.InferenceResponse(error=failed)
        if len({sample.shape for sample in made}) > 1:
            text = "the images of one request become inputs of different sizes; send each alone"
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(text, pb_utils.TritonError.INVALID_ARG))
        batch = np.stack(made)
        if min(self._dims) > 0:  # as the configuration of the model that takes it has them
            batch = batch.reshape(len(made), *self._dims)
        return pb_utils.InferenceResponse([pb_utils.Tensor(self._output, batch)])


def _require_pillow(folder):
    """Import Pillow: the one that was published with this version, else an installed one."""
    python = f"cp{sys.version_info.major}{sys.version_info.minor}-{platform.machine()}"
    published = folder / "vendor" / python
    if published.is_dir():
        sys.path.insert(0, str(published))
    try:
        importlib.import_module("PIL.Image")
    except ImportError as error:
        if published.is_dir():
            raise RuntimeError(
                f"images need Pillow: the one in {published} cannot be imported here ({error}); "
                "build the repository again, on a machine like this one"
            ) from error
        wanted = (folder / "vendor" / "pillow.txt").read_text().strip()
        raise RuntimeError(
            f"images need Pillow: none is published for {python}, and no installed one can be imported ({error}); "
            f"pip install {wanted}"
        ) from error
