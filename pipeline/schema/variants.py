"""The variants: how the model is made into files, and what each must satisfy."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from pipeline.schema.base import DimLetter, DimSize, Fraction, Name, Section
from pipeline.schema.model import Data

Format = Literal["onnx", "torchscript", "tensorrt", "saved_model", "libtorch"]
"""What formats/table.py has a row for."""
Precision = Literal["fp32", "fp16", "bf16", "int8"]
MIN_CALIBRATION_SAMPLES = 16  # fewer say too little of a range; what is usual is 128 and more

MAX_WORKSPACE_BYTES = 2**50  # more than any GPU has; TensorRT-RTX 1.7 fails an assertion of its own close to 2**63


class ParityGate(Section):
    """Limits on |variant - source|: an element may differ by the sum of max_abs, max_rel and max_scaled."""

    max_abs: Annotated[float, Field(ge=0)] | None = Field(None, description="in the output's own unit")
    max_rel: Annotated[float, Field(ge=0)] | None = Field(None, description="share of the element's own magnitude")
    max_scaled: Annotated[float, Field(ge=0)] | None = Field(
        None, description="share of the greatest magnitude in the output"
    )
    min_cosine: Fraction | None = None
    min_top1: Fraction | None = Field(
        None, description="share of samples whose arg-max agrees, in outputs of floats [samples, classes]"
    )


class AccuracyGate(Section):
    """Limits on accuracy over the golden samples."""

    metric: Literal["top1"] = "top1"
    min: Fraction | None = Field(None, description="least accuracy of every variant")
    max_drop: Fraction | None = Field(None, description="most that a variant may lose against the source model")


class Gates(Section):
    """What a variant must satisfy to be emitted; parity limits left out take the precision's defaults."""

    parity: ParityGate = ParityGate()
    accuracy: AccuracyGate | Literal["off"] | None = Field(
        None,
        description="off: no limits and, in the common gates, a source that its own labelled samples speak against is "
        "not refused",
    )

    @property
    def limits(self) -> AccuracyGate | None:
        """The limits on accuracy, where there are any."""
        return self.accuracy if isinstance(self.accuracy, AccuracyGate) else None


class Calibration(Section):
    """The samples that int8 ranges are measured on; never those that judge the result."""

    method: Literal["minmax", "entropy", "percentile"] = "minmax"
    samples: Annotated[int, Field(ge=MIN_CALIBRATION_SAMPLES, le=100_000)] = 128
    percentile: Annotated[float, Field(gt=50, lt=100)] = Field(99.99, description="percentile only")
    from_: Data | None = Field(
        None,
        alias="from",
        description="default: the training part of source.train.data, else what `samples` left of its own data",
    )


class KeepFp32(Section):
    """What stays in fp32 whatever the precision."""

    ops: tuple[str, ...] = Field((), description="ONNX operator types: Softmax, Conv, …")
    nodes: tuple[str, ...] = Field(
        (), description="node names in the exported ONNX file; a node without one goes by its first output"
    )


class Repair(Section):
    """When a gate refuses: find the nodes to blame, keep them in fp32, try again."""

    attempts: Annotated[int, Field(ge=1, le=20)] = Field(4, description="most tries after the first")
    max_share: Annotated[float, Field(gt=0, le=1)] = Field(0.5, description="of the nodes, the most to be kept in fp32")


class Engine(Section):
    """How a TensorRT engine is built."""

    flavour: Literal["tensorrt", "tensorrt_rtx"] | None = Field(
        None, description="default: tensorrt where it is installed and there is a GPU, else tensorrt_rtx"
    )
    gpus: tuple[Annotated[str, Field(pattern=r"^sm_\d{2,3}$")], ...] = Field(
        (),
        description="compute capabilities (sm_80); default: tensorrt_rtx all it knows but sm_75, tensorrt this GPU's",
    )
    profiles: tuple[dict[DimLetter, Annotated[tuple[DimSize, ...], Field(min_length=3, max_length=3)]], ...] = Field(
        (),
        description="optimization profiles: [min, opt, max] for every dynamic dimension; "
        "the batch has [1, max_batch_size, max_batch_size] by default",
    )
    workspace_bytes: Annotated[int, Field(ge=1, le=MAX_WORKSPACE_BYTES)] | None = Field(
        None, description="limit on scratch memory; default: TensorRT's"
    )
    hardware_compatibility: Literal["none", "ampere_plus", "same_compute_capability"] = "none"
    version_compatible: bool = Field(False, description="loadable by later TensorRT versions too")
    refit: bool = Field(False, description="weights can be replaced in the built engine")
    weight_streaming: bool = Field(False, description="weights may stay in host memory")
    optimization_level: Annotated[int, Field(ge=0, le=5)] | None = Field(None, description="default: TensorRT's")
    timeout_s: Annotated[float, Field(gt=0, le=86_400)] = 3600.0
    when_unavailable: Literal["fail", "skip"] = Field(
        "fail", description="what to do where this machine cannot build it; skip says so in the report"
    )


_MAKING = {"method": "torchscript", "exporter": "onnx", "opset": "onnx", "simplify": "onnx"}
"""Keys of how a file is made, and the format each belongs to."""
_BUILT = {
    "tensorrt": "an engine is built from an ONNX file: expected `from`, naming an onnx variant",
    "libtorch": "a C++ program runs a TorchScript file: expected `from`, naming a torchscript variant",
}
"""The formats that are made of another variant, and what is said where none is named."""


class Variant(Section):
    """One servable form of the model."""

    from_: Name | None = Field(
        None,
        alias="from",
        description="another variant: its file is served with other settings, made into another precision, "
        "built into an engine, or put into a C++ program",
    )
    format: Format | None = Field(
        None, description="default: the parent's; libtorch is a C++ program around a torchscript variant"
    )
    precision: Precision | None = Field(
        None,
        description="default: the parent's, or fp32; of weights and arithmetic: inputs and outputs keep their types",
    )
    method: Literal["auto", "trace", "script"] | None = Field(None, description="torchscript: how; default auto")
    exporter: Literal["auto", "dynamo", "torchscript"] | None = Field(
        None, description="onnx: which exporter; default auto"
    )
    opset: Annotated[int, Field(ge=11, le=30)] | None = Field(
        None, description="onnx: default 20, or the target's limit"
    )
    simplify: bool | None = Field(None, description="onnx: fold constants and remove redundant nodes; default true")
    calibration: Calibration | None = Field(None, description="int8 only")
    keep_fp32: KeepFp32 | None = Field(None, description="fp16, bf16 and int8")
    repair: Repair | Literal["off"] | None = Field(
        None, description="fp16, bf16 and int8: what to do when a gate refuses; default: repair within 4 attempts"
    )
    engine: Engine | None = Field(None, description="tensorrt only")
    gates: Gates | None = Field(None, description="in place of the common gates")
    triton: dict[str, Any] = Field({}, description="laid over the common `triton` settings; null removes one")

    @model_validator(mode="after")
    def _own_keys(self) -> Variant:
        if self.from_ is None and self.format is None:
            *names, last = get_args(Format)
            raise ValueError(f"expected `format` ({', '.join(names)} or {last}), or `from` another variant")
        for key, owner in _MAKING.items():
            if getattr(self, key) is not None and self.format != owner:
                raise ValueError(f"`{key}` belongs to `format: {owner}`")
            if getattr(self, key) is not None and self.from_ is not None:
                raise ValueError(f"`{key}` is set where the file is made, not on a variant with `from`")
        if self.from_ is None and self.format in _BUILT:
            raise ValueError(_BUILT[self.format])
        return self
