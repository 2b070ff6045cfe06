"""TensorFlow Serving: a SavedModel in a tree of its own."""

from __future__ import annotations

from pipeline.servers.server import Deployment, Server

SERVER = Server(
    deployment=Deployment(
        settings=lambda config, batched: config.tfserving,
        takes=("saved_model",),
        format="saved_model",
        unmade="tfserving[{model}]: its SavedModel was not made",
        lone="TF-Serving serves SavedModels: add a variant such as `saved_model: {format: saved_model}`",
        misfit="expected a variant of format saved_model; `{name}` is none",
        alone="not in Triton's repository: {release} has no TensorFlow backend",
    ),
    deployed="pipeline.servers.tfserving.deployment:saved_model",
    complete="pipeline.servers.tfserving.deployment:complete",
    prove="pipeline.servers.tfserving.deployment:opened",
)
