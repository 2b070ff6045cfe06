"""Random changes to training images."""

from __future__ import annotations

from collections.abc import Callable

import torch

from pipeline.base.errors import ConfigError
from pipeline.base.values import Signature
from pipeline.data.images import image_layout
from pipeline.schema.model import Augmentation

Inputs = dict[str, torch.Tensor]


def augmenter(settings: Augmentation | None, signature: Signature) -> Callable[[Inputs], Inputs]:
    """What changes the image inputs of a training batch at random, rows being samples; nothing where none is asked for.

    Raises:
        ConfigError: augmentation is asked for and there is no float image input.
    """
    if settings is None:
        return lambda inputs: inputs
    floats = [spec for spec in signature.inputs if spec.dtype.startswith("float")]
    found = {spec.name: image_layout(spec, signature.batch is not None) for spec in floats}
    layouts = {name: layout for name, layout in found.items() if layout is not None}
    if not layouts:
        raise ConfigError("source: `augmentation` is for images", hint="leave it out, or augment in your data callable")

    def augment(inputs: Inputs) -> Inputs:
        return inputs | {name: _image(settings, inputs[name], layout) for name, layout in layouts.items()}

    return augment


def _image(settings: Augmentation, images: torch.Tensor, layout: str) -> torch.Tensor:
    shape = images.shape
    images = images.reshape(-1, *shape[-3:])
    images = images if layout == "NCHW" else images.permute(0, 3, 1, 2)
    if settings.horizontal_flip:
        flip = torch.rand(len(images), 1, 1, 1) < 0.5
        images = torch.where(flip, images.flip(-1), images)
    if shift := settings.shift_pixels:
        images = _shifted(images, shift)
    if settings.noise_std:
        images = images + torch.randn_like(images) * settings.noise_std
    return (images if layout == "NCHW" else images.permute(0, 2, 3, 1)).reshape(shape)


def _shifted(images: torch.Tensor, most: int) -> torch.Tensor:
    """Each image moved by up to ``most`` pixels along both axes; its edge is repeated into the gap."""
    height, width = images.shape[-2:]
    padded = torch.nn.functional.pad(images, (most, most, most, most), mode="replicate")
    offsets = torch.randint(0, 2 * most + 1, (len(images), 2)).tolist()
    moved = [image[:, y : y + height, x : x + width] for image, (y, x) in zip(padded, offsets, strict=True)]
    return torch.stack(moved)
