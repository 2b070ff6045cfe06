"""Type stubs of TensorRT made from the real bindings: what one flavour lacks is refused there, and only there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from ci import stubs

# What follows "wrong:" names the flavours that refuse the line.
PROBE = """
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tensorrt as trt

from pipeline.base.errors import StageError
from pipeline.base.errors import NoSuchError  # wrong: tensorrt-10 tensorrt-11 tensorrt-rtx


class Log(trt.ILogger):
    def __init__(self) -> None:
        trt.ILogger.__init__(self)

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        print(severity, msg, trt.__version__)


def build(path: str) -> bytes:
    logger = Log()
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(path):
        print(parser.get_error(0).desc())
        print(parser.get_error(0).description())  # wrong: tensorrt-10 tensorrt-11 tensorrt-rtx
    config = builder.create_builder_config()
    config.set_flag(trt.BuilderFlag.TF32)
    config.set_flag("TF32")  # wrong: tensorrt-10 tensorrt-11 tensorrt-rtx
    config.set_flags(trt.BuilderFlag.TF32)  # wrong: tensorrt-10 tensorrt-11 tensorrt-rtx
    config.set_flag(trt.BuilderFlag.FP16)  # wrong: tensorrt-11 tensorrt-rtx
    print(config.int8_calibrator)  # wrong: tensorrt-11 tensorrt-rtx
    config.set_compute_capability(trt.ComputeCapability.SM80, 0)  # wrong: tensorrt-10 tensorrt-11
    profile = builder.create_optimization_profile()
    profile.set_shape("x", trt.Dims([1, 2]), trt.Dims([4, 2]), trt.Dims([8, 2]))
    profile.set_shape("x", trt.Dims([1, 2]), trt.Dims([4, 2]))  # wrong: tensorrt-10 tensorrt-11 tensorrt-rtx
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise StageError("no engine")
    return bytes(memoryview(plan))
"""


@pytest.mark.parametrize("flavour", stubs.FLAVOURS)
def test_exactly_what_a_flavour_lacks_is_refused(flavour: str, tmp_path: Path) -> None:
    probe = tmp_path / "probe.py"
    probe.write_text(PROBE)
    done = subprocess.run(
        [stubs.ROOT / "ci" / "stubs", flavour, probe], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 1, done.stderr
    refused = {int(line) for line in re.findall(r"probe\.py:(\d+):\d+ - error", done.stdout)}
    lines = PROBE.splitlines()
    family = flavour.partition(".")[0]  # tensorrt-10.3 lacks what tensorrt-10 lacks
    wrong = {n for n, line in enumerate(lines, 1) if family in line.partition("# wrong:")[2].split()}
    assert refused == wrong, done.stdout


def test_code_without_faults_passes(tmp_path: Path) -> None:
    probe = tmp_path / "probe.py"
    probe.write_text("".join(line for line in PROBE.splitlines(keepends=True) if "# wrong:" not in line))
    subprocess.run([stubs.ROOT / "ci" / "stubs", "tensorrt-11", probe], timeout=300, check=True)


def test_a_missing_compiler_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit) as caught:
        stubs.dummy_libraries(tmp_path / "libraries", ["libnvinfer.so.11"])
    assert caught.value.code == 3
    assert "apt-get install -y gcc" in capsys.readouterr().err


def test_a_wheel_that_cannot_be_fetched_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stubs, "CACHE", tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(SystemExit) as caught:
        stubs.make("tensorrt-11")
    assert caught.value.code == 3
    assert "cannot fetch tensorrt-cu12-bindings==11.4.0.106 with pip" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_stub_that_is_no_python_is_not_kept() -> None:
    assert stubs.repaired("def f(x: nvinfer1::v_1_0::IErrorRecorder) -> nvonnxparser::IParserError: ...") == (
        "def f(x: IErrorRecorder) -> ParserError: ..."
    )
    with pytest.raises(SyntaxError):
        stubs.repaired("def f() -> std::string: ...")
