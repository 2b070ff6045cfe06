"""The error tree: every failure a person can act on, with its exit code.

PipelineError
├── ConfigError          2  the YAML, a flag or a file named by them is wrong
├── MissingError         3  this machine lacks something: a tool, a port, disk space, a GPU
├── StageError           4  a stage ran and failed
│   └── GateError        4  a stage ran and its numbers were refused
└── SmokeError           5  the served answers are not the model's answers

Anything else that escapes is our bug: a traceback and exit code 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a configuration file.

    Attributes:
        where: ``file:line:column`` (1-based), or the flag that carried the value.
        key: dotted path of the key, for example ``variants.onnx.opset``.
        message: what is wrong and what was expected.
    """

    where: str
    key: str
    message: str

    def __str__(self) -> str:
        """One line: where, key, message."""
        return f"{self.where}: {self.key}: {self.message}" if self.key else f"{self.where}: {self.message}"


class PipelineError(Exception):
    """A failure with everything a person needs to act on it.

    Args:
        what: what failed, starting with the stage: ``export[resnet_onnx]: …``.
        found: what was found, with what was expected.
        where: ``file:line:column`` or the path at fault.
        hint: what to try next.
        log: path of the log that holds the details.
    """

    exit_code = 4

    def __init__(self, what: str, *, found: str = "", where: str = "", hint: str = "", log: str = "") -> None:
        super().__init__(what)
        self.what, self.found, self.where, self.hint, self.log = what, found, where, hint, log

    def __str__(self) -> str:
        """The error form: what, then found, where, try and log, one to a line."""
        rows = (("found", self.found), ("where", self.where), ("try", self.hint), ("log", self.log))
        indented = ((name, text.strip().replace("\n", "\n" + " " * 9)) for name, text in rows if text)
        details = [f"  {name + ':':<7}{text}" for name, text in indented]
        return "\n".join([self.what, *details])

    def in_one_line(self) -> str:
        """What failed and what was found."""
        return " ".join((f"{self.what}: {self.found}" if self.found else self.what).split())


class ConfigError(PipelineError):
    """The configuration is wrong; carries all its problems at once."""

    exit_code = 2

    def __init__(
        self, what: str, *, problems: Sequence[Problem] = (), found: str = "", where: str = "", hint: str = ""
    ) -> None:
        super().__init__(what, found=found, where=where, hint=hint)
        self.problems = tuple(problems)

    def __str__(self) -> str:
        """The error form, then one line per problem."""
        return "\n".join([super().__str__(), *(f"  {problem}" for problem in self.problems)])


class MissingError(PipelineError):
    """This machine lacks what was asked for: a tool, a library, a port, disk space."""

    exit_code = 3


class StageError(PipelineError):
    """A stage ran and failed."""

    exit_code = 4


class GateError(StageError):
    """A stage produced a result whose numbers the gates refuse."""


class SmokeError(PipelineError):
    """The server does not answer what the model answers."""

    exit_code = 5


def listed(texts: Sequence[str], most: int = 5, between: str = ", ") -> str:
    """The first of several texts, and how many more there are."""
    more = f"{' ' if between == ', ' else between}and {len(texts) - most} more" if len(texts) > most else ""
    return between.join(texts[:most]) + more


def flattened(error: BaseException, most: int = 600) -> str:
    """An exception's message without its line breaks, cut off."""
    return " ".join(str(error).split())[:most]


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its class."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
