import hashlib
import json
from pathlib import Path

import pytest

from pipeline.formats.tensorrt.plan_file import problem, unlike_sidecar


def engine(size: int = 100, told: int | None = None) -> bytes:
    """The outside of a TensorRT-RTX engine: magic, and its length at offset 16."""
    return b"vtrt" + bytes(12) + (size if told is None else told).to_bytes(8, "little") + bytes(size - 24)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (engine(), ""),
        (engine(1000)[:999], "its header says 1000 bytes; the file has 999"),
        (engine() + b"\0", "its header says 100 bytes; the file has 101"),
        (engine()[:63], "the file does not begin as a TensorRT-RTX engine does"),
        (b"x" + engine()[1:], "the file does not begin as a TensorRT-RTX engine does"),
        (b"", "the file is empty"),
    ],
)
def test_a_file_that_is_not_whole_is_found(data: bytes, expected: str, tmp_path: Path) -> None:
    (tmp_path / "model.engine").write_bytes(data)
    assert problem(tmp_path / "model.engine", "tensorrt_rtx") == expected


def test_a_changed_byte_is_found_by_the_hash(tmp_path: Path) -> None:
    path, sha256 = tmp_path / "model.engine", hashlib.sha256(engine()).hexdigest()
    path.write_bytes(engine())
    assert problem(path, "tensorrt_rtx", sha256=sha256) == ""
    path.write_bytes(engine()[:-1] + b"\1")
    assert problem(path, "tensorrt_rtx", sha256=sha256).startswith("its SHA-256 is ")


def test_of_a_classic_plan_only_presence_and_hash_are_known(tmp_path: Path) -> None:
    path = tmp_path / "model.plan"
    path.write_bytes(b"whatever")
    assert problem(path, "tensorrt") == ""
    assert problem(path, "tensorrt", sha256="0" * 64).startswith("its SHA-256 is ")
    path.write_bytes(b"")
    assert problem(path, "tensorrt") == "the file is empty"


@pytest.mark.parametrize(
    ("sidecar", "expected"),
    [
        (None, ""),  # of other origin: nothing is known of it
        ({"plan_sha256": hashlib.sha256(b"whatever").hexdigest()}, ""),
        ({"plan_sha256": "0" * 64}, "its SHA-256 is "),
        ({}, "its sidecar model.plan.json cannot be read"),
        ([], "its sidecar model.plan.json cannot be read"),
    ],
)
def test_an_engine_is_held_against_its_sidecar(sidecar: object, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "model.plan"
    path.write_bytes(b"whatever")
    if sidecar is not None:
        (tmp_path / "model.plan.json").write_text(json.dumps(sidecar))
    found = unlike_sidecar(path, "tensorrt")
    assert found.startswith(expected)
    assert bool(found) is bool(expected)
