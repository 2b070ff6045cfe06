"""Servers in containers: Docker's engine, an image, and the end of a container."""

from __future__ import annotations

import contextlib
import shlex
import subprocess
from collections.abc import Iterator, Sequence

from pipeline.base import command
from pipeline.base.errors import MissingError, StageError

_ENGINE_TIMEOUT_S = 15.0
_PULL_TIMEOUT_S = 3600.0  # Triton's image has about 15 GB


@contextlib.contextmanager
def killed_at_last(name: str) -> Iterator[None]:
    """Kill a container on leaving, if it is still there: Docker's client may be gone while the container is not."""
    try:
        yield
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(["docker", "kill", name], capture_output=True, check=False, timeout=_ENGINE_TIMEOUT_S)


def require_engine(argv: Sequence[str]) -> None:
    """Refuse to go on without a Docker engine.

    Args:
        argv: what would be run, for the message.

    Raises:
        MissingError: none answers.
    """
    try:
        command.run(["docker", "version", "--format={{.Server.Version}}"], timeout_s=_ENGINE_TIMEOUT_S)
    except (MissingError, StageError) as error:
        raise MissingError(
            "server: no Docker engine answers here",
            found=error.found,
            hint=f"start one, set serve.engine: embedded, or run this where there is one:\n{shlex.join(argv)}",
        ) from error


def require_image(image: str) -> None:
    """Fetch an image that is not here yet.

    Raises:
        MissingError: it is not to be had.
    """
    try:
        command.run(["docker", "image", "inspect", "--format={{.Id}}", image], timeout_s=_ENGINE_TIMEOUT_S)
    except StageError:
        try:
            command.run(["docker", "pull", "--quiet", image], timeout_s=_PULL_TIMEOUT_S)
        except StageError as error:
            raise MissingError(
                f"server: cannot get the image {image}", found=error.found, hint=f"docker pull {image}"
            ) from error
