"""What the documentation promises to be tested is tested."""

from __future__ import annotations

import re
import shlex
import tomllib
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


def test_the_curl_line_is_the_same_wherever_it_is_told() -> None:
    lines = [
        shlex.split(line.partition("|")[0])
        for name in ("README.md", "docs/ensemble.md")
        for line in (ROOT / name).read_text().replace("\\\n", " ").splitlines()
        if line.startswith("curl ")
    ]
    assert len(lines) == 2
    assert lines[0] == lines[1]


def test_no_page_names_a_picture_that_nobody_has() -> None:
    """Those that the build makes, those of this clone, and FILE for what a reader has."""
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for line in page.read_text().splitlines():
            if line.startswith((".venv/bin/", "curl ", "python ")):
                for named in re.findall(r"[\w./]*\.(?:png|jpg|jpeg|webp)\b", line):
                    built = re.fullmatch(r"(?:\.\./)*model_repository/\w+/1/example\.png", named)
                    assert built or (ROOT / named).is_file(), f"{page.name}: {named}"


def test_the_architecture_names_every_room_in_the_order_of_imports() -> None:
    text = (ROOT / "README.md").read_text()
    section = text[text.index("## Architecture") : text.index("## Developing")]
    named = re.findall(r"^  (\w+)/ +\S", section, re.MULTILINE)
    rooms = {path.parent.name for path in (ROOT / "pipeline").glob("*/__init__.py")}
    assert set(named) == rooms
    layers = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]["layers"]
    order = [set(re.split(r" [|:] ", layer)) for layer in layers if layer != "__main__"]
    heights = [next(height for height, layer in enumerate(order) if name in layer) for name in named]
    assert heights == sorted(heights)


def test_the_architecture_names_every_format_and_every_server() -> None:
    text = (ROOT / "README.md").read_text()
    for table in ("formats", "servers"):
        line = next(line for line in text.splitlines() if line.startswith(f"  {table}/ "))
        folders = {path.parent.name for path in (ROOT / "pipeline" / table).glob("*/__init__.py")}
        assert folders <= set(re.findall(r"(\w+)/", line)), table
