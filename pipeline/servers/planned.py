"""What a build makes and servers serve, as it is planned: variants, and what is made of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.base.step import Step
from pipeline.base.values import Tolerance
from pipeline.formats.table import FORMATS
from pipeline.formats.tensorrt.spec import EngineSpec
from pipeline.precision.table import PRECISIONS
from pipeline.schema.variants import Calibration, Format, Precision, Repair
from pipeline.servers.server import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduction:
    """How an fp32 graph is made into one of less precision.

    Attributes:
        consumer: what will run it; int8 needs another graph for each.
        keep_ops: operator types that stay fp32.
        keep_nodes: nodes that stay fp32.
        calibration: for int8, else None.
        reduce_range: weights of 7 bits, for ONNX Runtime on CPUs whose 8-bit products overflow (x86 without VNNI).
        repair: None for ``repair: off``.
    """

    precision: Precision
    consumer: str
    keep_ops: tuple[str, ...]
    keep_nodes: tuple[str, ...]
    calibration: Calibration | None
    reduce_range: bool
    repair: Repair | None

    @property
    def how(self) -> str:
        """In words, for the plan and the report."""
        if self.calibration is None:
            return f"{self.precision} graph"
        recipe = PRECISIONS[self.precision].recipes[self.consumer]
        reach = ", reduced range" if self.reduce_range else ""
        measured = f"{self.calibration.method} over {self.calibration.samples} samples"
        return f"{self.precision} {recipe} for {self.consumer}{reach}, {measured}"


@dataclass(frozen=True, slots=True, kw_only=True)
class EnginePlan:
    """The engine of a variant.

    Attributes:
        spec: what is built.
        step: the step that builds it.
        lacking: what this machine lacks to build it, each with its remedy.
        skip: a lack is said, and is no failure.
        obstacle: why it cannot be run on this machine, or empty.
        parity: the step that judges the engine itself, where it can be run.
    """

    spec: EngineSpec
    step: Step
    lacking: tuple[str, ...]
    skip: bool
    obstacle: str
    parity: Step | None

    @property
    def file_names(self) -> dict[str, str]:
        """The engine's file by compute capability as Triton writes it: ``{"8.0": "model_sm80.plan"}``."""
        return {f"{gpu[3:-1]}.{gpu[-1]}": one.file_name for one in self.spec.each for gpu in one.gpus}


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One servable form of the model, fully resolved.

    Attributes:
        identifier: ``<name>_<key>``: folder, log, row of the report and Triton model name.
        key: its key under ``variants``.
        kind: what its file is; a C++ program's is the TorchScript file in it.
        server: what serves it: ``triton``, ``tfserving`` alone, or ``none`` for a program, which serves itself.
        root: the repository that it is published in.
        published: its model directory there; none where only a deployment is made of it.
        parent: key of the variant whose export it starts from; its own key when it exports itself.
        options: how the export is made (``method``, or ``exporter``, ``opset`` and ``simplify``).
        reduction: how the exported graph is made less precise, or None for fp32.
        engine: the engine built from the graph, or None.
        max_batch_size: 0 where Triton does not batch.
        fields: ModelConfig fields from the YAML, variant over common.
        export: the step that makes the fp32 file.
        calibration: the step that chooses calibration samples, for int8.
        reduce: the step that makes the less precise graph.
        parity: the step that judges the graph, which is the served file but for engines.
    """

    identifier: str
    key: str
    format: Format
    kind: str
    precision: Precision
    server: str
    root: Path
    published: tuple[str, ...]
    parent: str
    options: Mapping[str, Any]
    reduction: Reduction | None
    engine: EnginePlan | None
    max_batch_size: int
    fields: Mapping[str, Any]
    tolerance: Tolerance
    export: Step
    calibration: Step | None
    reduce: Step | None
    parity: Step

    @property
    def how(self) -> str:
        """How its file is made, in words."""
        origin = ", ".join(f"{key} {value}" for key, value in self.options.items() if not key.startswith("max_"))
        words = [f"from {self.parent}" if self.parent != self.key else origin]
        if self.reduction is not None:
            words.append(self.reduction.how)
        if self.engine is not None:
            words.append(
                f"{self.engine.spec.flavour} for {', '.join(self.engine.spec.gpus) or 'the GPU of this machine'}"
            )
        if FORMATS[self.format].words:
            words.append(FORMATS[self.format].words)
        return " → ".join(words)

    @property
    def variant(self) -> Variant:
        """Itself."""
        return self

    @property
    def steps(self) -> tuple[Step, ...]:
        """Its cached steps, in order."""
        engine = (self.engine.step, self.engine.parity) if self.engine else ()
        rows = (self.export, self.calibration, self.reduce, self.parity, *engine)
        return tuple(step for step in rows if step is not None)

    @property
    def graph(self) -> Step:
        """The step that makes the graph, or the TorchScript file, that is judged."""
        return self.reduce or self.export


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentPlan:
    """What is made of a variant: an ensemble around it, or what another server takes.

    Attributes:
        identifier: ``<name>.<server>``; an ensemble's is its Triton model name, ``<name>``.
        model: the YAML's ``name``, and its own where it is served.
        server: its row in servers/table.py.
        format: the kind of deployment.
        variant: the one that it is made of.
        parts: models of its own that come before and after the variant; empty for what is one model.
        settings: the server's own, from the YAML, with all options resolved.
        steps: what is got for it before it is emitted.
        lacking_to_make: what this machine lacks to make it, each with its remedy.
        lacking_to_serve: what it lacks to prove it; without a proof that does not matter.
    """

    identifier: str
    model: str
    server: str
    format: str
    root: Path
    variant: Variant
    parts: tuple[str, ...]
    settings: Settings
    max_batch_size: int
    how: str
    steps: tuple[Step, ...]
    lacking_to_make: tuple[str, ...]
    lacking_to_serve: tuple[str, ...]

    @property
    def key(self) -> str:
        """No variant's."""
        return self.identifier

    @property
    def precision(self) -> str:
        """Of the variant that answers."""
        return self.variant.precision

    @property
    def published(self) -> tuple[str, ...]:
        """Its own directories: the parts first, when there are some, and last what asks them."""
        return (*self.parts, self.model)

    @property
    def members(self) -> tuple[str, ...]:
        """The models that it asks, in order, where it is an ensemble."""
        return (*self.parts[:1], self.variant.identifier, *self.parts[1:]) if self.parts else ()


Row = Variant | DeploymentPlan
"""What has a line of its own in the report. The identifier of a deployment is the model's own name, or has a full stop
in it: never a variant's."""
