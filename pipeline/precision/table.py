"""The precisions a graph can be made in. A new one is a file beside this one, and a row here."""

from __future__ import annotations

import pkgutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pipeline.base.step import Outcome
from pipeline.base.values import GoldenSamples, Progress, Runtime, Signature, Tolerance
from pipeline.proof import comparison


class Graphs(Protocol):
    """What a precision's module has."""

    def make(
        self,
        source: Path,
        out_dir: Path,
        given: Mapping[str, Any],
        *,
        keep_nodes: Collection[str],
        measured: GoldenSamples | None,
        progress: Progress,
    ) -> Outcome:
        """Write a graph of this precision into ``out_dir``; ``given`` are the arguments of the step ``reduce``."""

    def runnable(self, reduced: Path, out_dir: Path) -> Path:
        """A graph that ONNX Runtime can run node by node: the one made, or a stand-in for it in ``out_dir``."""

    def opened(self, path: Path, signature: Signature, consumer: str) -> Runtime:
        """A graph as its consumer computes it: as it will be served, or with that one's rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """One precision.

    Attributes:
        tolerance: the limits on |variant - source| where the YAML sets none; what is less precise errs in proportion
            to the whole tensor, not to the element: hence ``max_scaled``.
        module: full name of the module that makes and opens its graphs; empty for the one files are exported in.
        quantised: it computes in integers, for ranges measured on calibration samples.
        recipes: what its graphs are called, by what will compute them; those of one kind have no name.
        tools: distributions whose version decides the result, besides those of all, by what will compute it.
        refusals: why there is none for what would compute it.
    """

    tolerance: Tolerance
    module: str = ""
    quantised: bool = False
    recipes: Mapping[str, str] = field(default_factory=dict)
    tools: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    refusals: Mapping[str, str] = field(default_factory=dict)

    @property
    def graphs(self) -> Graphs:
        """Its module."""
        found: Graphs = pkgutil.resolve_name(self.module)
        return found


PRECISIONS: Mapping[str, Precision] = {
    "fp32": Precision(tolerance=comparison.FP32),
    "fp16": Precision(
        tolerance=Tolerance(max_abs=1e-3, max_rel=1e-2, max_scaled=0.01, min_cosine=0.999, min_top1=0.99),
        module="pipeline.precision.half",
    ),
    "bf16": Precision(
        tolerance=Tolerance(max_abs=1e-2, max_rel=5e-2, max_scaled=0.05, min_cosine=0.99, min_top1=0.98),
        module="pipeline.precision.half",
        refusals={
            "onnxruntime": "bf16 is for tensorrt: ONNX Runtime's CPU has no bfloat16 arithmetic; "
            "expected fp16 or int8 here"
        },
    ),
    "int8": Precision(
        tolerance=Tolerance(max_abs=1e-2, max_rel=0.1, max_scaled=0.25, min_cosine=0.97, min_top1=0.97),
        module="pipeline.precision.int8",
        quantised=True,
        recipes={"onnxruntime": "U8S8", "tensorrt": "S8S8"},
        tools={"tensorrt": ("nvidia-modelopt",)},
    ),
}
"""By the name in the YAML."""
