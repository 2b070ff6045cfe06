"""The model half of a polling queue: looks into the Redis list every 0.25 s and answers up to 32 images at once.

python -m tests.bench.redis_queue.model_loop MODEL.pt PORT
"""

from __future__ import annotations

import base64
import json
import sys
import time

import numpy as np
import redis
import torch

QUEUE = "images"
POLL_S = 0.25
BATCH = 32
SHAPE = (1, 28, 28)


def main(model_path: str, port: int) -> None:
    """Serve until killed."""
    model = torch.jit.load(model_path).eval()
    queue = redis.Redis(host="127.0.0.1", port=port)
    while True:
        waiting = [json.loads(item) for item in queue.lrange(QUEUE, 0, BATCH - 1)]
        if waiting:
            images = [np.frombuffer(base64.b64decode(item["image"]), np.float32).reshape(SHAPE) for item in waiting]
            with torch.inference_mode():
                scores = model(torch.from_numpy(np.stack(images))).tolist()
            for item, row in zip(waiting, scores, strict=True):
                queue.set(item["id"], json.dumps(row))
            queue.ltrim(QUEUE, len(waiting), -1)
        time.sleep(POLL_S)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
