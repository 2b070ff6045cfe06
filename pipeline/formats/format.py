"""What a format says of itself to those that plan, check and describe; saying it imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.base.triton_facts import Backend
from pipeline.machine.target import Limits
from pipeline.schema.variants import Variant


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """How a file of a format is made of a source.

    Attributes:
        function: the step's, ``package.module:name``.
        tools: distributions whose version decides the result.
        options: every option named, of the variant that makes the file and the target's limits.
        problems: keys of that variant that this way does not take, and why.
    """

    function: str
    tools: tuple[str, ...]
    options: Callable[[Variant, Limits], dict[str, Any]] = lambda making, target: {}
    problems: Callable[[Variant], Iterator[tuple[str, str]]] = lambda making: iter(())


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One format.

    Attributes:
        kind: what its file is; an engine's is its flavour.
        backends: what serves it in Triton, by the kind of file; none where Triton does not.
        exports: how it is made of a source, by the kind of the source's model.
        refusal: what is said of a source it cannot be made of, by ``{source}``, its ``{maker}`` in the YAML, and the
            ``{formats}`` that can.
        built_from: the format it is made of in place of a source, or empty.
        misfit: what is said of one that is built from another format, by ``{parent}`` and its ``{format}``.
        engine: it is built by TensorRT, and takes the key of that name.
        consumer: what computes its graphs of less precision; empty where there are none.
        judge: the step that judges a file as it was exported; empty for a format that is built.
        last_release: the last release of Triton that serves it; empty where all do.
        successor: what serves it after that.
        words: what is said of it in ``plan``, besides how its file is made.
    """

    kind: str
    backends: Mapping[str, Backend]
    exports: Mapping[str, Export]
    refusal: str = ""
    built_from: str = ""
    misfit: str = "expected {format}, that of `{parent}`; found {own}"
    engine: bool = False
    consumer: str = ""
    judge: str = ""
    last_release: str = ""
    successor: str = ""
    words: str = ""

    @property
    def on_gpu(self) -> bool:
        """Whether it needs one."""
        return any(backend.kind == "KIND_GPU" for backend in self.backends.values())

    def server(self, release: str) -> str:
        """What serves it with a release of Triton; ``none`` for what serves itself."""
        if not self.backends:
            return "none"
        return self.successor if self.last_release and release > self.last_release else "triton"
