from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline import plan as planning
from pipeline.base.errors import ConfigError
from pipeline.machine import doctor, environment
from tests.unit.plan.planned import PRECISIONS, YAML, by_key, plan


def test_every_option_is_resolved(tmp_path: Path) -> None:
    made = plan(tmp_path)
    onnx, two, script = made.variants
    assert [item.identifier for item in made.variants] == ["m_onnx", "m_two", "m_ts"]
    assert onnx.options == {"exporter": "auto", "opset": 20, "simplify": True, "max_ir_version": 10, "max_opset": 21}
    assert script.options == {"method": "auto"}
    assert [item.max_batch_size for item in made.variants] == [8, 8, 2]
    assert (two.parent, two.format) == ("onnx", "onnx")


def test_variant_settings_are_laid_over_the_common_ones(tmp_path: Path) -> None:
    two = plan(tmp_path).variants[1]
    assert two.fields == {
        "dynamic_batching": {"max_queue_delay_microseconds": 5, "preserve_ordering": True},
        "instance_group": [{"count": 2, "kind": "KIND_CPU"}],
    }


@pytest.mark.parametrize(
    ("common", "own", "expected"),
    [
        ("[{count: 2, kind: KIND_CPU}]", "{}", {"count": 2, "kind": "KIND_GPU"}),
        ("[{count: 2, kind: KIND_CPU}, {gpus: [1], kind: KIND_GPU}]", "{}", {"gpus": [1], "kind": "KIND_GPU"}),
        ("[{count: 2}]", "{}", {"count": 2}),
        ("[{count: 2, kind: KIND_CPU}]", "{instance_group: [{count: 3}]}", {"count": 3}),
    ],
)  # fmt: skip
def test_a_common_instance_group_keeps_an_engine_on_the_gpu(
    tmp_path: Path, common: str, own: str, expected: Any
) -> None:
    overrides = (f"triton.instance_group={common}", f"variants.trt_fp16.triton={own}")
    made = by_key(plan(tmp_path, *overrides, text=PRECISIONS))
    assert made["trt_fp16"].fields["instance_group"] == [expected]
    assert made["onnx"].fields["instance_group"][0]["count"] == 2


def test_variants_of_one_file_share_its_steps(tmp_path: Path) -> None:
    made = plan(tmp_path)
    assert made.variants[0].export.key == made.variants[1].export.key
    assert made.variants[0].export.key != made.variants[2].export.key
    assert [step.name for step in made.steps][:3] == ["source[m]", "samples[m]", "export[m_onnx]"]


@pytest.mark.parametrize(
    ("override", "moved"),
    [
        ("variants.onnx.opset=17", {"export", "parity"}),
        ("gates.parity.max_abs=0.1", {"parity"}),
        ("triton.max_batch_size=4", {"parity"}),
        ("triton.dynamic_batching={}", set()),
        ("samples.count=3", {"samples", "export", "parity"}),
        ("source.model.args={a: 1}", {"source", "samples", "export", "parity"}),
        ("outputs.y.labels=[c, d]", {"samples", "export", "parity"}),
    ],
)
def test_a_change_moves_the_keys_it_must_and_no_other(tmp_path: Path, override: str, moved: set[str]) -> None:
    before, after = plan(tmp_path), plan(tmp_path, override)
    steps = {
        "source": (before.source, after.source),
        "samples": (before.samples, after.samples),
        "export": (before.variants[0].export, after.variants[0].export),
        "parity": (before.variants[0].parity, after.variants[0].parity),
    }
    assert {name for name, (one, other) in steps.items() if one.key != other.key} == moved


def test_changed_input_files_move_the_keys(tmp_path: Path) -> None:
    before = plan(tmp_path)
    assert plan(tmp_path, source_digests={"net.py": "cc"}).source.key != before.source.key
    other_data = plan(tmp_path, samples_digests={"x.npy": "cc"})
    assert (other_data.source.key, other_data.samples.key == before.samples.key) == (before.source.key, False)


def test_the_batch_is_the_letter_every_shape_starts_with(tmp_path: Path) -> None:
    assert plan(tmp_path).signature.batch == "N"
    free = YAML.replace("x: {shape: [N, 4]}", "x: {shape: [T, 4]}").replace("[N, 2]", "[2]")
    made = plan(tmp_path, text=free.replace("max_batch_size: 8", "").replace("max_batch_size: 2", ""))
    assert made.signature.batch is None
    assert {item.max_batch_size for item in made.variants} == {0}


def test_labels_of_the_source_are_filled_in_later(tmp_path: Path) -> None:
    made = plan(tmp_path)
    assert [spec.labels for spec in made.signature.outputs] == [("a", "b"), ()]
    filled = planning.with_source_labels(made, ("no", "yes"))
    assert [spec.labels for spec in filled.outputs] == [("a", "b"), ("no", "yes")]


def test_only_wanted_variants_are_planned(tmp_path: Path) -> None:
    assert [item.key for item in plan(tmp_path, keys=("two",)).variants] == ["two"]
    with pytest.raises(ConfigError, match="no variant is called tow"):
        plan(tmp_path, keys=("tow",))


def test_a_library_that_is_not_installed_is_said_before_any_work(tmp_path: Path) -> None:
    made = plan(tmp_path, "source.model={library: timm, name: resnet18}")
    assert not made.missing_to_build  # it is installed where the tests run
    bare = environment.Environment(
        **{name: getattr(environment.probe(tmp_path), name) for name in environment.Environment.__slots__}
        | {"distributions": {**environment.probe(tmp_path).distributions, "timm": "absent"}}
    )
    (gap,) = doctor.lacks_to_build(bare, ("timm",))
    assert "timm" in gap
