"""The ways in which a check fails, or is not made."""

from __future__ import annotations

from pipeline.base.errors import SmokeError


class WrongError(Exception):
    """A check has failed; the text is its detail."""


class NotTriedError(Exception):
    """A check cannot be made here, which fails nothing; the text says what was not tried, and why."""


class RefusedError(SmokeError):
    """The server answered, with an error.

    Attributes:
        text: the server's own words.
        status: HTTP status or gRPC status code, for example ``400`` or ``INVALID_ARGUMENT``.
    """

    def __init__(self, text: str, status: str) -> None:
        super().__init__(f"the server answered with an error ({status})", found=text)
        self.text, self.status = text, status


class NoAnswerError(SmokeError):
    """There is no server, no connection, or no answer in time.

    Attributes:
        timed_out: the connection stands, and the answer did not come.
    """

    def __init__(self, what: str, *, found: str = "", timed_out: bool = False) -> None:
        super().__init__(what, found=found)
        self.timed_out = timed_out
