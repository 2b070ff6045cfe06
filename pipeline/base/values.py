"""The frozen values that pass between rooms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from pipeline.images.preprocessing import Preprocessing

Array = npt.NDArray[Any]
Tensors = Mapping[str, Array]
Dim = int | str
ProofLevel = Literal["none", "inspected", "served"]
"""How far a version was proven: not at all, by what was read in its files, by a real server's answers."""

_DTYPES = "bool uint8 uint16 uint32 uint64 int8 int16 int32 int64 float16 float32 float64"
NUMPY_DTYPES: Mapping[str, type[np.generic]] = {name: np.dtype(name).type for name in _DTYPES.split()}


def described(tensors: Tensors) -> str:
    """Names, dtypes and shapes in one line: ``ids int64[2, 7], mask int64[2, 7]``."""
    return ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in tensors.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One input or output of a model.

    Attributes:
        name: exactly as in the YAML; the exported file and the server use the same.
        dtype: numpy's name: ``float32``, ``int64``, …
        shape: full shape, batch included; a letter (``N``) is a dynamic dimension, and equal letters are equal sizes.
        layout: ``NCHW`` or ``NHWC`` for images, else None.
        labels: class names for an output of scores, in index order; empty when it has none.
    """

    name: str
    dtype: str
    shape: tuple[Dim, ...]
    layout: str | None = None
    labels: tuple[str, ...] = ()


def fits(shape: Sequence[int], expected: Sequence[Dim], sizes: dict[str, int]) -> bool:
    """Whether a shape is the expected one; a letter that ``sizes`` does not have is bound by its first use."""
    return len(shape) == len(expected) and all(
        size == (sizes.setdefault(dim, size) if isinstance(dim, str) else dim)
        for size, dim in zip(shape, expected, strict=True)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """The inputs and outputs of a model, in the YAML's order.

    Attributes:
        batch: the letter every input and output shape starts with, or None for a model without a batch dimension.
        image: how an image file becomes the one input, where the YAML has `preprocess`; else None.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batch: str | None
    image: Preprocessing | None = None

    def sizes(self, inputs: Tensors) -> dict[str, int]:
        """The size of each dynamic dimension of the inputs, by letter."""
        return {
            dim: size
            for spec in self.inputs
            for dim, size in zip(spec.shape, inputs[spec.name].shape, strict=True)
            if isinstance(dim, str)
        }


class Runtime(Protocol):
    """A model opened in this process."""

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """Run once; keys and dtypes as in the signature. A StageError where it refused the inputs or failed."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One golden sample: one request's worth of data.

    Attributes:
        inputs: by name; where the model has a batch dimension it is present, of size 1.
        outputs: reference outputs of the source model for exactly these inputs.
        target: expected class index, or None when unknown.
        image: the image file that ``inputs`` were made from; empty where there is none.
    """

    inputs: Tensors
    outputs: Tensors
    target: int | None = None
    image: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenSamples:
    """Real inputs with the source model's answers; see samples.py.

    Attributes:
        samples: at least one.
        batched: whether samples of equal shape may be joined along dimension 0.
        sha256: digest of all names, dtypes, shapes and values, and of the image files.
    """

    samples: tuple[Sample, ...]
    batched: bool
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A model file (or directory) on disk, complete and hashed.

    Attributes:
        path: the file, or the directory for ONNX with external data.
        kind: its format.
        sha256: digest of the file, or of the directory's names and contents.
        tool_versions: what made it, for the manifest.
        notes: what a person should know: a fallback taken, a warning, each one line.
        properties: facts about the file, for example ``{"opset": 20, "ir_version": 10, "exporter": "dynamo"}``.
    """

    path: Path
    kind: str
    sha256: str
    size_bytes: int
    tool_versions: Mapping[str, str]
    notes: tuple[str, ...] = ()
    properties: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """How close is equal.

    Attributes:
        max_abs: absolute part, in the output's own unit.
        max_rel: part relative to the reference element.
        max_scaled: part relative to the greatest magnitude in the reference tensor.
        min_cosine: least cosine similarity over an output tensor's samples.
        min_top1: least share of samples whose arg-max over the last axis agrees, 0 to 1.
    """

    max_abs: float
    max_rel: float
    min_cosine: float
    min_top1: float
    max_scaled: float = 0.0

    def allowed(self, reference: Array) -> Array:
        """How far each element may be from ``reference``, an array of finite floats; same shape."""
        magnitude = np.abs(reference)
        scale = float(magnitude.max()) if magnitude.size else 0.0
        limits: Array = self.max_abs + self.max_rel * magnitude + self.max_scaled * scale
        return limits


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityResult:
    """The variant against the source model, in process, over all golden samples and several batch sizes.

    Attributes:
        max_abs: greatest absolute difference, in the output's unit.
        max_rel: greatest difference relative to the reference element, floored at 1 % of the tensor's magnitude.
        cosine: least cosine similarity of any output, -1 to 1.
        top1_agreement: share of samples with the same arg-max, 0 to 1, or None where no output has a class axis.
        samples: how many were compared, counting each batch size.
        batch_sizes: the batch sizes run.
        worst: where the greatest difference was seen: output, sample, batch size.
        reason: why it did not pass; empty when it did.
    """

    passed: bool
    max_abs: float
    max_rel: float
    cosine: float
    top1_agreement: float | None
    samples: int
    batch_sizes: tuple[int, ...]
    tolerance: Tolerance
    worst: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyResult:
    """Share of golden samples whose arg-max is their target, 0 to 1; ``reference`` is the source model's."""

    metric: str
    value: float
    reference: float
    samples: int
    passed: bool
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositoryEntry:
    """One version of one model in a repository.

    Attributes:
        root: the repository root, as given to ``tritonserver --model-repository``.
        created: False when identical content was already there.
        notes: what a person should know, one line each.
    """

    root: Path
    model_name: str
    version: int
    created: bool
    notes: tuple[str, ...] = ()

    @property
    def version_dir(self) -> Path:
        """Directory that holds the model file."""
        return self.root / self.model_name / str(self.version)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningServer:
    """A server that answered an inference; URLs are ``http://…`` and plain ``host:port`` for gRPC."""

    http_url: str
    grpc_url: str
    metrics_url: str
    pid: int
    log_path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class SmokeCheck:
    """One thing proven, or not, about a served model."""

    name: str
    protocol: Literal["http", "grpc", "-"]
    outcome: Literal["passed", "failed"]
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SmokeResult:
    """All checks of one served model."""

    model: str
    checks: tuple[SmokeCheck, ...]

    @property
    def failed(self) -> tuple[SmokeCheck, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if check.outcome == "failed")

    @property
    def passed(self) -> bool:
        """True when there are checks and none failed."""
        return bool(self.checks) and not self.failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """How fast it answered, as served on this machine beside the build: to compare siblings by; never a gate.

    Attributes:
        p50_ms: median time of one request alone, from sending it to holding its answer.
        p99_ms: 99th percentile of the same requests; close to the slowest where they were few.
        throughput_per_s: samples answered per second with ``concurrency`` requests in flight.
        concurrency: requests in flight at once while throughput was measured.
        batch: samples in each request.
        requests: how many were timed, alone and together.
        memory_bytes: resident memory of the processes that run the model, shared libraries counted in each; None where
            they cannot be told from others.
    """

    p50_ms: float
    p99_ms: float
    throughput_per_s: float
    concurrency: int
    batch: int
    requests: int
    memory_bytes: int | None = None


Progress = Callable[[str, float | None], None]
"""Told what is being done, and the share done (0 to 1) where it is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceModel:
    """The model everything is judged against, opened in this process.

    Attributes:
        kind: what it is made of; decides which exports are possible.
        module: in eval mode: an nn.Module for ``torch``, a ScriptModule for ``torchscript``; None for ``onnx``; a
            tf.messages.ModelFile for ``keras`` and ``saved_model``, which are opened in a process of their own.
        path: the file as given, for ``onnx`` and ``torchscript``.
        runtime: answers with the signature's names and dtypes.
        notes: how the signature's names were matched with the model's, after the runs so far.
    """

    kind: str
    module: Any
    path: Path | None
    runtime: Runtime
    notes: Callable[[], tuple[str, ...]] = tuple


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantResult:
    """What became of one row of a build, a variant or a deployment; later fields are None when it did not get that far.

    Attributes:
        identifier: its name in the repository.
        model: the YAML's ``name``.
        format: a variant's format, or the kind of deployment.
        server: what serves it: ``triton``, ``torchserve``, ``tfserving``, or ``none``.
        measurement: its speed as served here, or None.
        unmeasured: why there is none, where more is known than that it was not served.
        proof: how far its version was proven; None where it has none, or failed.
        cached: its file and verdict came from the step store and no new version was made.
        skipped: why it was not made, where the YAML allows that, or empty.
        error: the error form of what stopped it, or empty.
        exit_code: 0, or that error's code.
        reproduce: the command that runs just the failed step again, or empty.
    """

    identifier: str
    model: str
    format: str
    precision: str
    server: str = "triton"
    artifact: Artifact | None = None
    entry: RepositoryEntry | None = None
    parity: ParityResult | None = None
    accuracy: AccuracyResult | None = None
    smoke: SmokeResult | None = None
    measurement: Measurement | None = None
    unmeasured: str = ""
    proof: ProofLevel | None = None
    cached: bool = False
    notes: tuple[str, ...] = ()
    skipped: str = ""
    error: str = ""
    exit_code: int = 0
    reproduce: str = ""

    @property
    def made(self) -> bool:
        """Whether there is anything to show: a row that a run did not come to has neither a file nor a version."""
        return self.artifact is not None or self.entry is not None
