"""Random changes to training images."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from pipeline.base.errors import ConfigError
from pipeline.base.values import Signature
from pipeline.data.images import image_layout
from pipeline.schema.model import Augmentation

Inputs = dict[str, torch.Tensor]


class Augment:
    """Random changes to the image inputs of a training batch; nothing where none are asked for."""

    def __init__(self, settings: Augmentation, layouts: Mapping[str, str], batched: bool) -> None:
        self._settings, self._layouts, self._batched = settings, layouts, batched

    @classmethod
    def of(cls, settings: Augmentation | None, signature: Signature) -> Augment:
        """Find the image inputs; a ConfigError where augmentation is asked for and there are none of floats."""
        found = {spec.name: image_layout(spec, signature.batch is not None) for spec in signature.inputs}
        floats = {spec.name for spec in signature.inputs if spec.dtype.startswith("float")}
        layouts = {name: layout for name, layout in found.items() if layout is not None and name in floats}
        if settings is not None and not layouts:
            raise ConfigError(
                "source: `augmentation` is for images", hint="leave it out, or augment in your data callable"
            )
        return cls(settings or Augmentation(), layouts if settings else {}, signature.batch is not None)

    def __call__(self, inputs: Inputs) -> Inputs:
        """Augmented copies; rows are samples."""
        return {
            name: self._image(tensor, self._layouts[name]) if name in self._layouts else tensor
            for name, tensor in inputs.items()
        }

    def _image(self, images: torch.Tensor, layout: str) -> torch.Tensor:
        shape = images.shape
        images = images.reshape(-1, *shape[-3:])
        images = images if layout == "NCHW" else images.permute(0, 3, 1, 2)
        if self._settings.horizontal_flip:
            flip = torch.rand(len(images), 1, 1, 1) < 0.5
            images = torch.where(flip, images.flip(-1), images)
        if shift := self._settings.shift_pixels:
            images = _shifted(images, shift)
        if self._settings.noise_std:
            images = images + torch.randn_like(images) * self._settings.noise_std
        return (images if layout == "NCHW" else images.permute(0, 2, 3, 1)).reshape(shape)


def _shifted(images: torch.Tensor, most: int) -> torch.Tensor:
    """Each image moved by up to ``most`` pixels along both axes; its edge is repeated into the gap."""
    height, width = images.shape[-2:]
    padded = torch.nn.functional.pad(images, (most, most, most, most), mode="replicate")
    offsets = torch.randint(0, 2 * most + 1, (len(images), 2)).tolist()
    moved = [image[:, y : y + height, x : x + width] for image, (y, x) in zip(padded, offsets, strict=True)]
    return torch.stack(moved)
