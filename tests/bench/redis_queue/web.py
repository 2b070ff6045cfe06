"""The web half of a polling queue: an image in by POST, base64 into a Redis list, and a wait until its answer is there.

Run by gunicorn as ``tests.bench.redis_queue.web:app`` with REDIS_PORT in its environment. The polling interval and
the batch of the other half are those of the design that this is the yardstick of.
"""

from __future__ import annotations

import base64
import json
import os
import time
import uuid

import flask
import redis

QUEUE = "images"
POLL_S = 0.25

app = flask.Flask(__name__)
_redis = redis.Redis(host="127.0.0.1", port=int(os.environ["REDIS_PORT"]))


@app.post("/predict")
def predict() -> flask.Response:
    """Queue the body, float32 pixels, and answer with the scores that the model loop writes."""
    identity = str(uuid.uuid4())
    image = base64.b64encode(flask.request.get_data()).decode()
    _redis.rpush(QUEUE, json.dumps({"id": identity, "image": image}))
    while (answer := _redis.get(identity)) is None:
        time.sleep(POLL_S)
    _redis.delete(identity)
    return flask.Response(answer, mimetype="application/json")
