"""Python files that are emitted run without this project, on Python 3.10: that of Triton 24.10's container."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import pipeline

PACKAGE = Path(pipeline.__file__).parent
EMITTED = [
    PACKAGE / "images" / "preprocessing.py",
    PACKAGE / "images" / "postprocessing.py",
    PACKAGE / "servers" / "torchserve" / "torchserve_handler.py",
    *sorted((PACKAGE / "servers" / "triton" / "python_models").rglob("*.py")),
]
BESIDE = {"preprocessing", "postprocessing"}  # the copies
BROUGHT = {"numpy", "PIL", "torch", "triton_python_backend_utils"}


def test_all_of_them_are_looked_at() -> None:
    assert len(EMITTED) == 5


@pytest.mark.parametrize("path", EMITTED, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_it_is_python_3_10_and_needs_nothing_of_this_package(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 10))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(str(node.module).partition(".")[0])
    assert imported - set(sys.stdlib_module_names) <= BESIDE | BROUGHT
    assert not imported & {"tomllib"}  # in the standard library since 3.11


def test_later_python_is_seen() -> None:
    with pytest.raises(SyntaxError):
        ast.parse("try:\n    pass\nexcept* ValueError:\n    pass\n", feature_version=(3, 10))
