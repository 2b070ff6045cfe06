"""The YAML's shape. Every key a configuration may have is a field here, with its unit, default and limits."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.artifacts import NUMPY_DTYPES

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"
Name = Annotated[str, Field(pattern=NAME_PATTERN, description="letters, digits, _ and -; it names a folder")]
Dtype = Literal[
    "bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32", "float64"
]
DimSize = Annotated[int, Field(ge=1, le=2**31 - 1)]
DimLetter = Annotated[str, Field(pattern=r"^[A-Z][A-Za-z0-9_]{0,15}$")]
Callable = Annotated[
    str,
    Field(
        pattern=r"^[^:]+:[A-Za-z_]\w*$",
        description="'file.py:callable' (relative to this YAML) or 'package.module:callable'",
    ),
]
MIN_CALIBRATION_SAMPLES = 16  # fewer say too little of a range; what is usual is 128 and more
PositiveInt = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]

assert set(Dtype.__args__) == set(NUMPY_DTYPES)  # type: ignore[attr-defined]


class Section(BaseModel):
    """Base of every mapping in the YAML: unknown keys are errors, values keep their YAML type."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def _exactly_one(section: Section, names: tuple[str, ...]) -> None:
    present = [name for name in names if getattr(section, name) is not None]
    if len(present) != 1:
        raise ValueError(f"expected exactly one of {', '.join(names)}; found {', '.join(present) or 'none'}")


class Model(Section):
    """A torch module: a library's, by name, or your own callable that returns one."""

    library: Literal["torchvision", "timm", "transformers"] | None = None
    name: str | None = Field(
        None,
        description="the library's name for it (resnet18, resnet50.a1_in1k); transformers: without weights a type "
        "(bert) or class (BertModel) with `args` as its configuration, with weights a hub name or a local folder",
    )
    callable: Callable | None = None
    args: dict[str, Any] = Field({}, description="keyword arguments of the constructor")
    weights: str | None = Field(
        None,
        description="pretrained weights by the library's name (torchvision: IMAGENET1K_V2 or DEFAULT; the others: "
        "DEFAULT); fetched by the library, or found in its local cache",
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Model:
        _exactly_one(self, ("library", "callable"))
        if self.library is not None and not self.name:
            raise ValueError("a library model needs `name`")
        if self.callable is not None and (self.name or self.weights):
            raise ValueError("`name` and `weights` belong to a library model; give `args` to a callable")
        return self


class Data(Section):
    """A labelled data set with a train and a test part."""

    dataset: Literal["digits", "mnist", "cifar10"] | None = Field(
        None, description="digits is embedded in scikit-learn; torchvision fetches the others, or finds them in `root`"
    )
    images: str | None = Field(
        None, description="folder of images; with one subfolder per class (or train/ and test/ of such) it is labelled"
    )
    arrays: str | None = Field(
        None,
        description=".npz whose keys are input names, first axis the samples, plus an optional `target`; "
        "or .npy for a model of one input",
    )
    callable: Callable | None = Field(
        None,
        description="your function; returns {'train': (inputs, targets), 'test': …}, inputs a dict of arrays "
        "or a list of dicts of arrays (one per sample, for sizes that differ)",
    )
    args: dict[str, Any] = Field({}, description="keyword arguments of `callable`")
    root: str = Field("data", description="folder for mnist and cifar10 files")
    image_size: Annotated[tuple[DimSize, DimSize], Field(description="[height, width] in pixels")] | None = None
    channels: Literal[1, 3] | None = Field(None, description="default: what the model's input has")
    mean: tuple[float, ...] = Field((0.0,), description="per channel, of pixels scaled to 0..1")
    std: tuple[Annotated[float, Field(gt=0)], ...] = Field((1.0,), description="per channel, of pixels scaled to 0..1")
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.2, description="held out where the data has no test part of its own; stratified, fixed by the seed"
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Data:
        _exactly_one(self, ("dataset", "images", "arrays", "callable"))
        return self


class Optimizer(Section):
    """How weights are updated."""

    name: Literal["adam", "adamw", "sgd"] = "adamw"
    learning_rate: Annotated[float, Field(gt=0, le=100)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    momentum: Fraction = Field(0.9, description="sgd only")


class Schedule(Section):
    """How the learning rate moves over the epochs."""

    name: Literal["constant", "cosine", "step", "onecycle"] = "constant"
    step_epochs: PositiveInt = Field(10, description="step only: epochs between two drops")
    gamma: Fraction = Field(0.1, description="step only: factor of each drop")


class Augmentation(Section):
    """Random changes to training images; off unless asked for."""

    shift_pixels: Annotated[int, Field(ge=0, le=64)] = 0
    horizontal_flip: bool = False
    noise_std: Annotated[float, Field(ge=0)] = 0.0


class EarlyStop(Section):
    """End training when the held-out accuracy no longer rises."""

    patience_epochs: PositiveInt = 3
    min_gain: Fraction = 0.0


class Train(Section):
    """Train a model here."""

    model: Model
    data: Data
    epochs: Annotated[int, Field(ge=1, le=100_000)] = 5
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 64
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    augmentation: Augmentation | None = None
    early_stop: EarlyStop | None = None
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0


class Checkpoint(Section):
    """Load trained weights from a file."""

    file: str = Field(description=".pt, .pth or .safetensors")
    model: Model | None = Field(None, description="the architecture; may be left out only for a whole pickled module")
    key: str | None = Field(None, description="where the state dict sits in the file, e.g. model_state_dict; dots nest")
    strict: bool = Field(True, description="false: missing and unexpected keys are reported, not refused")
    allow_pickle: bool = Field(
        False, description="consent to unpickle the file, which runs code in it: only for files you trust"
    )

    @model_validator(mode="after")
    def _architecture(self) -> Checkpoint:
        if self.model is None and not self.allow_pickle:
            raise ValueError("`model` is needed, unless the file is a whole pickled module and `allow_pickle: true`")
        return self


class File(Section):
    """A model file used as it is."""

    file: str


class Source(Section):
    """Where the model comes from: exactly one of these."""

    train: Train | None = None
    checkpoint: Checkpoint | None = None
    model: Model | None = Field(None, description="a library model, or your callable that returns a ready module")
    onnx: File | None = None
    torchscript: File | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Source:
        _exactly_one(self, ("train", "checkpoint", "model", "onnx", "torchscript"))
        return self


class Input(Section):
    """One input tensor."""

    dtype: Dtype = "float32"
    shape: Annotated[tuple[DimSize | DimLetter, ...], Field(max_length=8)] = Field(
        description="full shape; a capital letter is a dynamic dimension; the same first letter everywhere is the batch"
    )
    layout: Literal["NCHW", "NHWC"] | None = None


class Output(Section):
    """One output tensor."""

    dtype: Dtype = "float32"
    shape: Annotated[tuple[DimSize | DimLetter, ...], Field(max_length=8)]
    labels: str | tuple[str, ...] | None = Field(
        None,
        description="class names by index: a list, a text file of lines, `digits`, or `source` (what the data or "
        "the pretrained weights say)",
    )


class Samples(Section):
    """The golden samples: real data the model has not been trained on."""

    from_: Annotated[str | Data, Field(alias="from")] = Field(
        "data.test", description="`data.test` (the held-out part of source.train.data), or a data set of its own"
    )
    count: Annotated[int, Field(ge=1, le=100_000)] = 128
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0

    @model_validator(mode="after")
    def _known_name(self) -> Samples:
        if isinstance(self.from_, str) and self.from_ != "data.test":
            raise ValueError(f"`from` is `data.test` or a mapping such as {{images: photos/}}; found {self.from_!r}")
        return self


class ParityGate(Section):
    """Limits on |variant - source|: an element may differ by the sum of max_abs, max_rel and max_scaled."""

    max_abs: Annotated[float, Field(ge=0)] | None = Field(None, description="in the output's own unit")
    max_rel: Annotated[float, Field(ge=0)] | None = Field(None, description="share of the element's own magnitude")
    max_scaled: Annotated[float, Field(ge=0)] | None = Field(
        None, description="share of the greatest magnitude in the output"
    )
    min_cosine: Fraction | None = None
    min_top1: Fraction | None = None


class AccuracyGate(Section):
    """Limits on accuracy over the golden samples."""

    metric: Literal["top1"] = "top1"
    min: Fraction | None = Field(None, description="least accuracy of every variant")
    max_drop: Fraction | None = Field(None, description="most that a variant may lose against the source model")


class Gates(Section):
    """What a variant must satisfy to be emitted; parity limits left out take the precision's defaults."""

    parity: ParityGate = ParityGate()
    accuracy: AccuracyGate | None = None


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
    nodes: tuple[str, ...] = Field((), description="node names in the exported ONNX file")


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
        (), description="compute capabilities (sm_80); default: tensorrt_rtx all it builds for, tensorrt this GPU's"
    )
    profiles: tuple[dict[DimLetter, Annotated[tuple[DimSize, ...], Field(min_length=3, max_length=3)]], ...] = Field(
        (),
        description="optimization profiles: [min, opt, max] for every dynamic dimension; "
        "the batch has [1, max_batch_size, max_batch_size] by default",
    )
    workspace_bytes: PositiveInt | None = Field(None, description="limit on scratch memory; default: TensorRT's")
    hardware_compatibility: Literal["none", "ampere_plus", "same_compute_capability"] = "none"
    version_compatible: bool = Field(False, description="loadable by later TensorRT versions too")
    refit: bool = Field(False, description="weights can be replaced in the built engine")
    weight_streaming: bool = Field(False, description="weights may stay in host memory")
    optimization_level: Annotated[int, Field(ge=0, le=5)] | None = Field(None, description="default: TensorRT's")
    timeout_s: Annotated[float, Field(gt=0, le=86_400)] = 3600.0
    when_unavailable: Literal["fail", "skip"] = Field(
        "fail", description="what to do where this machine cannot build it; skip says so in the report"
    )


class Variant(Section):
    """One servable form of the model."""

    from_: Name | None = Field(
        None,
        alias="from",
        description="another variant: its file is served with other settings, made into another precision, "
        "or built into an engine",
    )
    format: Literal["onnx", "torchscript", "tensorrt"] | None = Field(None, description="default: the parent's")
    precision: Literal["fp32", "fp16", "bf16", "int8"] | None = Field(
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
            raise ValueError("expected `format` (onnx, torchscript or tensorrt), or `from` another variant")
        for key, owner in (("method", "torchscript"), ("exporter", "onnx"), ("opset", "onnx"), ("simplify", "onnx")):
            if getattr(self, key) is not None and self.format != owner:
                raise ValueError(f"`{key}` belongs to `format: {owner}`")
            if getattr(self, key) is not None and self.from_ is not None:
                raise ValueError(f"`{key}` is set where the file is made, not on a variant with `from`")
        if self.format == "tensorrt" and self.from_ is None:
            raise ValueError("an engine is built from an ONNX file: expected `from`, naming an onnx variant")
        return self


class Triton(BaseModel):
    """The target release, and any field of Triton's ModelConfig, spelled as in model_config.proto."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    target: Annotated[str, Field(pattern=r"^\d\d\.(0[1-9]|1[0-2])$")] = Field(
        "24.10", description="Triton release whose limits the artifacts respect"
    )
    max_batch_size: Annotated[int, Field(ge=0, le=65_536)] | None = Field(
        None, description="default 32 where the model has a batch dimension, else 0"
    )

    @property
    def model_config_fields(self) -> dict[str, Any]:
        """Everything but ``target`` and ``max_batch_size``: fields for the ModelConfig message."""
        return dict(self.model_extra or {})


class Repository(Section):
    """Where versions go, and how many stay."""

    path: str | None = Field(None, description="default: model_repository/ in the working directory")
    retain: PositiveInt | None = Field(None, description="keep this many versions this tool wrote; default: all")


class Serve(Section):
    """The server that proves the repository."""

    engine: Literal["embedded", "container"] = Field(
        "embedded",
        description="embedded: tritonserver from nvidia-pytriton; container: the target's image through Docker",
    )
    start_timeout_s: Annotated[float, Field(gt=0, le=3600)] = 120.0
    request_timeout_s: Annotated[float, Field(gt=0, le=3600)] = 60.0


class Config(Section):
    """One model, from source to served."""

    name: Name
    source: Source
    inputs: Annotated[dict[Name, Input], Field(min_length=1)]
    outputs: Annotated[dict[Name, Output], Field(min_length=1)]
    samples: Samples = Samples.model_construct(from_="data.test", count=128, seed=0)
    variants: Annotated[dict[Name, Variant], Field(min_length=1)]
    gates: Gates = Gates()
    triton: Triton = Triton()
    repository: Repository = Repository()
    serve: Serve = Serve()
