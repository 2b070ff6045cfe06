"""The source: where the model and its data come from."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.schema.base import (
    Callable,
    DimLetter,
    DimSize,
    Dtype,
    Fraction,
    LocalPath,
    PositiveInt,
    Section,
    exactly_one,
)

TF2ONNX_MAX_OPSET = 18  # tf2onnx 1.17, tf2onnx.constants.OPSET_TO_IR_VERSION


class Model(Section):
    """A torch module: a library's, by name, or your own callable that returns one."""

    library: Literal["torchvision", "timm", "transformers"] | None = None
    name: LocalPath | None = Field(
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
        exactly_one(self, ("library", "callable"))
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
    images: LocalPath | None = Field(
        None, description="folder of images; with one subfolder per class (or train/ and test/ of such) it is labelled"
    )
    arrays: LocalPath | None = Field(
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
    root: LocalPath = Field("data", description="folder for mnist and cifar10 files")
    image_size: Annotated[tuple[DimSize, DimSize], Field(description="[height, width] in pixels")] | None = None
    channels: Literal[1, 3] | None = Field(None, description="default: what the model's input has")
    mean: tuple[float, ...] = Field((0.0,), description="per channel, of pixels scaled to 0..1")
    std: tuple[Annotated[float, Field(gt=0)], ...] = Field((1.0,), description="per channel, of pixels scaled to 0..1")
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.2, description="held out where the data has no test part of its own; stratified, fixed by the seed"
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Data:
        exactly_one(self, ("dataset", "images", "arrays", "callable"))
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
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="share of each target that is spread evenly over all classes"
    )
    early_stop: EarlyStop | None = None
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0


class Checkpoint(Section):
    """Load trained weights from a file."""

    file: LocalPath = Field(description=".pt, .pth or .safetensors")
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


class KerasTrain(Section):
    """Train a Keras classifier here: Adam, cross entropy against the class index."""

    callable: Callable = Field(description="your function that returns a built Keras model of one output")
    args: dict[str, Any] = Field({}, description="keyword arguments of `callable`")
    data: Data
    epochs: Annotated[int, Field(ge=1, le=100_000)] = 5
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 64
    learning_rate: Annotated[float, Field(gt=0, le=100)] = 1e-3
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0


class Keras(Section):
    """A Keras model: a file, or trained here."""

    file: LocalPath | None = Field(None, description=".keras or .h5")
    allow_lambda: bool = Field(
        False, description="consent to the Python code of Lambda layers in the file: only for files you trust"
    )
    train: KerasTrain | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Keras:
        exactly_one(self, ("file", "train"))
        if self.train is not None and self.allow_lambda:
            raise ValueError("`allow_lambda` belongs to `file`")
        return self


class SavedModel(Section):
    """A TensorFlow SavedModel."""

    directory: LocalPath = Field(description="the folder that holds saved_model.pb and variables/")
    signature: str = Field("serving_default", description="which of its signatures is meant")


class File(Section):
    """A model file used as it is."""

    file: LocalPath


class Source(Section):
    """Where the model comes from: exactly one of these."""

    train: Train | None = None
    checkpoint: Checkpoint | None = None
    model: Model | None = Field(None, description="a library model, or your callable that returns a ready module")
    onnx: File | None = None
    torchscript: File | None = None
    keras: Keras | None = None
    saved_model: SavedModel | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Source:
        exactly_one(self, tuple(type(self).model_fields))
        return self

    @property
    def key(self) -> str:
        """The one that is given; sources/table.py has a row for each."""
        return next(name for name, given in self if given is not None)

    @property
    def training(self) -> Train | KerasTrain | None:
        """What is trained here, and on what data; None where the model comes ready."""
        return self.keras.train if self.keras is not None else self.train

    @property
    def built(self) -> Model | None:
        """The torch module that is built here, to be trained or to take weights; None where a file holds it whole."""
        owner = self.train or self.checkpoint
        return owner.model if owner is not None else self.model


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
    labels: LocalPath | tuple[str, ...] | None = Field(
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
