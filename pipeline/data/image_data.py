"""Images as a model's input: embedded and downloaded sets, and folders of files."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipeline.base.errors import ConfigError, MissingError, StageError
from pipeline.base.values import Array, Signature
from pipeline.data import images, torchvision_compat
from pipeline.images import preprocessing
from pipeline.images.preprocessing import Preprocessing
from pipeline.schema.model import Data

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
    """How images become samples of the model's one input.

    Attributes:
        leading: whether the input has a batch dimension, so that a sample starts with a dimension of 1.
        how: from an image to the tensor.
    """

    name: str
    leading: bool
    how: Preprocessing

    @classmethod
    def of(cls, data: Data, signature: Signature) -> ImageInput:
        """By the YAML's `preprocess` where it has one, else by what the data set says.

        Raises:
            ConfigError: the input is no image, or another one than the data makes.
        """
        how = signature.image or images.of_data(data, signature)
        (spec,) = signature.inputs
        return cls(name=spec.name, leading=signature.batch is not None or len(spec.shape) == 4, how=how)

    def sample(self, tensor: Array) -> dict[str, Array]:
        """One image's tensor, as a sample."""
        return {self.name: tensor[np.newaxis] if self.leading else tensor}


def digits() -> tuple[Array, Array]:
    """Scikit-learn's digits: uint8 pixels ``[1797, 8, 8, 1]`` and int64 classes."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)  # its own values are 0..16
    return pixels[..., None], bunch.target.astype(np.int64)


def downloaded(name: str, root: Path) -> tuple[Array, Array, Array, Array, tuple[str, ...]]:
    """MNIST or CIFAR-10 through torchvision, fetched into ``root`` unless they are there.

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


def encoded(pixels: Array, formats: Sequence[str]) -> bytes:
    """uint8 ``[H, W, 1 or 3]`` pixels as a file of one of the formats, without loss unless all there is is JPEG.

    Raises:
        OSError: the format holds no image of this size.
    """
    if not formats or "png" in formats:
        return preprocessing.png(pixels)
    from PIL import Image

    image, stream = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels), io.BytesIO()
    try:
        if "webp" in formats:
            image.save(stream, "WEBP", lossless=True)
        else:
            image.save(stream, "JPEG", quality=95, subsampling="4:4:4")
    except ValueError as error:
        raise OSError(str(error)) from error
    return stream.getvalue()


def _all_lossy(formats: Sequence[str]) -> bool:
    """Whether an encoded image is another image, so that a sample must be made of its file."""
    return set(formats) == {"jpeg"}


class ImageArrays:
    """Images held as pixels, made into samples when asked for."""

    def __init__(self, pixels: Array, target: ImageInput) -> None:
        """Keep uint8 ``[n, H, W, 1 or 3]`` pixels."""
        self._pixels, self._target = pixels, target

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, index: int) -> dict[str, Array]:
        how = self._target.how
        if _all_lossy(how.formats):
            return self._target.sample(preprocessing.tensor(self.file(index), how))
        return self._target.sample(preprocessing.of_pixels(self._pixels[index], how))

    def file(self, index: int) -> bytes:
        """The same image as a file of a format that is served."""
        return encoded(self._pixels[index], self._target.how.formats)

    def take(self, rows: Array) -> ImageArrays:
        """The images of the given numbers, in that order."""
        return ImageArrays(self._pixels[rows], self._target)


class ImageFiles:
    """Image files read one by one when asked for, so that choosing a few of many reads only those."""

    def __init__(self, paths: Sequence[Path], target: ImageInput) -> None:
        self.paths, self._target = paths, target
        # data is the user's own: whatever Pillow reads, while what is served to strangers is limited to `formats`
        self._how = replace(target.how, formats=())

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Array]:
        with _readable(self.paths[index]):
            data = self.file(index) if _all_lossy(self._target.how.formats) else self.paths[index].read_bytes()
            return self._target.sample(preprocessing.tensor(data, self._how))

    def file(self, index: int) -> bytes:
        """The image as it is on disk or, where its format is not among those to be served, in one of those.

        Raises:
            StageError: the file is no readable image.
        """
        with _readable(self.paths[index]):
            data, served = self.paths[index].read_bytes(), self._target.how
            try:
                preprocessing.decoded(data, served)
            except preprocessing.RefusedImage:
                image = preprocessing.decoded(data, self._how)
                return encoded(np.atleast_3d(np.asarray(image)), served.formats)
            return data

    def take(self, rows: Array) -> ImageFiles:
        """The files of the given numbers, in that order."""
        return ImageFiles([self.paths[row] for row in rows], self._target)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, preprocessing.RefusedImage) as error:
        raise StageError(
            "datasets: not a readable image", found=str(error), where=str(path), hint="replace or remove the file"
        ) from error


def image_paths(folder: Path) -> list[Path]:
    """All image files at any depth, sorted; hidden ones left out."""
    images = (path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES and path.is_file())
    return sorted(path for path in images if not any(part[0] == "." for part in path.relative_to(folder).parts))


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
        found = f"{loose[0].name} beside {', '.join(sorted(test)[:3])}"
        hint = "put each image in its class folder, or all into one flat folder"
        raise ConfigError("images beside class folders", found=found, where=str(folder), hint=hint)
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
