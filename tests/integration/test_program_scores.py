"""A C++ program's postprocessing against Python's, compiled without its model."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from pipeline.images import postprocessing
from pipeline.images.postprocessing import Postprocessing, UnusableScores
from pipeline.machine import environment
from pipeline.servers.libtorch import program
from tests.integration.test_program_images import SIGNATURE

ROWS = ("1 2", "2 1", "nan 0", "0 nan", "inf 0", "0 inf", "-inf 0", "0 -inf", "-inf -inf", "1000 0", "0 0")


def labels_or_reason(row: str, answers: Postprocessing) -> dict[str, float] | str:
    try:
        found = postprocessing.ranked(np.array(row.split(), np.float64), answers)
    except UnusableScores as error:
        return str(error)
    return {one["label"]: one["probability"] for one in found}


@pytest.mark.parametrize("activation", ["softmax", "exp", "none"])
def test_labels_and_refusals_are_pythons(tmp_path: Path, activation: str) -> None:
    answers = Postprocessing(activation=activation, labels=("a", "b"), top_k=2, threshold=0.1)
    for name, content in program.sources("x", SIGNATURE, "y", answers, torch_version="2.13").items():
        (tmp_path / name).write_bytes(content)
    flags = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-I."]
    main = Path(__file__).parent / "cpp" / "rank.cpp"
    argv = [str(environment.probe(tmp_path).cpp.compiler), *flags, "postprocessing.cpp", str(main), "-o", "rank"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    done = subprocess.run([tmp_path / "rank"], input="\n".join(ROWS), capture_output=True, text=True, check=True)
    for row, found in zip(ROWS, done.stdout.splitlines(), strict=True):
        wanted = labels_or_reason(row, answers)
        if isinstance(wanted, str):
            assert found == wanted, row
            continue
        words = found.split()
        assert dict(zip(words[::2], map(float, words[1::2]), strict=True)) == pytest.approx(wanted, rel=1e-5), row
        assert words[::2] == list(wanted), row
