"""What a server says of itself to those that plan, check and build; saying it imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from pipeline.base.step import Step
from pipeline.machine.environment import Environment
from pipeline.machine.target import Limits
from pipeline.schema import Config


class Settings(Protocol):
    """A section of the YAML that wants something made of a variant."""

    @property
    def from_(self) -> str | None:
        """The key of the variant, where it is named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """What is made of a variant for a server.

    Attributes:
        settings: the YAML's section with all options resolved, given whether the model has a batch dimension; None
            where nothing shall be made.
        takes: the formats it is made of: the first such variant, where the section names none.
        format: the report's word for it.
        beside: it has a root of its own, ``<repository>.<server>``; else it stands with its variant, which the same
            server serves.
        parts: models of its own before and after the variant, ``<name>_<part>``; empty for what is one model.
        max_batch_size: of what is made, by its settings and the variant's.
        how: how it is made, by ``{variant}`` and ``{settings}``.
        steps: what is got for it before it is emitted.
        lacks_to_make: what this machine lacks to make it, each with its remedy.
        lacks_to_serve: what it lacks to prove it.
        unmade: what is said where its variant was not made, by ``{identifier}``, ``{model}`` and ``{variant}``.
        lone: what is said of a YAML without such a variant; empty where that has rules of its own.
        misfit: what is said where the section names another, by ``{name}`` and ``{format}``.
        problems: keys of the section that contradict the model, and why.
        alone: what is said of a variant that no other server serves, by Triton's ``{release}``.
    """

    settings: Callable[[Config, bool], Settings | None]
    takes: tuple[str, ...]
    format: str
    beside: bool = True
    parts: tuple[str, ...] = ()
    max_batch_size: Callable[[Settings, int], int] = lambda settings, limit: limit
    how: str = "from {variant}"
    steps: Callable[[Environment, Limits], tuple[Step, ...]] = lambda environment, limits: ()
    lacks_to_make: Callable[[Environment], tuple[str, ...]] = lambda environment: ()
    lacks_to_serve: Callable[[Environment], tuple[str, ...]] = lambda environment: ()
    unmade: str
    lone: str = ""
    misfit: str = ""
    problems: Callable[[Config, bool], Iterator[tuple[str, str]]] | None = None
    alone: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """One server; functions are named ``package.module:name``.

    Attributes:
        variants: a ``Versions``, which emits the variants that it serves as they are; empty where there are none.
        deployment: what is made of a variant for it.
        deployed: a ``Versions``, which emits that.
        complete: a ``Complete``, where a root holds more than models.
        launches: its proof begins with a server, which is shown.
        prove: a ``Prove``; empty for Triton, which serves all models of a root together (build/prove.py).
    """

    variants: str = ""
    deployment: Deployment | None = None
    deployed: str = ""
    complete: str = ""
    launches: bool = False
    prove: str = ""
