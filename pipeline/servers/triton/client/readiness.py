"""Which models a running server has, as it says itself; whether they answer is for the checks."""

from __future__ import annotations

import contextlib

from pipeline.base.errors import SmokeError
from pipeline.proof.failures import NoAnswerError, RefusedError
from pipeline.servers.triton.client.connection import CONNECT_TIMEOUT_S, HttpConnection
from pipeline.servers.triton.client.messages import IndexRow

_UNLOADED = "unloaded"  # the reason Triton gives for a model that was unloaded on request (2.51.0)


def index(http_url: str) -> list[IndexRow]:
    """Every model version that a running server knows.

    Raises:
        SmokeError: no server answers there.
    """
    try:
        with contextlib.closing(HttpConnection(http_url, CONNECT_TIMEOUT_S)) as connection:
            return connection.index()
    except (NoAnswerError, RefusedError) as error:
        raise SmokeError(
            f"smoke: no Triton server answers at {http_url}",
            found=f"{error.what}: {error.found}".removesuffix(": "),
            hint="check the address, and that the server has started",
        ) from error


def ready_versions(http_url: str, model: str) -> list[int]:
    """The versions of a model that a running server calls READY, ascending; at least one.

    Raises:
        SmokeError: no server answers there, or it has no version of that model ready.
    """
    ready = [row for row in index(http_url) if row.state == "READY"]
    versions = sorted(int(row.version) for row in ready if row.name == model)
    if not versions:
        raise SmokeError(
            f"smoke[{model}]: the server at {http_url} does not serve it",
            found=f"served there: {', '.join(sorted({row.name for row in ready})) or 'no model'}",
        )
    return versions


def asked_versions(http_url: str, model: str) -> dict[str, int]:
    """The models that a served ensemble asks, with the versions it names, -1 for the newest; none for other models.

    Raises:
        SmokeError: no server answers there, or not about that model.
    """
    try:
        with contextlib.closing(HttpConnection(http_url, CONNECT_TIMEOUT_S)) as connection:
            config = connection.config(model)
    except (NoAnswerError, RefusedError) as error:
        raise SmokeError(
            f"smoke[{model}]: the server at {http_url} does not tell its configuration",
            found=f"{error.what}: {error.found}".removesuffix(": "),
        ) from error
    return {step.model_name: step.model_version for step in config.ensemble_scheduling.step}


def versions(http_url: str, model: str) -> tuple[list[int], dict[str, int], dict[str, int]]:
    """The versions of a model that a running server serves and, of an ensemble, those it names and those it reaches.

    Raises:
        SmokeError: no server answers there, or it does not serve them.
    """
    served, named = ready_versions(http_url, model), asked_versions(http_url, model)
    return served, named, {name: n if n > 0 else max(ready_versions(http_url, name)) for name, n in named.items()}


def not_loaded(http_url: str, model: str) -> str:
    """Why a running server does not have a model ready that it was not asked for, or empty when it has it ready.

    Raises:
        SmokeError: no server answers there, or it tried to load the model and failed.
    """
    rows = [row for row in index(http_url) if row.name == model]
    if any(row.state == "READY" for row in rows):
        return ""
    failed = [row for row in rows if row.state == "UNAVAILABLE" and row.reason not in ("", _UNLOADED)]
    if failed:
        raise SmokeError(
            f"smoke[{model}]: the server at {http_url} could not load it",
            found="\n".join(f"version {row.version}: {row.reason}" for row in failed),
            hint="read that server's log",
        )
    if not rows:
        return "it is not in that server's repository"
    states = [f"version {row.version} is {row.state} {row.reason}".rstrip() for row in rows if row.state]
    return ", ".join(states) or "it is in that server's repository, and not loaded"
