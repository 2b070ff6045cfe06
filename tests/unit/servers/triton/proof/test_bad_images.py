"""What must be refused is refused, each for its own reason, and nothing large is made or decoded for it."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from pipeline.images.preprocessing import Preprocessing, RefusedImage, png, tensor
from pipeline.servers.triton.proof.bad_images import bad_images

GOOD = png(np.random.default_rng(0).integers(0, 255, (16, 16, 1), dtype=np.uint8))


@pytest.mark.parametrize(("max_pixels", "resize"), [(256, (8, 8)), (50_000_000, (8, 8)), (256, 8), (50_000_000, 224)])
def test_each_is_refused_for_its_own_reason(max_pixels: int, resize: tuple[int, int] | int) -> None:
    how = Preprocessing(
        formats=("jpeg", "png", "webp"), color="gray", resize=resize, crop=None, interpolation="bilinear", scale=255.0,
        mean=(0.0,), std=(1.0,), max_pixels=max_pixels, dtype="float32", layout="NCHW",
    )  # fmt: skip
    shorter = resize if isinstance(resize, int) else resize[0]
    assert tensor(GOOD, how).shape == (1, shorter, shorter)
    reasons = {
        "no bytes": "no bytes",
        "text": "no image in JPEG, PNG, WEBP",
        "a truncated image": "damaged or truncated",
        "an image of another format": "no image in JPEG, PNG, WEBP",
        "an image of too many pixels": "pixels; at most",
    }
    if isinstance(resize, int):
        reasons["a strip that becomes too many pixels"] = "pixels would be resized to"
    bad = bad_images(GOOD, how)
    assert set(bad) == set(reasons)
    for name, data in bad.items():
        assert len(data) < 1000, name
        tracemalloc.start()
        with pytest.raises(RefusedImage, match=reasons[name]):
            tensor(data, how)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 5e6, name
