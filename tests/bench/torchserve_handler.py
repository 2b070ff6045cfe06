"""TorchServe's side of the comparison: float32 pixels in, scores out, the batch in one run of the model."""

import numpy as np
import torch
from ts.torch_handler.base_handler import BaseHandler


class Handler(BaseHandler):
    """BaseHandler loads the TorchScript and runs it."""

    def preprocess(self, data):
        """Bodies of 1x28x28 float32."""
        images = [np.frombuffer(row.get("body") or row.get("data"), np.float32).reshape(1, 28, 28) for row in data]
        return torch.from_numpy(np.stack(images))
