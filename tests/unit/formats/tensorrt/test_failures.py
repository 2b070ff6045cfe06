import errno
from pathlib import Path
from typing import Any

import pytest

from pipeline.base.errors import MissingError, PipelineError, StageError
from pipeline.formats.tensorrt.failures import FailureError, UnavailableError, absent, died, error
from pipeline.machine.tensorrt_flavours import flavour

LOG = Path("engine.log")


def raised(kind: Any, *lines: str, name: Any = "tensorrt_rtx", **details: Any) -> PipelineError:
    return error(FailureError(kind, *lines, **details).values, flavour(name), LOG)


def test_a_library_that_is_missing_names_the_line_to_type() -> None:
    found = raised("missing", "import tensorrt_rtx: no such module")
    assert isinstance(found, MissingError)
    assert found.exit_code == 3
    assert found.hint == "pip install tensorrt-rtx-cu12-libs==1.7.1.116 tensorrt-rtx-cu12-bindings==1.7.1.116"
    classic = absent(flavour("tensorrt"), "no module tensorrt")
    assert classic.hint == "pip install tensorrt, on a machine with an NVIDIA GPU and its driver"


def test_without_the_gpu_asked_for_nothing_is_to_be_installed() -> None:
    found = raised("gpu", "the GPU here is sm_89 (L4), not sm_80", name="tensorrt")
    assert (type(found), found.exit_code) == (UnavailableError, 3)
    assert "pip install" not in found.hint
    assert "engine.gpus" in found.hint


@pytest.mark.parametrize(
    ("kind", "text", "remedy"),
    [
        ("build", "no tactics to implement the operation within workspace limit", "raise `workspace_bytes`"),
        ("build", "Could not find any implementation for node x due to insufficient workspace", "`workspace_bytes`"),
        ("build", "Error Code 10", "the log's end tells more"),
        ("profile", "optimization profile 0 was refused", "correct `engine.profiles`"),
    ],
)
def test_a_build_that_failed_says_what_to_change(kind: str, text: str, remedy: str) -> None:
    found = raised(kind, text)
    assert found.what == "engine: the builder made no engine"
    assert remedy in found.hint


def test_every_refused_node_is_told_with_what_to_do() -> None:
    nodes = [
        {"name": "u", "op": "Unique", "code": "UNSUPPORTED_NODE", "reason": "no"},
        {"name": "", "op": "DequantizeLinear", "code": "UNSUPPORTED_NODE_DATATYPE", "reason": "Int32"},
        {"name": "v", "op": "Unique", "code": "UNSUPPORTED_NODE", "reason": "no"},
    ]
    found = raised("parse", "ignored", nodes=nodes)
    assert isinstance(found, StageError)
    assert found.what == "engine: the parser refused 3 nodes"
    assert found.found.splitlines() == [
        "u (Unique): no",
        "a node without a name (DequantizeLinear): Int32",
        "v (Unique): no",
    ]
    first, second = found.hint.splitlines()
    assert first.startswith("Unique: write the model without this operator")
    assert "quantised bias" in second


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("Error Code 2: OutOfMemory (Requested size was 8 bytes)", "engine: out of memory"),
        ("std::bad_alloc", "engine: out of memory"),
        ("'fc' for Turing (SM75): FP32 GEMM is not supported", "engine: unsupported by this flavour (tensorrt_rtx)"),
        ("Error Code 10: Could not find any implementation", "engine: the builder made no engine"),
    ],
)
def test_the_builders_last_words_are_kept_and_sorted(text: str, what: str) -> None:
    found = raised("build", text)
    assert (type(found), found.what, found.found, found.log) == (StageError, what, text, "engine.log")


def test_a_feature_the_library_lacks() -> None:
    assert raised("unsupported", "sm_90").what == "engine: sm_90: unsupported by this flavour (tensorrt_rtx)"


def test_a_full_disk_in_the_child_is_a_full_disk_in_the_parent() -> None:
    with pytest.raises(OSError, match="No space") as caught:
        raised("disk", "No space left on device", errno=errno.ENOSPC)
    assert caught.value.errno == errno.ENOSPC


def test_a_killed_child_and_a_dead_one_are_told_apart() -> None:
    assert died(-9, "", LOG).what == "engine: the build was killed"
    assert died(-11, "last words", LOG).found == "signal 11: last words"
    assert died(1, "last words", LOG).found == "exit status 1: last words"
