"""Images as a model's input: embedded and downloaded sets, folders of files, and the one way pixels become a tensor."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import torchvision_compat
from pipeline.artifacts import NUMPY_DTYPES, Array, Signature, TensorSpec
from pipeline.config.schema import Data
from pipeline.errors import ConfigError, MissingError, StageError

_SUFFIXES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))
_DOWNLOADED = {
    # dataset: (torchvision class, files expected below `root`, class names)
    "mnist": ("MNIST", "MNIST/raw/{train,t10k}-images-idx3-ubyte and -labels-idx1-ubyte", tuple("0123456789")),
    "cifar10": (
        "CIFAR10",
        "cifar-10-batches-py/{data_batch_1..5,test_batch,batches.meta}",
        ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageInput:
    """How pixels become the model's one input.

    Attributes:
        name: of the input.
        dtype: ``uint8`` keeps 0..255; a float dtype is scaled to 0..1, then (x - mean) / std.
        layout: ``NCHW``, ``NHWC``, or ``flat`` for one vector of all pixels in C, H, W order.
        channels: 1 or 3.
        size: height and width in pixels, or None to keep each image's own.
        leading: whether the input has a batch dimension, so that a sample starts with a dimension of 1.
    """

    name: str
    dtype: str
    layout: str
    channels: int
    size: tuple[int, int] | None
    leading: bool
    mean: Array
    std: Array

    @classmethod
    def of(cls, data: Data, signature: Signature, *, native: tuple[int, int] | None = None) -> ImageInput:
        """Read the geometry off the signature; the YAML's ``image_size`` and ``channels`` decide what it leaves open.

        Args:
            data: the YAML's data section.
            signature: its one input is the image.
            native: the data set's own height and width, used where neither says another.

        Raises:
            ConfigError: several inputs, or a shape or dtype that is no image.
        """
        if len(signature.inputs) != 1:
            raise ConfigError(
                "images feed a model of one input",
                found=f"{len(signature.inputs)} inputs: {', '.join(spec.name for spec in signature.inputs)}",
                hint="use `arrays` or `callable` for the data of this model",
            )
        spec = signature.inputs[0]
        layout, channels, size = _geometry(spec, data, signature.batch is not None, native)
        if spec.dtype not in ("uint8", "float16", "float32", "float64"):
            raise ConfigError(
                f"input {spec.name} is no image", found=f"dtype {spec.dtype}", hint="uint8 or a float dtype"
            )
        mean, std = np.asarray(data.mean, np.float32), np.asarray(data.std, np.float32)
        if not {mean.size, std.size} <= {1, channels}:
            raise ConfigError("`mean` and `std` need one value, or one per channel", found=f"{channels} channels")
        if spec.dtype == "uint8" and (data.mean != (0.0,) or data.std != (1.0,)):
            raise ConfigError(f"input {spec.name} takes raw pixels (uint8)", hint="leave out `mean` and `std`")
        leading = signature.batch is not None or len(spec.shape) == 4
        return cls(
            name=spec.name,
            dtype=spec.dtype,
            layout=layout,
            channels=channels,
            size=size,
            leading=leading,
            mean=mean,
            std=std,
        )

    def tensors(self, pixels: Array) -> Array:
        """Turn float32 ``[n, H, W, C]`` pixels in 0..1 into the input's dtype and layout, one row per image."""
        raw = self.dtype == "uint8"
        values = np.rint(np.clip(pixels, 0, 1) * 255) if raw else (pixels - self.mean) / self.std
        if self.layout != "NHWC":
            values = values.transpose(0, 3, 1, 2)
        if self.layout == "flat":
            values = values.reshape(len(values), -1)
        return np.ascontiguousarray(values, dtype=NUMPY_DTYPES[self.dtype])


def image_layout(spec: TensorSpec, batched: bool) -> str | None:
    """``NCHW`` or ``NHWC`` for an input that can hold images, else None.

    Where the YAML names no layout, the dimension of 1 or 3 that can only be the channels decides; NCHW if both can.
    """
    dims = spec.shape[1:] if batched or len(spec.shape) == 4 else spec.shape
    if len(dims) != 3:
        return None
    return spec.layout or ("NHWC" if dims[2] in (1, 3) and dims[0] not in (1, 3) else "NCHW")


def _geometry(
    spec: TensorSpec, data: Data, batched: bool, native: tuple[int, int] | None
) -> tuple[str, int, tuple[int, int] | None]:
    layout = image_layout(spec, batched)
    dims = spec.shape[1:] if batched or len(spec.shape) == 4 else spec.shape
    if layout is None:
        size, flat_channels = data.image_size or native, data.channels or 1
        length = flat_channels * size[0] * size[1] if size else None
        if len(dims) == 1 and (isinstance(dims[0], str) or dims[0] == length):
            return "flat", flat_channels, size
        raise ConfigError(
            f"input {spec.name} is no image",
            found=f"shape {list(spec.shape)}",
            hint="an image is [N, C, H, W] or [N, H, W, C], or [N, C*H*W] of the data's image_size",
        )
    channel, height, width = (dims[0], dims[1], dims[2]) if layout == "NCHW" else (dims[2], dims[0], dims[1])
    channels = channel if isinstance(channel, int) else (data.channels or 3)
    if channels not in (1, 3) or data.channels not in (None, channels):
        raise ConfigError(
            f"input {spec.name} has {channels} channels in layout {layout}",
            found=f"shape {list(spec.shape)}, data.channels {data.channels}",
            hint="images have 1 or 3; set `layout` on the input",
        )
    fixed = (height, width) if isinstance(height, int) and isinstance(width, int) else None
    if fixed and data.image_size and fixed != data.image_size:
        raise ConfigError(
            f"input {spec.name} is {fixed[0]}x{fixed[1]}",
            found=f"`image_size` says {data.image_size[0]}x{data.image_size[1]}",
            hint="make them equal, or leave `image_size` out",
        )
    return layout, channels, fixed or data.image_size or native


def digits() -> tuple[Array, Array]:
    """Scikit-learn's digits: float32 pixels ``[1797, 8, 8, 1]`` in 0..1 and int64 classes."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return (bunch.images / 16.0).astype(np.float32)[..., None], bunch.target.astype(np.int64)


def downloaded(name: str, root: Path) -> tuple[Array, Array, Array, Array, tuple[str, ...]]:
    """MNIST or CIFAR-10 through torchvision, fetched into ``root`` unless they are there.

    Returns:
        Train pixels (uint8 ``[n, H, W, C]``), train classes (int64), the same two of the test part, and class names.

    Raises:
        MissingError: neither found nor to be fetched.
    """
    kind, expected, labels = _DOWNLOADED[name]
    torchvision_compat.load()
    from torchvision import datasets as sets

    parts: list[Array] = []
    try:
        with torchvision_compat.fetching():
            for train in (True, False):
                part = getattr(sets, kind)(str(root), train=train, download=True)
                pixels = np.asarray(part.data)
                parts += [pixels if pixels.ndim == 4 else pixels[..., None], np.asarray(part.targets, np.int64)]
    except (OSError, RuntimeError, ValueError, EOFError) as error:
        raise MissingError(
            f"datasets: {name} is not in `root` and could not be fetched",
            found=f"{type(error).__name__}: {error}",
            where=str(root),
            hint=f"put {expected} there, or use `dataset: digits`, which is embedded",
        ) from error
    return parts[0], parts[1], parts[2], parts[3], labels


def resized(pixels: Array, target: ImageInput) -> Array:
    """Fit ``[n, H, W, C]`` pixels (uint8, or float in 0..1) to the input's channels and size.

    Grey from colour is ITU-R BT.601 luma, as Pillow's mode L; resizing is bilinear without antialias.
    """
    import torch

    values = pixels.astype(np.float32) / 255.0 if pixels.dtype == np.uint8 else pixels
    if values.shape[3] == 3 and target.channels == 1:
        values = values @ np.asarray([[0.299], [0.587], [0.114]], np.float32)
    if target.size and target.size != values.shape[1:3]:
        tensor = torch.from_numpy(np.ascontiguousarray(values.transpose(0, 3, 1, 2)))
        tensor = torch.nn.functional.interpolate(
            tensor, target.size, mode="bilinear", align_corners=False, antialias=False
        )
        values = tensor.numpy().transpose(0, 2, 3, 1)
    return np.repeat(values, 3, axis=3) if values.shape[3] == 1 and target.channels == 3 else values


class ImageFiles:
    """Image files read one by one when asked for, so that choosing a few of many reads only those."""

    def __init__(self, paths: Sequence[Path], target: ImageInput) -> None:
        self.paths, self._target = paths, target

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Array]:
        """One sample, named as the input.

        Raises:
            StageError: the file is no readable image.
        """
        row = self._target.tensors(read_image(self.paths[index], self._target)[None])
        return {self._target.name: row if self._target.leading else row[0]}

    def take(self, rows: Array) -> ImageFiles:
        """The files of the given numbers, in that order."""
        return ImageFiles([self.paths[row] for row in rows], self._target)


def read_image(path: Path, target: ImageInput) -> Array:
    """Read an image file as float32 ``[H, W, C]`` in 0..1: upright by its EXIF tag, grey or RGB, resized bilinearly.

    Raises:
        StageError: damaged, of an unsupported kind, or too large to be safe.
    """
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            # Pillow warns about odd palettes and EXIF blocks that it reads all the same; a bomb must be an error.
            warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                image: Any = ImageOps.exif_transpose(opened)
                if image.mode.startswith("I;16"):
                    image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
                elif image.mode in ("I", "F"):
                    raise ValueError(f"pixels of mode {image.mode}; expected 8 or 16 bits per channel")
                image = image.convert("L" if target.channels == 1 else "RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise StageError(
            "datasets: not a readable image",
            found=f"{type(error).__name__}: {error}",
            where=str(path),
            hint="replace or remove the file",
        ) from error
    if target.size and (image.height, image.width) != target.size:
        image = image.resize((target.size[1], target.size[0]), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, np.float32) / 255.0
    return pixels[..., None] if pixels.ndim == 2 else pixels


def image_paths(folder: Path) -> list[Path]:
    """All image files at any depth, sorted; hidden ones left out."""
    return sorted(_visible_images(folder))


def _visible_images(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in _SUFFIXES and path.is_file() and not hidden:
            yield path


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """What a folder of images holds.

    Attributes:
        train: files of the ``train/`` part, empty where the folder has none.
        test: files of the ``test/`` part, or all.
        labels: names of the class folders, sorted; empty for a flat folder.
    """

    train: tuple[Path, ...]
    train_targets: tuple[int, ...]
    test: tuple[Path, ...]
    test_targets: tuple[int, ...]
    labels: tuple[str, ...]


def scan(folder: Path) -> Folder:
    """Tell a flat folder, a folder per class, and ``train/`` and ``test/`` of such apart.

    Raises:
        ConfigError: not a folder, no images, or images beside class folders.
    """
    if not folder.is_dir():
        raise ConfigError("no such image folder", where=str(folder), hint="`images` is relative to the YAML")
    if (folder / "train").is_dir() and (folder / "test").is_dir():
        train, test = _classes(folder / "train"), _classes(folder / "test")
        if not train or not test:
            raise ConfigError("train/ and test/ need one folder per class", where=str(folder))
    else:
        train, test = {}, _classes(folder)
    loose = [path for path in image_paths(folder) if path.parent == folder]
    if test and loose:
        raise ConfigError(
            "images beside class folders",
            found=f"{loose[0].name} beside {', '.join(sorted(test)[:3])}",
            where=str(folder),
            hint="put each image in its class folder, or all into one flat folder",
        )
    if not test and not loose:
        raise ConfigError("no images", where=str(folder), found=f"looked for {', '.join(sorted(_SUFFIXES))}")
    labels = tuple(sorted({*train, *test}))
    index = {label: number for number, label in enumerate(labels)}
    return Folder(
        train=tuple(path for label in train for path in train[label]),
        train_targets=tuple(index[label] for label in train for _ in train[label]),
        test=tuple(path for label in test for path in test[label]) or tuple(loose),
        test_targets=tuple(index[label] for label in test for _ in test[label]),
        labels=labels,
    )


def _classes(folder: Path) -> dict[str, list[Path]]:
    found = {item.name: image_paths(item) for item in sorted(folder.iterdir()) if item.is_dir() and item.name[0] != "."}
    return {name: paths for name, paths in found.items() if paths}
