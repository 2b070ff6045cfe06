"""Model directories with TensorRT engines, and findings on them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.lint import Finding

from .lint_repository import check, write

RELEASE = "26.07"
CONFIG = """
platform: "tensorrt_plan" backend: "tensorrt" max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: [ 3, -1 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ 4 ] }
instance_group { kind: KIND_GPU count: 1 profile: [ "0", "1" ] }
"""
CC_CONFIG = (
    CONFIG
    + """
cc_model_filenames { key: "8.0" value: "model_sm80.plan" }
cc_model_filenames { key: "8.9" value: "model_sm89.plan" }
"""
)
RTX_CONFIG = CONFIG.replace('platform: "tensorrt_plan" backend: "tensorrt"', 'backend: "tensorrt_rtx"').replace(
    ' profile: [ "0", "1" ]', ""
)
PLAN = b"a plan"


def engine_bytes(size: int = 100) -> bytes:
    """The outside of a TensorRT-RTX engine: magic, and its length at offset 16."""
    return b"vtrt" + bytes(12) + size.to_bytes(8, "little") + bytes(size - 24)


def sidecar(data: bytes = PLAN, **changes: Any) -> dict[str, Any]:
    """What the tool writes beside an engine of these bytes."""
    small = {"min": [1, 3, 16], "opt": [4, 3, 16], "max": [8, 3, 32]}
    large = {"min": [1, 3, 32], "opt": [8, 3, 64], "max": [16, 3, 64]}
    facts: dict[str, Any] = {
        "flavour": "tensorrt",
        "version": "10.16.1",
        "compute_capabilities": ["8.0"],
        "profiles": [{"x": small}, {"x": large}],
        "precision": "fp16",
        "inputs": [{"name": "x", "dtype": "float32", "shape": ["N", 3, -1]}],
        "outputs": [{"name": "y", "dtype": "float32", "shape": [-1, 4]}],
        "onnx_sha256": "0" * 64,
        "plan_sha256": hashlib.sha256(data).hexdigest(),
        "layers": {"Half": 12},
    }
    return {**facts, **changes}


def plain(config: str = CONFIG, facts: Mapping[str, Any] | None = None) -> dict[str, str | bytes]:
    """The good model ``trt``: one plan with its sidecar."""
    text = json.dumps(sidecar() if facts is None else facts)
    return {"trt/config.pbtxt": config, "trt/1/model.plan": PLAN, "trt/1/engine.json": text}


def fleet(config: str = CC_CONFIG, sm80: Any = ("8.0",), sm89: Any = ("sm_89",)) -> dict[str, str | bytes]:
    """The good model ``trt`` of a plan for each of two capabilities."""
    files: dict[str, str | bytes] = {"trt/config.pbtxt": config}
    for name, capabilities in (("model_sm80.plan", sm80), ("model_sm89.plan", sm89)):
        data = name.encode()
        files[f"trt/1/{name}"] = data
        files[f"trt/1/{name}.json"] = json.dumps(sidecar(data, compute_capabilities=list(capabilities)))
    return files


def rtx(config: str = RTX_CONFIG, data: bytes | None = None, **changes: Any) -> dict[str, str | bytes]:
    """The good model ``rtx``: one engine for two capabilities."""
    engine = engine_bytes() if data is None else data
    known = {"flavour": "tensorrt_rtx", "version": "1.7.1.116", "compute_capabilities": ["sm_80", "sm_120"], **changes}
    facts = json.dumps(sidecar(engine, **known))
    return {"rtx/config.pbtxt": config, "rtx/1/model.engine": engine, "rtx/1/model.engine.json": facts}


def findings(root: Path, files: Mapping[str, str | bytes], release: Any = RELEASE) -> list[Finding]:
    """Findings on models that this tool built for ``release``, but that no container has the backend of RTX."""
    for name in {name.split("/")[0] for name in files}:
        text = json.dumps({"target": {"release": release}})
        write(root / "r.state", {f"manifests/{name}/1.json": text})
    found = check(root / "r", files, target=RELEASE)
    return [item for item in found if item.rule != "backend-not-in-containers"]
