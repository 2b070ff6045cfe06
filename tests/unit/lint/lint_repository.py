"""Tiny model repositories for the lint tests: one that is right, and a way to break it."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from onnx import TensorProto, helper

from pipeline.lint import Finding, lint

ONNX_CONFIG = """
name: "tiny"
platform: "onnxruntime_onnx"
backend: "onnxruntime"
max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: [ 4 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ 4 ] label_filename: "labels.txt" }
instance_group { kind: KIND_CPU count: 1 }
dynamic_batching { preferred_batch_size: [ 4, 8 ] }
version_policy { latest { num_versions: 1 } }
parameters { key: "intra_op_thread_count" value { string_value: "1" } }
model_warmup {
  name: "golden" batch_size: 1
  inputs { key: "x" value { data_type: TYPE_FP32 dims: [ 4 ] input_data_file: "x" } }
}
"""

TORCH_CONFIG = """
platform: "pytorch_libtorch"
backend: "pytorch"
max_batch_size: 8
input { name: "ids" data_type: TYPE_FP32 dims: [ 3 ] }
input { name: "mask" data_type: TYPE_FP32 dims: [ 3 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ 3 ] }
instance_group { kind: KIND_CPU count: 1 }
"""

ENSEMBLE_CONFIG = """
platform: "ensemble"
max_batch_size: 8
input { name: "in" data_type: TYPE_FP32 dims: [ 4 ] }
output { name: "out" data_type: TYPE_FP32 dims: [ 4 ] }
ensemble_scheduling {
  step { model_name: "tiny" model_version: -1 input_map { key: "x" value: "in" } output_map { key: "y" value: "mid" } }
  step { model_name: "tiny" model_version: 1 input_map { key: "x" value: "mid" } output_map { key: "y" value: "out" } }
}
"""

PYTHON_CONFIG = """
backend: "python"
max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: [ 4 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ 4 ] }
instance_group { kind: KIND_CPU count: 1 }
"""

CODE = """class Net(Module):
  __parameters__ = []
  def helper(self: __torch__.Net) -> int:
    return 1
  def forward(self: __torch__.Net,
    ids: Tensor,
    mask: Tensor) -> Tensor:
    return torch.mul(ids, mask)
"""


def onnx_bytes(
    shape: Iterable[str | int] = ("N", 4),
    *,
    out_shape: Iterable[str | int] | None = None,
    opset: int = 20,
    ir_version: int = 10,
    dtype: int = TensorProto.FLOAT,
    domain: str = "",
) -> bytes:
    """A model of one node, y = Relu(x)."""
    first = list(shape)
    last = first if out_shape is None else list(out_shape)
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"], domain=domain)],
        "g",
        [helper.make_tensor_value_info("x", dtype, first)],
        [helper.make_tensor_value_info("y", dtype, last)],
    )
    opsets = [helper.make_opsetid("", opset)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version).SerializeToString()


def torchscript_bytes(code: str = CODE, *, constants: bool = True) -> bytes:
    """An archive with the members and the layout torch.jit.save gives one."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("model/data.pkl", b"\x80\x02c__torch__\nNet\nq\x00)\x81.")
        archive.writestr("model/code/__torch__.py", code)
        if constants:
            archive.writestr("model/constants.pkl", b"\x80\x02).")
    return buffer.getvalue()


def write(root: Path, files: Mapping[str, str | bytes]) -> Path:
    """Write files below ``root``; a name ending in / is a directory."""
    for name, content in files.items():
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def tiny(config: str = ONNX_CONFIG, **files: str | bytes | None) -> dict[str, str | bytes]:
    """The files of the good model ``tiny``; a keyword replaces one of labels, warmup, model (None leaves it out)."""
    names = {"labels": "tiny/labels.txt", "warmup": "tiny/warmup/x", "model": "tiny/1/model.onnx"}
    good: dict[str, str | bytes | None] = {"labels": "a\nb\nc\nd\n", "warmup": bytes(16), "model": onnx_bytes()}
    chosen = {**good, **files}
    found = {names[key]: content for key, content in chosen.items() if content is not None}
    return {"tiny/config.pbtxt": config, **found}


def torch_model(config: str = TORCH_CONFIG, model: bytes | None = None) -> dict[str, str | bytes]:
    """The files of a good TorchScript model ``torch``."""
    return {"torch/config.pbtxt": config, "torch/1/model.pt": torchscript_bytes() if model is None else model}


def python_model(config: str = PYTHON_CONFIG) -> dict[str, str | bytes]:
    """The files of a good Python model ``py``."""
    return {"py/config.pbtxt": config, "py/1/model.py": ""}


def ensemble(config: str = ENSEMBLE_CONFIG) -> dict[str, str | bytes]:
    """The good model ``tiny`` and an ensemble ``both`` of it."""
    return {**tiny(), "both/config.pbtxt": config, "both/1/": b""}


def check(root: Path, files: Mapping[str, str | bytes], target: str = "24.10") -> list[Finding]:
    """Findings on a repository of these files; each has what a person needs."""
    found = lint(write(root, files), target=target)
    for item in found:
        assert item.path, item
        assert item.reason.endswith("."), item
        assert item.fix, item
        assert item.severity in ("error", "warning"), item
    return found


def rules(found: Iterable[Finding]) -> set[tuple[str, str]]:
    """(rule, path) of each finding."""
    return {(item.rule, item.path) for item in found}


def only(found: Sequence[Finding]) -> tuple[str, str, str]:
    """Rule, path and severity of the one finding there is."""
    (item,) = found
    return item.rule, item.path, item.severity


def replaced(config: str, old: str, new: str) -> str:
    """``config`` with one part of it replaced; the part must be there."""
    assert old in config, old
    return config.replace(old, new, 1)
