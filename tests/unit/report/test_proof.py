"""The one word for how far a row was proven."""

from __future__ import annotations

import pytest

from pipeline.base.values import ProofLevel
from pipeline.report import html, proof
from tests.unit.report.rows import record, result


@pytest.mark.parametrize(
    ("level", "server", "asked", "expected"),
    [
        ("served", "triton", True, "triton"),
        ("served", "torchserve", True, "torchserve"),
        ("served", "none", True, "served"),
        ("inspected", "triton", False, "inspected"),
        ("none", "none", False, "none"),
        (None, "triton", True, "triton"),
        (None, "triton", False, "not run"),
    ],
)
def test_the_word(level: ProofLevel | None, server: str, asked: bool, expected: str) -> None:
    assert proof.word(server, level, asked=asked) == expected


def test_the_page_tells_it() -> None:
    assert ">inspected<" in html.page(record(result("trt", smoke=None, proof="inspected")))
