from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.base.errors import SmokeError
from pipeline.base.values import GoldenSamples, Sample, Signature, Tolerance
from pipeline.servers.tfserving.checks import Suite, TfServingExpectation


def suite(tmp_path: Path) -> Suite:
    sample = Sample(inputs={}, outputs={"y": np.zeros((1, 2), np.float32)})
    return Suite(
        TfServingExpectation(
            root=tmp_path,
            model="net",
            version=3,
            signature=Signature(inputs=(), outputs=(), batch="N"),
            golden=GoldenSamples(samples=(sample,), batched=True, sha256=""),
            max_batch_size=4,
            tolerance=Tolerance(max_abs=1e-4, max_rel=0, min_cosine=0.99, min_top1=0.9),
            metadata_path=tmp_path / "metadata.json",
        )
    )


def test_without_metadata_no_server_is_asked(tmp_path: Path) -> None:
    nothing: Any = None
    with pytest.raises(SmokeError, match="no metadata to make a request of"):
        suite(tmp_path)._golden(nothing, lambda *_: pytest.fail("it was asked"))
