"""Each rule on TensorRT engines: one bad case that it names, and good repositories that none of them names."""

from __future__ import annotations

import json
import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.lint import lint
from pipeline.lint.engine_sidecar import compute_capability
from pipeline.machine import target as releases

from .lint_engines import CC_CONFIG, CONFIG, RELEASE, RTX_CONFIG, engine_bytes, findings, fleet, plain, rtx, sidecar
from .lint_repository import check, only, replaced, rules, write


@pytest.mark.parametrize("files", [plain(), fleet(), rtx()], ids=["one", "one per capability", "rtx"])
def test_good_repositories_have_no_findings(tmp_path: Path, files: dict[str, str | bytes]) -> None:
    assert findings(tmp_path, files) == []


@pytest.mark.parametrize("data", [b"x", b"ftrt" + bytes(100), engine_bytes()])
def test_an_engine_of_other_origin_is_left_alone(tmp_path: Path, data: bytes) -> None:
    assert check(tmp_path, {"trt/config.pbtxt": CONFIG, "trt/1/model.plan": data}) == []


def test_a_backend_that_no_container_has(tmp_path: Path) -> None:
    found = check(tmp_path / "good", rtx())
    assert only(found) == ("backend-not-in-containers", "rtx/config.pbtxt", "error")
    assert "release 24.10's containers have no backend tensorrt_rtx" in found[0].reason
    assert "repository of their own" in found[0].fix
    found = check(tmp_path / "bad", rtx(RTX_CONFIG + 'platform: "tensorrt_plan"'))
    assert {item.rule for item in found} == {"backend-not-in-containers", "platform-backend-pair"}


def test_an_rtx_engine_needs_a_gpu(tmp_path: Path) -> None:
    found = findings(tmp_path, rtx(replaced(RTX_CONFIG, "KIND_GPU", "KIND_CPU")))
    assert only(found) == ("tensorrt-needs-gpu", "rtx/config.pbtxt", "error")


# The file


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty."),
        (engine_bytes()[:-1], "its header says 100 bytes; the file has 99."),
        (engine_bytes() + b"\n", "its header says 100 bytes; the file has 101."),
        (engine_bytes()[:50], "the file does not begin as a TensorRT-RTX engine does."),
        (bytes(100), "the file does not begin as a TensorRT-RTX engine does."),
    ],
)
def test_an_rtx_engine_that_is_not_whole(tmp_path: Path, data: bytes, reason: str) -> None:
    (found,) = findings(tmp_path / "a", rtx(data=data))
    assert (found.rule, found.path, found.severity) == ("engine-truncated", "rtx/1/model.engine", "error")
    assert found.reason == reason
    files = {"rtx/config.pbtxt": RTX_CONFIG, "rtx/1/model.engine": data}  # the backend tells the flavour as well
    assert [item.reason for item in findings(tmp_path / "b", files)] == [reason]


def test_an_empty_plan(tmp_path: Path) -> None:
    found = check(tmp_path, {"trt/config.pbtxt": CONFIG, "trt/1/model.plan": b""})
    assert only(found) == ("engine-truncated", "trt/1/model.plan", "error")


def test_the_magic_alone_proves_no_flavour(tmp_path: Path) -> None:
    cut = engine_bytes()[:-1]
    files = plain(facts=sidecar(cut))
    assert findings(tmp_path / "classic", {**files, "trt/1/model.plan": cut}) == []
    del files["trt/1/engine.json"]
    found = findings(tmp_path / "unknown", {**files, "trt/1/model.plan": cut})
    assert only(found) == ("engine-truncated", "trt/1/model.plan", "warning")


def test_a_plan_that_is_not_the_one_built(tmp_path: Path) -> None:
    found = findings(tmp_path, {**plain(), "trt/1/model.plan": b"b plan"})
    assert only(found) == ("engine-sha256", "trt/1/model.plan", "error")


# What it was built by and for


def test_engines_under_the_other_flavours_backend(tmp_path: Path) -> None:
    for part in ("", 'platform: "tensorrt_plan"'):
        inferred = replaced(CONFIG, 'platform: "tensorrt_plan" backend: "tensorrt"', part or 'backend: "tensorrt"')
        found = findings(
            tmp_path / f"rtx{len(part)}", plain(inferred, sidecar(flavour="tensorrt_rtx", plan_sha256=None))
        )
        assert ("engine-flavour", "trt/1/model.plan", "error") in {(i.rule, i.path, i.severity) for i in found}
    found = findings(tmp_path / "classic", rtx(flavour="tensorrt", version="10.16.1"))
    assert only(found) == ("engine-flavour", "rtx/1/model.engine", "error")


def test_a_plan_of_another_tensorrt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = check(tmp_path / "known", plain())
    assert "built by TensorRT 10.16.1, and Triton 24.10's container has 10.5.0.18" in found.reason
    assert check(tmp_path / "same", plain(facts=sidecar(version="10.5.0"))) == []
    known = replace(releases.limits(RELEASE), tensorrt="10.14.1.48")
    monkeypatch.setattr(releases, "limits", lambda _: known)
    (found,) = findings(tmp_path / "bad", plain())
    assert (found.rule, found.path, found.severity) == ("engine-tensorrt-version", "trt/1/model.plan", "error")
    assert "built by TensorRT 10.16.1, and Triton 26.07's container has 10.14.1.48" in found.reason
    assert "nvcr.io/nvidia/tensorrt:26.07-py3" in found.fix
    assert findings(tmp_path / "good", plain(facts=sidecar(version="10.14.1")), release="24.10") == []
    assert findings(tmp_path / "rtx", rtx()) == []  # its own versions are no TensorRT's
    compatible = {"options": {"version_compatible": True}}
    assert findings(tmp_path / "later", plain(facts=sidecar(version="10.9.0", **compatible))) == []
    assert only(findings(tmp_path / "earlier", plain(facts=sidecar(**compatible))))[0] == "engine-tensorrt-version"


@pytest.mark.parametrize(
    ("claimed", "layers", "types", "agree"),
    [
        ("fp16", {"Half": 12, "Float": 2}, {"gemm": {"Float": 2}}, True),
        ("fp16", {"Float": 12, "Int64": 1}, {}, False),
        ("bf16", {"Half": 12}, {}, False),
        ("int8", {"Int8": 2, "Float": 12}, {}, True),
        ("int8", {"Float": 12}, {}, False),
        ("fp32", {"Float": 2, "Half": 1}, {"kgen": {"Half": 1}, "correlation": {"Float": 2}}, True),
        ("fp32", {"Float": 2, "Half": 1}, {"kgen": {"Float": 2}, "correlation": {"Half": 1}}, False),
        ("fp32", {"Half": 1}, {}, False),
        ("fp32", {"Int64": 1}, {}, True),
        ("fp16", {}, {}, True),
    ],
)
def test_a_precision_that_the_layers_contradict(
    tmp_path: Path, claimed: str, layers: dict[str, int], types: dict[str, Any], agree: bool
) -> None:
    found = findings(tmp_path, plain(facts=sidecar(precision=claimed, layers=layers, layer_types=types)))
    if agree:
        assert found == []
    else:
        assert only(found) == ("engine-precision", "trt/1/engine.json", "error")
        assert f"the sidecar says {claimed}, and the engine's layers are " in found[0].reason


@pytest.mark.parametrize("release", ["26.06", None, 26.07])
def test_a_release_whose_tensorrt_is_unknown(tmp_path: Path, release: object) -> None:
    (found,) = findings(tmp_path, plain(), release=release)
    assert (found.rule, found.path, found.severity) == ("engine-tensorrt-unknown", "trt/1/model.plan", "warning")
    assert "the TensorRT of Triton 26.07's container is not known here" in found.reason
    assert "nvcr.io/nvidia/tensorrt:26.07-py3" in found.fix


def test_a_repository_without_its_manifests(tmp_path: Path) -> None:
    found = check(tmp_path, plain(), target=RELEASE)
    assert only(found) == ("engine-tensorrt-unknown", "trt/1/model.plan", "warning")


def test_the_repository_may_be_named_by_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert findings(tmp_path, plain()) == []
    monkeypatch.chdir(tmp_path / "r")
    assert lint(Path(), target=RELEASE) == []


# Compute capabilities


@pytest.mark.parametrize(
    ("name", "found"),
    [("8.0", "8.0"), ("sm_80", "8.0"), ("sm_120", "12.0"), ("12.1", "12.1"), ("sm_8", None), ("sm80", None),
     ("80", None), ("8.10", None), ("ampere", None), ("sm_9x", None), ("", None)],
)  # fmt: skip
def test_names_of_compute_capabilities(name: str, found: str | None) -> None:
    assert compute_capability(name) == found


def test_an_unknown_compute_capability(tmp_path: Path) -> None:
    found = findings(tmp_path, plain(facts=sidecar(compute_capabilities=["8.0", "sm_9x"])))
    assert only(found) == ("engine-capability-name", "trt/1/engine.json", "warning")
    assert "'sm_9x'" in found[0].reason


def test_a_gpu_that_tensorrt_rtx_does_not_build_for(tmp_path: Path) -> None:
    found = findings(tmp_path, rtx(compute_capabilities=["sm_80", "9.0"]))
    assert only(found) == ("engine-capability-unknown", "rtx/1/model.engine.json", "error")
    assert "'9.0', and TensorRT-RTX builds for sm_75, sm_80," in found[0].reason


def test_a_plan_named_for_a_gpu_it_is_not_built_for(tmp_path: Path) -> None:
    found = findings(tmp_path, fleet(sm80=("8.9",)))
    assert only(found) == ("engine-capability-mismatch", "trt/1/model_sm80.plan", "error")
    assert "compute capability 8.0; it is built for 8.9." in found[0].reason


def test_a_gpu_that_falls_back_in_silence(tmp_path: Path) -> None:
    found = findings(tmp_path, fleet(sm89=("8.9", "sm_120")))
    assert only(found) == ("engine-capability-unlisted", "trt/1/model_sm89.plan", "warning")
    assert 'key: "12.0" value: "model_sm89.plan"' in found[0].fix


def test_a_default_beside_a_map(tmp_path: Path) -> None:
    found = findings(tmp_path, {**fleet(), "trt/1/model.plan": "x"})
    assert only(found) == ("cc-model-filenames-ambiguous", "trt/1/model.plan", "warning")


def test_a_map_that_is_wrong_in_one_version(tmp_path: Path) -> None:
    files = fleet()
    second = {name.replace("trt/1/", "trt/2/"): data for name, data in files.items() if "sm89" not in name}
    found = findings(tmp_path / "missing", {**files, **second})
    assert ("cc-model-filename-missing", "trt/2/model_sm89.plan") in rules(found)
    found = findings(tmp_path / "key", fleet(CC_CONFIG.replace('"8.9"', '"89"')))
    assert ("cc-model-filename-key", "trt/config.pbtxt") in rules(found)
    assert ("engine-capability-unlisted", "trt/1/model_sm89.plan") in rules(found)


# Sidecars


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "EOF"),
        ("[]", "Input should be an object"),
        ("[" * 100_000, "recursion"),
        ('{"flavour": "openvino"}', "flavour: "),
        ('{"version": 10}', "version: "),
        ('{"version": "ten"}', "version: "),
        ('{"plan_sha256": "abc"}', "plan_sha256: "),
        ('{"compute_capabilities": "8.0"}', "compute_capabilities: "),
        ('{"profiles": [{"x": {"min": [1], "opt": [1]}}]}', "profiles.0.x.max: "),
        ('{"profiles": [{"x": {"min": [1], "opt": [1], "max": [true]}}]}', "profiles.0.x.max.0: "),
        ('{"profiles": [{"x": {"min": [1], "opt": [1], "max": [1, 2]}}]}', "different ranks"),
        ('{"profiles": [{"x": {"min": [2], "opt": [1], "max": [4]}}]}', "do not ascend"),
        ('{"profiles": [{"x": {"min": [2], "opt": [5], "max": [4]}}]}', "do not ascend"),
        ('{"inputs": [{"shape": [1]}]}', "inputs.0.name: "),
        (json.dumps({"profiles": [{"x": dict.fromkeys(("min", "opt", "max"), [1] * 65)}]}), "at most 64 items"),
    ],
)
def test_a_malformed_sidecar(tmp_path: Path, text: str, told: str) -> None:
    (found,) = findings(tmp_path, {**plain(), "trt/1/engine.json": text})
    assert (found.rule, found.path, found.severity) == ("engine-sidecar-malformed", "trt/1/engine.json", "warning")
    assert told in found.reason


def test_a_sidecar_that_is_no_file(tmp_path: Path) -> None:
    files = plain()
    del files["trt/1/engine.json"]
    root = write(tmp_path, files)
    os.mkfifo(root / "trt/1/model.plan.json")
    assert only(lint(root)) == ("engine-sidecar-malformed", "trt/1/model.plan.json", "warning")


def test_the_engines_own_sidecar_is_preferred(tmp_path: Path) -> None:
    own = json.dumps(sidecar())
    assert findings(tmp_path, {**plain(), "trt/1/engine.json": "old", "trt/1/model.plan.json": own}) == []


def test_one_sidecar_for_several_engines(tmp_path: Path) -> None:
    files = fleet()
    files["trt/1/engine.json"] = files.pop("trt/1/model_sm80.plan.json")
    found = findings(tmp_path, files)
    assert only(found) == ("engine-sidecar-ambiguous", "trt/1/engine.json", "warning")
    assert "model_sm80.plan.json" in found[0].fix


def test_an_empty_sidecar_says_nothing(tmp_path: Path) -> None:
    assert findings(tmp_path, plain(facts={"written_by": "another tool", "profiles": None})) == []


def test_any_sidecar_gives_findings_and_nothing_else(tmp_path: Path) -> None:
    generator = random.Random(5)
    good = json.dumps(sidecar())
    values = ["null", "-1", "1e400", "[]", "{}", '""', '"\\ud800"', "true", "9" * 30, '"\\u0000\\n"']
    for round_ in range(120):
        data = bytearray(good.encode())
        for _ in range(generator.randint(1, 6)):
            data[generator.randrange(len(data))] = generator.randrange(256)
        cut = bytes(data[: generator.choice([len(data), generator.randint(0, len(data))])])
        key = generator.choice(list(sidecar()))
        swapped = json.dumps({**sidecar(), key: "HERE"}).replace('"HERE"', generator.choice(values))
        for name, text in (("cut", cut), ("swapped", swapped)):
            found = check(tmp_path / f"{round_}{name}", {**plain(), "trt/1/engine.json": text})
            for item in found:
                f"{item.path}{item.reason}{item.fix}".encode()
                assert len(item.reason) < 1000
