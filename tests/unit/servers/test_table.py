"""What the table of servers says of a configuration."""

from __future__ import annotations

from pathlib import Path

from pipeline.config.load import load
from pipeline.servers.table import names

YAML = """\
name: net
source: {model: {callable: "os.path:join"}}
inputs:
  x: {shape: [N, 3, 8, 8]}
outputs:
  y: {shape: [N, 10]}
preprocess: {}
postprocess: {}
ensemble: {from: onnx}
samples: {from: {dataset: digits}}
variants:
  onnx: {format: onnx}
  ts: {format: torchscript}
"""


def test_every_model_of_a_configuration_is_known_by_name(tmp_path: Path) -> None:
    (tmp_path / "net.yaml").write_text(YAML)
    config = load(tmp_path / "net.yaml").config
    assert tuple(names(config)) == ("net_onnx", "net_ts", "net", "net_preprocess", "net_postprocess")
    plain = config.model_copy(update={"postprocess": None})
    assert tuple(names(plain)) == ("net_onnx", "net_ts")
    archived = load(tmp_path / "net.yaml", ("torchserve={}", "postprocess=null", "ensemble=null")).config
    assert tuple(names(archived)) == ("net_onnx", "net_ts", "net.torchserve")
