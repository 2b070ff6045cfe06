"""What the documentation promises to be tested is tested."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_test_that_serving_md_names_exists() -> None:
    text = (ROOT / "docs" / "serving.md").read_text()
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", text)
    assert len(named) == text.count(".py::") >= 15
    for file, test in named:
        path = ROOT / (file if "/" in file else f"tests/integration/{file}")
        assert re.search(rf"^def {test}\(", path.read_text(), re.MULTILINE), f"{file}::{test}"


def test_every_row_of_serving_md_names_a_test() -> None:
    text = (ROOT / "docs" / "serving.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| you need")]
    assert [row.partition(" | ")[0] for row in rows if "::test_" not in row] == []
