"""The three configurations around a variant: what they say, that the linter agrees, and that it sees a wrong wire."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.base import model_config
from pipeline.base.values import Signature, TensorSpec
from pipeline.lint import lint
from pipeline.servers.triton import config_pbtxt, ensemble
from pipeline.servers.triton.config_pbtxt import ModelFiles

SIGNATURE = Signature(
    inputs=(TensorSpec(name="image", dtype="float32", shape=("N", 1, 8, 8), layout="NCHW"),),
    outputs=(
        TensorSpec(name="boxes", dtype="float32", shape=("N", 4)),
        TensorSpec(name="logits", dtype="float16", shape=("N", 10)),
    ),
    batch="N",
)
STEPS = ("m_preprocess", "m_onnx", "m_postprocess")


def models(**fields: Any) -> dict[str, ModelFiles]:
    variant = config_pbtxt.describe(
        model_name="m_onnx", kind="onnx", signature=SIGNATURE, max_batch_size=4, fields=fields, warmup=None
    )
    made = ensemble.models("m", steps=STEPS, versions={"m_onnx": 1}, variant=variant.config, scores="logits")
    return {"m_onnx": variant, **made}


def tensors(message: Any) -> list[tuple[str, str, list[str]]]:
    rows = (model_config.to_dict(item) for item in message)
    return [(row["name"], row["data_type"], row["dims"]) for row in rows]


def test_each_model_takes_what_the_one_before_it_gives() -> None:
    made = {name: model.config for name, model in models().items()}
    image, labels = ("image", "TYPE_STRING", ["1"]), ("labels", "TYPE_STRING", ["1"])
    assert tensors(made["m_preprocess"].input) == [image]
    assert tensors(made["m_preprocess"].output) == [("image", "TYPE_FP32", ["1", "8", "8"])]
    assert tensors(made["m_postprocess"].input) == [("logits", "TYPE_FP16", ["10"])]
    assert tensors(made["m_postprocess"].output) == [labels]
    assert (tensors(made["m"].input), tensors(made["m"].output)) == ([image], [labels])
    assert [config.max_batch_size for config in made.values()] == [4, 4, 4, 4]
    assert made["m"].platform == "ensemble"
    assert [step.model_name for step in made["m"].ensemble_scheduling.step] == list(STEPS)
    assert [step.model_version for step in made["m"].ensemble_scheduling.step] == [-1, 1, -1]
    for name in ("m_preprocess", "m_postprocess"):
        assert made[name].HasField("dynamic_batching")
        assert model_config.takes_files(made[name]) == (name == "m_preprocess")
    assert model_config.takes_files(made["m"])


def test_a_variant_s_reshape_is_its_own_matter() -> None:
    made = models(input=[{"name": "image", "dims": [64], "reshape": {"shape": [1, 8, 8]}}])
    assert tensors(made["m_preprocess"].config.output) == [("image", "TYPE_FP32", ["64"])]


def write(root: Path, made: dict[str, ModelFiles]) -> None:
    for name, model in made.items():
        (root / name / "1").mkdir(parents=True)
        for path, data in model.files.items():
            (root / name / path).write_bytes(data)
        file = {"m_onnx": "model.onnx", "m": "wiring.json"}.get(name, "model.py")
        (root / name / "1" / file).write_bytes(b"")


def ensemble_rules(root: Path) -> set[str]:
    return {finding.rule for finding in lint(root) if finding.path.startswith("m/")}


def test_the_linter_has_nothing_to_say(tmp_path: Path) -> None:
    write(tmp_path, models())
    assert {finding.path for finding in lint(tmp_path)} == {"m_onnx/1/model.onnx"}  # an empty file is no ONNX model


def renamed_scores(made: dict[str, ModelFiles]) -> None:
    step = made["m"].config.ensemble_scheduling.step[1]
    step.output_map["scores"] = step.output_map.pop("logits")


def unwired_output(made: dict[str, ModelFiles]) -> None:
    made["m"].config.output[0].name = "label"


def unread_input(made: dict[str, ModelFiles]) -> None:
    made["m"].config.ensemble_scheduling.step[0].input_map["image"] = "photo"


def absent_step(made: dict[str, ModelFiles]) -> None:
    made["m"].config.ensemble_scheduling.step[1].model_name = "m_onnx_int8"


def other_dtype(made: dict[str, ModelFiles]) -> None:
    made["m_preprocess"].config.output[0].data_type = 10  # TYPE_FP16


def other_size(made: dict[str, ModelFiles]) -> None:
    made["m_preprocess"].config.output[0].dims[2] = 9


def smaller_batch(made: dict[str, ModelFiles]) -> None:
    made["m_postprocess"].config.max_batch_size = 3


@pytest.mark.parametrize(
    ("fault", "rules"),
    [
        (renamed_scores, {"ensemble-map"}),
        (unwired_output, {"ensemble-tensor"}),
        (unread_input, {"ensemble-tensor"}),
        (absent_step, {"ensemble-member-missing"}),
        (other_dtype, {"ensemble-data-type"}),
        (other_size, {"ensemble-shape"}),
        (smaller_batch, {"ensemble-batch-size"}),
    ],
)
def test_a_wrong_wire_is_found(tmp_path: Path, fault: Callable[[dict[str, ModelFiles]], None], rules: set[str]) -> None:
    made = models()
    fault(made)
    write(tmp_path, made)
    assert ensemble_rules(tmp_path) == rules
