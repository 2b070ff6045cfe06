"""What launching TorchServe and testing it both ask of its management API.

`/ping` is no use for that: it says Healthy while every worker crashes at import (measured with TorchServe 0.12.0).
"""

from __future__ import annotations

import http.client
import json
import urllib.error
from dataclasses import dataclass
from typing import Any

from pipeline.base import network


class NotAnswered(Exception):  # noqa: N818 - a state while a server starts, not an error
    """The server did not answer, or does not know the model yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A process that serves a model; ``status`` is ``READY`` once it has opened it."""

    pid: int
    status: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """What the management API says of a model.

    Attributes:
        batch_size: most requests in one batch.
        max_batch_delay_ms: how long the first request of a batch waits for others.
        min_workers: how many processes shall serve it.
        workers: those there are.
    """

    batch_size: int
    max_batch_delay_ms: int
    min_workers: int
    workers: tuple[Worker, ...]

    @property
    def ready(self) -> bool:
        """Whether all its workers are there and have opened the model."""
        states = [worker.status for worker in self.workers]
        return len(states) >= self.min_workers and all(state == "READY" for state in states)


def describe(management_url: str, model: str, *, timeout_s: float) -> Registration:
    """Ask for a model's registration.

    Raises:
        NotAnswered: no server, no answer in time, or no such model.
    """
    try:
        with network.opener.open(f"{management_url}/models/{model}", timeout=timeout_s) as answer:
            found: dict[str, Any] = json.load(answer)[0]
            return Registration(
                batch_size=found["batchSize"],
                max_batch_delay_ms=found["maxBatchDelay"],
                min_workers=found["minWorkers"],
                workers=tuple(Worker(pid=row["pid"], status=row["status"]) for row in found["workers"]),
            )
    except urllib.error.HTTPError as error:
        with error:
            raise NotAnswered(f"{error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as error:
        raise NotAnswered(f"{type(error).__name__}: {error}") from error
