"""What a plan says of a variant, and what all variants share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from pipeline.base.step import Step
from pipeline.base.values import Format, Kind, Signature, Tolerance
from pipeline.config.load import LoadedConfig
from pipeline.config.schema.variants import Calibration, Repair
from pipeline.formats.tensorrt.spec import EngineSpec
from pipeline.machine.environment import Environment
from pipeline.machine.target import Limits

Precision = Literal["fp32", "fp16", "bf16", "int8"]
Consumer = Literal["onnxruntime", "tensorrt"]


class Row(Protocol):
    """What has a line of its own in the report: a variant, or a deployment made of some."""

    @property
    def key(self) -> str:
        """Unique in a build: a variant's key, or a deployment's identifier."""

    @property
    def identifier(self) -> str:
        """What it is called where it is served; names its log.

        A deployment's is the model's own name, or has a full stop in it: never a variant's.
        """

    @property
    def format(self) -> str:
        """A variant's format, or the kind of deployment."""

    @property
    def precision(self) -> str:
        """Of what answers."""

    @property
    def server(self) -> str:
        """What serves it: ``triton``, ``torchserve``, ``tfserving``, or ``none``."""

    @property
    def max_batch_size(self) -> int:
        """Most samples that are run at once; 0 where none are joined."""

    @property
    def how(self) -> str:
        """How it is made, in words."""


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

    precision: Literal["fp16", "bf16", "int8"]
    consumer: Consumer
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
        recipe = "U8S8" if self.consumer == "onnxruntime" else "S8S8"
        reach = ", reduced range" if self.reduce_range else ""
        measured = f"{self.calibration.method} over {self.calibration.samples} samples"
        return f"int8 {recipe} for {self.consumer}{reach}, {measured}"


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
    kind: Kind
    precision: Precision
    server: str
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
        if self.format == "libtorch":
            words.append("C++ program")
        return " → ".join(words)

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
class PillowPlan:
    """Pillow for one Python that will run the ensemble's preprocessing.

    Attributes:
        python: ``3.10``.
        machine: processor architecture, ``x86_64``.
        step: the step that gets it.
        here: it is this interpreter's, and installed.
    """

    python: str
    machine: str
    step: Step
    here: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsemblePlan:
    """Image files in, labels out: a Triton model named as the YAML's model, and the two around the variant it asks.

    Attributes:
        name: its own, ``<name>``.
        variant: the one that answers.
        pillow: for the Python of the embedded server and, where that is known and another, of the target's container.
    """

    name: str
    variant: Variant
    pillow: tuple[PillowPlan, ...]

    @property
    def key(self) -> str:
        """Its row in the report."""
        return self.name

    @property
    def identifier(self) -> str:
        """Its Triton model name."""
        return self.name

    @property
    def format(self) -> str:
        """The kind of deployment."""
        return "ensemble"

    @property
    def precision(self) -> str:
        """Of the variant that answers."""
        return self.variant.precision

    @property
    def server(self) -> str:
        """What serves it."""
        return "triton"

    @property
    def max_batch_size(self) -> int:
        """The variant's."""
        return self.variant.max_batch_size

    @property
    def how(self) -> str:
        """In words, for the plan."""
        return f"image file → {self.variant.key} → labels"

    @property
    def models(self) -> tuple[str, str, str]:
        """What it asks, in order: preprocessing, the variant, postprocessing."""
        return (f"{self.name}_preprocess", self.variant.identifier, f"{self.name}_postprocess")


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchServePlan:
    """A variant's file as an archive for TorchServe.

    Attributes:
        identifier: ``<name>.torchserve``.
        model: its name in TorchServe, the YAML's.
        variant: whose file it is.
        batch_size: most requests in one forward pass.
        max_batch_delay_ms: how long the first request of a batch waits for others.
        workers: processes that serve it.
        response_timeout_s: a worker that takes longer is restarted.
        lacking_to_make: what this machine lacks to make the archive, each with its remedy.
        lacking_to_serve: what it lacks to prove it; without a proof that does not matter.
    """

    identifier: str
    model: str
    variant: Variant
    batch_size: int
    max_batch_delay_ms: int
    workers: int
    response_timeout_s: int
    lacking_to_make: tuple[str, ...]
    lacking_to_serve: tuple[str, ...]

    @property
    def key(self) -> str:
        """No variant's."""
        return self.identifier

    @property
    def format(self) -> str:
        """TorchServe's archive format."""
        return "mar"

    @property
    def precision(self) -> str:
        """The variant's."""
        return self.variant.precision

    @property
    def server(self) -> str:
        """What serves it."""
        return "torchserve"

    @property
    def how(self) -> str:
        """In words, for the plan."""
        return f"from {self.variant.key}, workers {self.workers}"

    @property
    def max_batch_size(self) -> int:
        """Most requests in one forward pass."""
        return self.batch_size


@dataclass(frozen=True, slots=True, kw_only=True)
class TfServingPlan:
    """A SavedModel in a tree that TensorFlow Serving serves.

    Attributes:
        identifier: ``<name>.tfserving``.
        model: the YAML's ``name``: the model's folder in the tree, and its name there.
        variant: the SavedModel.
        root: the tree, beside Triton's repository.
    """

    identifier: str
    model: str
    variant: Variant
    root: Path

    @property
    def key(self) -> str:
        """Its own identifier."""
        return self.identifier

    @property
    def format(self) -> str:
        """What TF-Serving serves."""
        return "saved_model"

    @property
    def precision(self) -> str:
        """The variant's."""
        return self.variant.precision

    @property
    def server(self) -> str:
        """What serves it."""
        return "tfserving"

    @property
    def max_batch_size(self) -> int:
        """The variant's."""
        return self.variant.max_batch_size

    @property
    def how(self) -> str:
        """In words, for the plan."""
        return f"from {self.variant.key}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What all variants of a configuration share.

    Attributes:
        calibration_digests: by variant key, the files that its calibration data is read from.
        timing_cache: folder of TensorRT's timing caches.
    """

    loaded: LoadedConfig
    signature: Signature
    limits: Limits
    environment: Environment
    source: Step
    samples: Step
    calibration_digests: Mapping[str, Mapping[str, str]]
    timing_cache: Path
