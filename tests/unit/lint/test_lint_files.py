"""Each rule on directories and model files: one bad case that it names, at the path at fault."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from pipeline.lint import lint
from pipeline.lint import onnx as lint_onnx
from pipeline.lint.tree import readable_by

from .lint_repository import (
    ONNX_CONFIG,
    PYTHON_CONFIG,
    check,
    only,
    onnx_bytes,
    python_model,
    replaced,
    rules,
    tiny,
    write,
)

GROUP = "instance_group { kind: KIND_CPU count: 1 }"


# Directories


@pytest.mark.parametrize("name", [".git", "lost+found", ".ipynb_checkpoints", "__pycache__"])
def test_strays_in_the_root(tmp_path: Path, name: str) -> None:
    assert only(check(tmp_path, {**tiny(), f"{name}/x": ""})) == ("stray-directory", name, "error")


def test_an_empty_directory_in_the_root(tmp_path: Path) -> None:
    found = check(tmp_path, {**tiny(), "old/": ""})
    assert only(found) == ("stray-directory", "old", "error")
    assert "an empty directory" in found[0].reason


def test_a_model_without_a_configuration(tmp_path: Path) -> None:
    files = tiny()
    del files["tiny/config.pbtxt"]
    assert only(check(tmp_path, files)) == ("config-missing", "tiny/config.pbtxt", "error")


def test_a_name_for_urls(tmp_path: Path) -> None:
    files = {name.replace("py/", "my model/"): text for name, text in python_model().items()}
    assert only(check(tmp_path, files)) == ("model-name-characters", "my model", "warning")


@pytest.mark.parametrize(
    ("name", "rule", "severity"),
    [
        ("2.tmp", "version-directory-name", "error"),
        ("3_bak", "version-directory-name", "error"),
        ("-4", "version-directory-name", "error"),
        ("+4", "version-directory-name", "error"),
        ("05", "version-directory-ignored", "warning"),
        (".tmp-4", "version-directory-ignored", "warning"),
        ("assets", "version-directory-ignored", "warning"),
        ("0", "version-zero", "warning"),
        ("9223372036854775808", "version-beyond-int64", "error"),
    ],
)
def test_version_directory_names(tmp_path: Path, name: str, rule: str, severity: str) -> None:
    files = {**python_model(), f"py/{name}/model.py": ""}
    assert only(check(tmp_path, files)) == (rule, f"py/{name}", severity)


def test_the_number_triton_would_read(tmp_path: Path) -> None:
    (found,) = check(tmp_path, {**python_model(), "py/2.tmp/model.py": ""})
    assert "version 2." in found.reason


def test_the_greatest_version(tmp_path: Path) -> None:
    assert check(tmp_path, {**python_model(), "py/9223372036854775807/model.py": ""}) == []


def test_directories_triton_knows_are_no_versions(tmp_path: Path) -> None:
    assert (
        check(tmp_path, {**python_model(), "py/warmup/x": "", "py/initial_state/x": "", "py/configs/a.pbtxt": ""}) == []
    )


def test_no_version_and_an_empty_one(tmp_path: Path) -> None:
    assert only(check(tmp_path / "a", {"py/config.pbtxt": PYTHON_CONFIG})) == ("version-missing", "py", "error")
    files = {**python_model(), "py/2/": ""}
    assert only(check(tmp_path / "b", files)) == ("version-empty", "py/2", "error")


def test_modes_the_servers_user_cannot_read(tmp_path: Path) -> None:
    root = write(tmp_path, tiny())
    (root / "tiny/1/model.onnx").chmod(0o600)
    (root / "tiny/warmup").chmod(0o700)
    owner = os.getuid()
    expected = {("file-mode", "tiny/1/model.onnx"), ("file-mode", "tiny/warmup")}
    assert rules(lint(root)) == (set() if owner == 1000 else expected)


@pytest.mark.parametrize(
    ("mode", "owner", "group", "readable"),
    [
        (0o100400, 1000, 0, True),
        (0o100040, 0, 1000, True),
        (0o100004, 0, 0, True),
        (0o100640, 0, 0, False),
        (0o100044, 1000, 0, False),
        (0o040755, 0, 0, True),
        (0o040744, 0, 0, False),
    ],
)
def test_who_may_read(mode: int, owner: int, group: int, readable: bool) -> None:
    found = os.stat_result((mode, 0, 0, 1, owner, group, 0, 0, 0, 0))
    assert readable_by(found, 1000) is readable


# The file a backend opens


def test_a_missing_model_file(tmp_path: Path) -> None:
    files = {**tiny(model=None), "tiny/1/net.onnx": onnx_bytes()}
    assert only(check(tmp_path / "a", files)) == ("model-file-missing", "tiny/1/model.onnx", "error")
    files["tiny/config.pbtxt"] = ONNX_CONFIG + 'default_model_filename: "net.onnx"'
    assert check(tmp_path / "b", files) == []


@pytest.mark.parametrize(
    ("backend", "wrong", "missing"),
    [
        ("pytorch", "model.onnx", "model.pt"), ("tensorrt", "x.plan", "model.plan"),
        ("tensorrt_rtx", "model.plan", "model.engine"), ("python", "main.py", "model.py"),
    ],
)  # fmt: skip
def test_default_file_names(tmp_path: Path, backend: str, wrong: str, missing: str) -> None:
    text = replaced(PYTHON_CONFIG, '"python"', f'"{backend}"')
    assert ("model-file-missing", f"m/1/{missing}") in rules(
        check(tmp_path, {"m/config.pbtxt": text, f"m/1/{wrong}": "x"})
    )


def test_a_directory_where_a_file_belongs(tmp_path: Path) -> None:
    files = {"py/config.pbtxt": PYTHON_CONFIG, "py/1/model.py/x": ""}
    assert only(check(tmp_path, files)) == ("model-file-kind", "py/1/model.py", "error")


def test_openvino_needs_both_files(tmp_path: Path) -> None:
    files = {"ov/config.pbtxt": replaced(PYTHON_CONFIG, '"python"', '"openvino"'), "ov/1/model.xml": "x"}
    assert only(check(tmp_path / "a", files)) == ("model-file-missing", "ov/1/model.bin", "error")
    assert check(tmp_path / "b", {**files, "ov/1/model.bin": "x"}) == []


def test_tensorflow(tmp_path: Path) -> None:
    text = replaced(PYTHON_CONFIG, 'backend: "python"', 'platform: "tensorflow_savedmodel"')
    files = {"tf/config.pbtxt": text, "tf/1/model.savedmodel/saved_model.pb": "x"}
    assert check(tmp_path / "a", files, target="25.02") == []
    assert only(check(tmp_path / "b", files, target="25.03")) == ("backend-removed", "tf/config.pbtxt", "error")
    files = {"tf/config.pbtxt": text, "tf/1/model.savedmodel": "x"}
    assert only(check(tmp_path / "c", files)) == ("model-file-kind", "tf/1/model.savedmodel", "error")
    files = {"tf/config.pbtxt": replaced(PYTHON_CONFIG, '"python"', '"tensorflow"'), "tf/1/x": ""}
    assert only(check(tmp_path / "d", files)) == ("tensorflow-platform-missing", "tf/config.pbtxt", "error")


@pytest.mark.parametrize("target", ["24.01", "24.10", "26.08"])
@pytest.mark.parametrize("backend", ["fil", "dali", "identity", "vllm", "tensorrtllm"])
def test_backends_that_nvidia_s_containers_have(tmp_path: Path, target: str, backend: str) -> None:
    text = replaced(PYTHON_CONFIG, '"python"', f'"{backend}"')
    assert check(tmp_path, python_model(text), target=target) == []


def test_a_backend_that_the_model_has_to_bring_along(tmp_path: Path) -> None:
    text = replaced(PYTHON_CONFIG, '"python"', '"mine"')
    (found,) = check(tmp_path / "none", python_model(text), target="26.08")
    assert (found.rule, found.path, found.severity) == ("backend-not-in-containers", "py/config.pbtxt", "error")
    assert found.reason.startswith("release 26.08's containers have no backend mine")
    assert "libtriton_mine.so" in found.fix
    for place in ("py/libtriton_mine.so", "py/1/libtriton_mine.so"):
        assert check(tmp_path / place, {**python_model(text), place: ""}) == []
    named = text + 'runtime: "libother.so"'
    missing = ("backend-not-in-containers", "py/config.pbtxt")
    assert missing in rules(check(tmp_path / "other", {**python_model(named), "py/libtriton_mine.so": ""}))
    assert missing not in rules(check(tmp_path / "named", {**python_model(named), "py/libother.so": ""}))
    second = {**python_model(text), "py/2/model.py": "", "py/1/libtriton_mine.so": ""}
    (found,) = check(tmp_path / "second", second)  # each version is searched by itself
    assert "version 2" in found.reason


def test_files_by_compute_capability(tmp_path: Path) -> None:
    text = """
        platform: "tensorrt_plan" backend: "tensorrt"
        input { name: "x" data_type: TYPE_FP32 dims: [ 4 ] }
        output { name: "y" data_type: TYPE_FP32 dims: [ 4 ] }
        instance_group { kind: KIND_GPU count: 1 }
        cc_model_filenames { key: "8.9" value: "ada.plan" }
    """
    good = {"trt/config.pbtxt": text, "trt/1/ada.plan": "x"}
    assert check(tmp_path / "good", good) == []
    found = check(tmp_path / "both", {**good, "trt/1/model.plan": "x"})
    assert only(found) == ("cc-model-filenames-ambiguous", "trt/1/model.plan", "warning")
    listed = text.replace("ada.plan", "model.plan")  # GPUs that are not listed get it all the same
    found = check(tmp_path / "listed", {"trt/config.pbtxt": listed, "trt/1/model.plan": "x"})
    assert only(found) == ("cc-model-filenames-ambiguous", "trt/1/model.plan", "warning")
    found = check(tmp_path / "none", {"trt/config.pbtxt": text, "trt/1/x": "x"})
    assert only(found) == ("cc-model-filename-missing", "trt/1/ada.plan", "error")


# Labels and warmup files


@pytest.mark.parametrize(
    ("labels", "rule", "path", "severity"),
    [
        ("a\nb\nc\n", "label-count", "tiny/labels.txt", "error"),
        ("a\nb\nc\nd\ne", "label-count", "tiny/labels.txt", "error"),
        ("a\n\nc\nd\n", "label-blank", "tiny/labels.txt:2:1", "warning"),
        ("a\r\nb\r\nc\r\nd\r\n", "label-line-ending", "tiny/labels.txt", "warning"),
        (None, "label-file-missing", "tiny/labels.txt", "error"),
    ],
)
def test_labels(tmp_path: Path, labels: str | None, rule: str, path: str, severity: str) -> None:
    assert only(check(tmp_path, tiny(labels=labels))) == (rule, path, severity)


def test_labels_without_a_last_line_ending_are_all_there(tmp_path: Path) -> None:
    assert check(tmp_path, tiny(labels="a\nb\nc\nd")) == []


def test_labels_outside_the_model(tmp_path: Path) -> None:
    text = replaced(ONNX_CONFIG, '"labels.txt"', '"../labels.txt"')
    assert only(check(tmp_path, {**tiny(text), "labels.txt": "a\nb\nc\nd"}))[:2] == (
        "label-file-missing",
        "tiny/config.pbtxt",
    )


@pytest.mark.parametrize(("size", "severity"), [(12, "error"), (20, "warning")])
def test_the_size_of_a_warmup_file(tmp_path: Path, size: int, severity: str) -> None:
    found = check(tmp_path, tiny(warmup=bytes(size)))
    assert only(found) == ("warmup-file-size", "tiny/warmup/x", severity)
    assert "needs 16 bytes" in found[0].reason


def test_a_missing_warmup_file(tmp_path: Path) -> None:
    assert only(check(tmp_path, tiny(warmup=None))) == ("warmup-file-missing", "tiny/warmup/x", "error")


# ONNX


@pytest.mark.parametrize(
    ("data", "rule", "severity"),
    [
        (onnx_bytes()[:-7], "onnx-corrupt", "error"),
        (b"", "onnx-corrupt", "error"),
        (onnx_bytes(opset=22), "onnx-opset", "error"),
        (onnx_bytes(ir_version=11), "onnx-ir-version", "error"),
        (onnx_bytes(("N", 5)), "onnx-shape", "error"),
        (onnx_bytes(("N", 4, 1)), "onnx-shape", "error"),
        (onnx_bytes((1, 4)), "onnx-batch-dimension", "error"),
        (onnx_bytes(("N", 4), out_shape=(1, 4)), "onnx-batch-dimension", "error"),
        (onnx_bytes(("N", 4), out_shape=("N", "M")), "onnx-output-shape", "warning"),
        (onnx_bytes(()), "onnx-shape", "error"),
        (onnx_bytes(dtype=TensorProto.DOUBLE), "onnx-data-type", "error"),
        (onnx_bytes(dtype=TensorProto.BFLOAT16), "onnx-data-type", "error"),
        (onnx_bytes(domain="my.ops"), "onnx-custom-operators", "warning"),
    ],
)  # fmt: skip
def test_bad_onnx_files(tmp_path: Path, data: bytes, rule: str, severity: str) -> None:
    found = [item for item in check(tmp_path, tiny(model=data)) if item.rule == rule]
    assert found
    assert {(item.path, item.severity) for item in found} == {("tiny/1/model.onnx", severity)}


def test_limits_follow_the_target(tmp_path: Path) -> None:
    data = onnx_bytes(opset=22)
    assert check(tmp_path / "a", tiny(model=data), target="25.03") == []
    (found,) = check(tmp_path / "b", tiny(model=data), target="24.10")
    assert "ONNX Runtime 1.19.2 of release 24.10 loads up to 21" in found.reason
    assert "opset 21" in found.fix


def test_the_input_may_vary_where_the_configuration_fixes_it(tmp_path: Path) -> None:
    assert check(tmp_path, tiny(model=onnx_bytes(("N", "M"), out_shape=("N", 4)))) == []


def test_a_fixed_batch_is_fine_without_batching(tmp_path: Path) -> None:
    text = (
        replaced(PYTHON_CONFIG, "max_batch_size: 8", "").replace("[ 4 ]", "[ 1, 4 ]").replace("python", "onnxruntime")
    )
    assert check(tmp_path, {"m/config.pbtxt": text, "m/1/model.onnx": onnx_bytes((1, 4))}) == []


def test_onnx_names(tmp_path: Path) -> None:
    text = (
        ONNX_CONFIG.replace('name: "x"', 'name: "image"')
        .replace('key: "x"', 'key: "image"')
        .replace('name: "y"', 'name: "z"')
    )
    found = check(tmp_path, tiny(text))
    assert [item.rule for item in found] == ["onnx-input-unconfigured", "onnx-tensor-unknown", "onnx-tensor-unknown"]
    assert "needs the input 'x'" in found[0].reason
    assert "the model has y" in found[2].reason


def test_an_input_with_an_initializer_need_not_be_configured(tmp_path: Path) -> None:
    model = onnx.ModelProto.FromString(onnx_bytes())
    model.graph.input.append(helper.make_tensor_value_info("scale", TensorProto.FLOAT, [1]))
    model.graph.initializer.append(helper.make_tensor("scale", TensorProto.FLOAT, [1], [1.0]))
    assert check(tmp_path, tiny(model=model.SerializeToString())) == []


def test_an_output_that_is_no_tensor(tmp_path: Path) -> None:
    model = onnx.ModelProto.FromString(onnx_bytes())
    model.graph.output[0].CopyFrom(helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None))
    assert ("onnx-not-a-tensor", "tiny/1/model.onnx") in rules(check(tmp_path, tiny(model=model.SerializeToString())))


def test_ragged_inputs(tmp_path: Path) -> None:
    text = replaced(
        ONNX_CONFIG,
        '"x" data_type: TYPE_FP32 dims: [ 4 ]',
        '"x" data_type: TYPE_FP32 dims: [ 4 ] allow_ragged_batch: true',
    )
    found = check(tmp_path / "bad", tiny(text))
    assert only(found) == ("onnx-ragged-shape", "tiny/1/model.onnx", "error")
    assert check(tmp_path / "good", tiny(text, model=onnx_bytes(("N",), out_shape=("N", 4)))) == []


def external(location: str, length: int = 16) -> bytes:
    """A model whose weights are in another file."""
    model = onnx.ModelProto.FromString(onnx_bytes())
    tensor = model.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[4])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("data", "rule", "path"),
    [
        (external("gone.data"), "onnx-external-data-missing", "tiny/1/gone.data"),
        (external("w.data", 17), "onnx-external-data-size", "tiny/1/w.data"),
        (external("/etc/passwd"), "onnx-external-data-path", "tiny/1/model.onnx"),
        (external("../../secret"), "onnx-external-data-path", "tiny/1/model.onnx"),
    ],
)
def test_external_data(tmp_path: Path, data: bytes, rule: str, path: str) -> None:
    assert only(check(tmp_path, {**tiny(model=data), "tiny/1/w.data": bytes(16)})) == (rule, path, "error")


def test_external_data_of_a_subgraph(tmp_path: Path) -> None:
    model = onnx.ModelProto.FromString(external("gone.data"))
    inner = helper.make_graph([], "inner", [], [], list(model.graph.initializer))
    del model.graph.initializer[:]
    model.graph.node.append(helper.make_node("If", [], [], then_branch=inner))
    found = check(tmp_path, tiny(model=model.SerializeToString()))
    assert only(found) == ("onnx-external-data-missing", "tiny/1/gone.data", "error")


def test_a_model_given_as_a_directory(tmp_path: Path) -> None:
    good = {
        **tiny(model=None),
        "tiny/1/model.onnx/model.onnx": external("w.data"),
        "tiny/1/model.onnx/w.data": bytes(16),
    }
    assert check(tmp_path / "good", good) == []
    bad = {**tiny(model=None), "tiny/1/model.onnx/net.onnx": onnx_bytes()}
    assert only(check(tmp_path / "bad", bad)) == ("model-file-missing", "tiny/1/model.onnx", "error")


def test_files_too_large_to_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lint_onnx, "_INSPECTED_BYTES", 10)
    assert only(check(tmp_path / "a", tiny())) == ("onnx-not-inspected", "tiny/1/model.onnx", "warning")
    root = write(tmp_path / "b", tiny())
    with (root / "tiny/1/model.onnx").open("r+b") as stream:
        stream.truncate(2 << 30)  # a hole; no disk is used
    assert only(lint(root)) == ("onnx-over-2-gib", "tiny/1/model.onnx", "error")
