"""How images become the model's input, by the YAML: its `preprocess`, or what a data set says."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.base.errors import ConfigError
from pipeline.base.values import Signature, TensorSpec
from pipeline.images.postprocessing import Postprocessing
from pipeline.images.preprocessing import Preprocessing
from pipeline.schema.images import Postprocess, Preprocess
from pipeline.schema.model import Data

Size = tuple[int, int]

DIGIT_LABELS = tuple("0123456789")
NATIVE_SIZES: Mapping[str, Size] = {"digits": (8, 8), "mnist": (28, 28), "cifar10": (32, 32)}


def of_section(section: Preprocess, signature: Signature) -> Preprocessing:
    """The YAML's `preprocess`, with what the input decides filled in.

    Raises:
        ConfigError: the input is no image, or another one than the section makes.
    """
    spec, batched = _only_input(signature), signature.batch is not None
    wanted = {"gray": 1, "rgb": 3, None: None}[section.color]
    made = section.crop or (section.resize if isinstance(section.resize, tuple) else None)
    layout, channels, fixed = _geometry(spec, batched, channels=wanted, size=made)
    resize = section.resize
    if resize is None and section.crop is None:
        resize = fixed
    elif fixed and made is None:
        found = "`resize` gives the shorter side only"
        hint = "add `crop`, or give `resize` as [height, width]"
        raise ConfigError(f"input {spec.name} is {fixed[0]}x{fixed[1]}", found=found, hint=hint)
    if isinstance(resize, int) and resize**2 > section.max_pixels:
        found = f"{resize} x {resize} pixels at least, of {section.max_pixels} at most"
        hint = "raise `max_pixels`, or resize to fewer"
        raise ConfigError("`resize` makes every image larger than `max_pixels`", found=found, hint=hint)
    _check_values(spec, section.mean, section.std, channels)
    if spec.dtype == "uint8" and section.scale != 255.0:
        raise ConfigError(f"input {spec.name} takes raw pixels (uint8)", hint="leave out `scale`, `mean` and `std`")
    return _filled(section, spec, layout, channels, resize)


def _filled(
    section: Preprocess, spec: TensorSpec, layout: str, channels: int, resize: Size | int | None
) -> Preprocessing:
    said = dict(section) | {"color": "gray" if channels == 1 else "rgb", "resize": resize}
    return Preprocessing(**said, dtype=spec.dtype, layout=layout)


def of_data(data: Data, signature: Signature) -> Preprocessing:
    """What a data set of images says, where the YAML has no `preprocess`.

    Raises:
        ConfigError: the input is no image, or another one than the data set makes.
    """
    spec, batched, native = _only_input(signature), signature.batch is not None, NATIVE_SIZES.get(data.dataset or "")
    try:
        layout, channels, fixed = _geometry(spec, batched, channels=data.channels, size=data.image_size, native=native)
    except ConfigError as error:
        error.hint = error.hint or "make them equal, or leave `image_size` and `channels` out"
        raise
    _check_values(spec, data.mean, data.std, channels)
    return plain(spec, layout, channels, fixed or data.image_size or native, mean=data.mean, std=data.std)


def plain(
    spec: TensorSpec,
    layout: str,
    channels: int,
    size: Size | None,
    *,
    mean: tuple[float, ...] = (0.0,),
    std: tuple[float, ...] = (1.0,),
) -> Preprocessing:
    """Resize to the input's size, scale to 0..1, normalise: what an image input means where nothing else is said."""
    return _filled(Preprocess(mean=mean, std=std), spec, layout, channels, size)


def postprocessing(section: Postprocess, signature: Signature) -> tuple[str, Postprocessing]:
    """The output that holds the scores, and how they become labels.

    Raises:
        ConfigError: no output, or several, could be the scores.
    """
    rank = 1 if signature.batch is None else 2
    vectors = [spec for spec in signature.outputs if spec.dtype.startswith("float") and len(spec.shape) == rank]
    if section.output is not None:
        found = [spec for spec in vectors if spec.name == section.output]
    else:
        found = [spec for spec in vectors if spec.labels] or vectors
    if len(found) != 1:
        chosen = section.output or ", ".join(spec.name for spec in found) or "none"
        outputs = ", ".join(f"{spec.name} {spec.dtype}{list(spec.shape)}" for spec in signature.outputs)
        raise ConfigError(
            "`postprocess` needs one output of scores, a vector of floats per sample",
            found=f"{chosen} of the outputs {outputs}",
            hint="name it: postprocess: {output: …}",
        )
    (spec,) = found
    return spec.name, Postprocessing(
        activation=section.activation, labels=spec.labels, top_k=section.top_k, threshold=section.threshold
    )


def image_layout(spec: TensorSpec, batched: bool) -> str | None:
    """``NCHW`` or ``NHWC`` for an input that can hold images, else None.

    Where the YAML names no layout, the dimension of 1 or 3 that can only be the channels decides; NCHW if both can.
    """
    dims = spec.shape[1:] if batched or len(spec.shape) == 4 else spec.shape
    if len(dims) != 3:
        return None
    return spec.layout or ("NHWC" if dims[2] in (1, 3) and dims[0] not in (1, 3) else "NCHW")


def _only_input(signature: Signature) -> TensorSpec:
    if len(signature.inputs) != 1:
        found = f"{len(signature.inputs)} inputs: {', '.join(spec.name for spec in signature.inputs)}"
        hint = "use `arrays` or `callable` for the data of this model"
        raise ConfigError("images feed a model of one input", found=found, hint=hint)
    (spec,) = signature.inputs
    if spec.dtype not in ("uint8", "float16", "float32", "float64"):
        raise ConfigError(f"input {spec.name} is no image", found=f"dtype {spec.dtype}", hint="uint8 or a float dtype")
    return spec


def _check_values(spec: TensorSpec, mean: tuple[float, ...], std: tuple[float, ...], channels: int) -> None:
    if not {len(mean), len(std)} <= {1, channels}:
        raise ConfigError("`mean` and `std` need one value, or one per channel", found=f"{channels} channels")
    if spec.dtype == "uint8" and (mean != (0.0,) or std != (1.0,)):
        raise ConfigError(f"input {spec.name} takes raw pixels (uint8)", hint="leave out `mean` and `std`")


def _geometry(
    spec: TensorSpec, batched: bool, *, channels: int | None, size: Size | None, native: Size | None = None
) -> tuple[str, int, Size | None]:
    """Layout, channels, and the input's own height and width or, where those are dynamic, ``size``."""
    layout = image_layout(spec, batched)
    dims = spec.shape[1:] if batched or len(spec.shape) == 4 else spec.shape
    if layout is None:
        flat_size, flat_channels = size or native, channels or 1
        length = flat_channels * flat_size[0] * flat_size[1] if flat_size else None
        if len(dims) == 1 and (isinstance(dims[0], str) or dims[0] == length):
            return "flat", flat_channels, flat_size
        hint = "an image is [N, C, H, W] or [N, H, W, C], or [N, C*H*W] of the images' size"
        raise ConfigError(f"input {spec.name} is no image", found=f"shape {list(spec.shape)}", hint=hint)
    channel, height, width = (dims[0], dims[1], dims[2]) if layout == "NCHW" else (dims[2], dims[0], dims[1])
    own = channel if isinstance(channel, int) else (channels or 3)
    if own not in (1, 3) or channels not in (None, own):
        found = f"shape {list(spec.shape)}" + (f"; {channels} asked for" if channels else "")
        hint = "images have 1 or 3; set `layout` on the input"
        raise ConfigError(f"input {spec.name} has {own} channels in layout {layout}", found=found, hint=hint)
    fixed = (height, width) if isinstance(height, int) and isinstance(width, int) else None
    if fixed and size and fixed != size:
        raise ConfigError(f"input {spec.name} is {fixed[0]}x{fixed[1]}", found=f"images are made {size[0]}x{size[1]}")
    return layout, own, fixed or size
