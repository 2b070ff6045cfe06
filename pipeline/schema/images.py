"""Image in, label out: how bytes become the model's input, and its scores an answer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.images.preprocessing import MOST_PIXELS
from pipeline.schema.base import DimSize, Fraction, Name, PositiveInt, Section

Size = Annotated[tuple[DimSize, DimSize], Field(description="[height, width] in pixels")]


class Preprocess(Section):
    """From the bytes of an image file to the model's one input, the same for training, judging and serving."""

    formats: Annotated[tuple[Literal["jpeg", "png", "webp"], ...], Field(min_length=1)] = Field(
        ("jpeg", "png", "webp"), description="what is accepted; any other file is refused"
    )
    color: Literal["gray", "rgb"] | None = Field(None, description="default: what the input's channels say")
    resize: Size | DimSize | None = Field(
        None,
        description="[height, width], or one number for the shorter side; default: the input's height and width, "
        "or none where they are dynamic",
    )
    crop: Size | None = Field(None, description="from the centre, after resizing")
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = Field(
        "bilinear", description="of the resize; all but nearest with antialias, as Pillow and torchvision do"
    )
    scale: Annotated[float, Field(gt=0)] = Field(255.0, description="pixels (0..255) are divided by this")
    mean: tuple[float, ...] = Field((0.0,), description="per channel, of scaled pixels")
    std: tuple[Annotated[float, Field(gt=0)], ...] = Field((1.0,), description="per channel, of scaled pixels")
    max_pixels: Annotated[PositiveInt, Field(le=MOST_PIXELS)] = Field(
        50_000_000,
        description="larger images are refused before they are decoded, narrow ones before `resize` makes them larger",
    )


class Postprocess(Section):
    """From the scores of one output to `[{label, probability}]`, best first."""

    output: Name | None = Field(None, description="default: the output with labels, or the only one")
    activation: Literal["softmax", "exp", "none"] = Field(
        "softmax", description="what makes scores probabilities: exp for log-probabilities, none where they are"
    )
    top_k: PositiveInt = Field(5, description="most labels per image")
    threshold: Fraction = Field(0.0, description="labels less probable than this are left out")


class Ensemble(Section):
    """The Triton model, named as the YAML, that takes image files and answers with labels."""

    from_: Name | None = Field(
        None, alias="from", description="the variant that answers; default: the first that runs on a CPU"
    )
