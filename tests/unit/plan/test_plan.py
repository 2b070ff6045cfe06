from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import plan as planning
from pipeline.base.errors import ConfigError
from pipeline.config.load import load
from pipeline.machine import doctor, environment, tensorrt_flavours
from pipeline.machine.environment import Gpu
from pipeline.plan import BuildPlan, Dependencies

YAML = """
name: m
source: {model: {callable: "net.py:Net"}}
inputs: {x: {shape: [N, 4]}}
outputs: {y: {shape: [N, 2], labels: [a, b]}, raw: {shape: [N, 2], labels: source}}
samples: {from: {arrays: x.npy}}
variants:
  onnx: {format: onnx}
  two: {from: onnx, triton: {instance_group: [{count: 2, kind: KIND_CPU}], dynamic_batching: {preserve_ordering: true}}}
  ts: {format: torchscript, triton: {max_batch_size: 2}}
triton:
  target: "24.10"
  max_batch_size: 8
  dynamic_batching: {max_queue_delay_microseconds: 5}
"""

DEPENDENCIES = Dependencies(
    source_digests={"net.py": "aa"},
    source_tools=("torch",),
    samples_digests={"x.npy": "bb"},
    calibration_digests={key: {"x.npy": "bb"} for key in ("int8", "trt_int8", "later")},
)
PRECISIONS = YAML.replace(
    "  ts: {format",
    """  fp16: {from: onnx, precision: fp16, keep_fp32: {ops: [Gemm]}}
  int8: {from: onnx, precision: int8, calibration: {method: entropy, samples: 64}}
  trt_fp16: {from: onnx, format: tensorrt, precision: fp16, engine: {gpus: [sm_80]}}
  trt_int8: {from: int8, format: tensorrt, repair: off}
  later: {from: trt_int8, triton: {max_batch_size: 2}}
  ts: {format""",
)


def plan(folder: Path, *overrides: str, text: str = YAML, keys: tuple[str, ...] = (), **changes: Any) -> BuildPlan:
    (folder / "net.py").touch()
    (folder / "x.npy").touch()
    (folder / "m.yaml").write_text(text)
    dependencies = Dependencies(**{**{name: getattr(DEPENDENCIES, name) for name in DEPENDENCIES.__slots__}, **changes})
    return planning.make(
        load(folder / "m.yaml", overrides),
        dependencies,
        environment.probe(folder),
        repository=folder / "repo",
        work_dir=folder,
        keys=keys,
    )


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


A100 = Gpu(name="A100", driver="1", capability="sm_80")


def machine(patch: pytest.MonkeyPatch, folder: Path, **changes: Any) -> None:
    """This machine, changed."""
    here = replace(environment.probe(folder), **changes)
    patch.setattr(environment, "probe", lambda folder: here)


def by_key(made: BuildPlan) -> dict[str, Any]:
    return {variant.key: variant for variant in made.variants}


def test_a_precision_is_made_for_what_will_run_it(tmp_path: Path) -> None:
    made = by_key(plan(tmp_path, text=PRECISIONS))
    assert made["onnx"].reduction is None
    assert made["onnx"].steps == (made["onnx"].export, made["onnx"].parity)
    fp16, int8, engine = (made[key].reduction for key in ("fp16", "int8", "trt_int8"))
    assert (fp16.precision, fp16.consumer, fp16.keep_ops, fp16.calibration) == ("fp16", "onnxruntime", ("Gemm",), None)
    assert (int8.consumer, int8.calibration.method, int8.calibration.samples) == ("onnxruntime", "entropy", 64)
    assert (engine.consumer, engine.calibration.method, engine.repair, int8.repair.attempts) == (
        "tensorrt", "entropy", None, 4)  # fmt: skip
    assert (int8.reduce_range, engine.reduce_range) == (environment.probe(tmp_path).cpu.saturates_int8, False)
    assert made["int8"].reduce.key != made["trt_int8"].reduce.key
    assert made["int8"].how.startswith("from onnx → int8 U8S8 for onnxruntime")
    assert made["trt_int8"].how.startswith("from onnx → int8 S8S8 for tensorrt, entropy over 64 samples → tensorrt_rtx")
    assert made["fp16"].tolerance.max_scaled > made["onnx"].tolerance.max_scaled == 0


def test_an_engine_is_built_from_the_judged_graph(tmp_path: Path) -> None:
    made = by_key(plan(tmp_path, text=PRECISIONS))
    fp16 = made["trt_fp16"]
    assert (fp16.kind, fp16.format, fp16.engine.spec.file_name) == ("tensorrt_rtx", "tensorrt", "model_sm80.engine")
    assert fp16.engine.file_names == {"8.0": "model_sm80.engine"}
    assert fp16.engine.step.upstream == {"graph": fp16.reduce}
    (profile,) = fp16.engine.spec.profiles
    assert (profile["x"].min, profile["x"].opt, profile["x"].max) == ((1, 4), (8, 4), (8, 4))
    later = made["later"]
    assert later.kind == "tensorrt_rtx"
    assert later.reduce.key == made["trt_int8"].reduce.key
    assert later.engine.spec.profiles[0]["x"].max == (2, 4)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_the_default_gpus_of_an_engine_can_compute_what_stays_fp32(tmp_path: Path, precision: str) -> None:
    overrides = ("variants.trt_fp16.engine={flavour: tensorrt_rtx}", f"variants.trt_fp16.precision={precision}")
    measured = {"trt_fp16": {"x.npy": "bb"}, **DEPENDENCIES.calibration_digests}
    made = by_key(plan(tmp_path, *overrides, text=PRECISIONS, calibration_digests=measured))
    assert made["trt_fp16"].engine.spec.gpus == ("sm_80", "sm_86", "sm_89", "sm_120", "sm_121")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("variants.trt_fp16.engine.gpus=[sm_90]", "variants.trt_fp16.engine.gpus"),
        ("variants.trt_fp16.engine.gpus=[sm_99]", "variants.trt_fp16.engine.gpus"),
        ("variants.trt_fp16.engine.refit=true", "variants.trt_fp16.engine.refit"),
        ("variants.trt_int8.engine={gpus: [sm_90]}", "variants.trt_int8.engine.gpus"),  # told once, though inherited
        ("variants.trt_fp16.engine.profiles=[{N: [2, 4, 8]}]", "expected min 1 for the batch dimension N; found 2"),
        ("variants.trt_fp16.engine.profiles=[{N: [1, 4, 4]}]", "max_batch_size is 8: expected max N of at least that"),
        ("variants.trt_fp16.engine.profiles=[{N: [1, 9, 8]}]", "expected min <= opt <= max; found [1, 9, 8]"),
    ],
)
def test_engines_that_cannot_be_built_are_refused_with_their_place(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(tmp_path, override, text=PRECISIONS)
    assert message in str(caught.value)
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize(
    ("gpu", "bindings", "obstacle"),
    [
        (None, True, "this machine has no GPU"),
        (Gpu(name="H200", driver="1", capability="sm_90"), True, "the GPU here is sm_90, and the engine is for sm_80"),
        (A100, False, "cuda-bindings is not installed: pip install 'model-repository-pipeline[gpu]'"),
        (A100, True, ""),
    ],
)
def test_an_engine_is_judged_itself_where_its_gpu_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu: Gpu | None, bindings: bool, obstacle: str
) -> None:
    machine(monkeypatch, tmp_path, gpu=gpu, cuda_bindings=bindings)
    variant = by_key(plan(tmp_path, "variants.trt_fp16.engine.flavour=tensorrt_rtx", text=PRECISIONS))["trt_fp16"]
    assert variant.engine.obstacle == obstacle
    names = [step.name for step in variant.steps]
    assert names[:4] == ["export[m_onnx]", "fp16[m_trt_fp16]", "parity[m_trt_fp16]", "engine[m_trt_fp16]"]
    assert names[4:] == ([] if obstacle else ["parity[m_trt_fp16.engine]"])
    if not obstacle:
        assert variant.engine.parity.upstream["engine"] == variant.engine.step


def test_a_machine_that_cannot_build_an_engine_is_told_so(tmp_path: Path) -> None:
    made = plan(tmp_path, "variants.trt_fp16.engine.flavour=tensorrt", text=PRECISIONS)
    assert any(
        row.startswith("m_trt_fp16: tensorrt: not installed; pip install 'tensorrt==10.5.0.*'")
        for row in made.missing_for_engines
    )
    assert made.missing_to_build == ()


@pytest.fixture
def classic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A machine with an A100 and the TensorRT of Triton 24.10, and the flavour in the YAML."""
    machine(monkeypatch, tmp_path, gpu=A100)
    monkeypatch.setattr(tensorrt_flavours, "installed", lambda name: "10.5.0")
    return "variants.trt_fp16.engine.flavour=tensorrt"


def test_a_gpu_that_the_machine_does_not_have_is_told_before_the_build(tmp_path: Path, classic: str) -> None:
    made = plan(tmp_path, classic, "variants.trt_fp16.engine.gpus=[sm_80, sm_89]", text=PRECISIONS)
    assert [row for row in made.missing_for_engines if "builds engines on the GPU they are for (sm_89)" in row]
    assert not plan(tmp_path, classic, text=PRECISIONS).missing_for_engines


@pytest.mark.parametrize(
    ("override", "key", "message"),
    [
        ("variants.trt_fp16.engine.gpus=[sm_33]", ".gpus", "it builds for sm_70 and later"),
        ("variants.trt_fp16.engine.hardware_compatibility=ampere_plus", ".gpus", "leave one of the two out"),
    ],
)
def test_what_classic_tensorrt_cannot_do_is_told(
    tmp_path: Path, classic: str, override: str, key: str, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(tmp_path, classic, override, text=PRECISIONS)
    (problem,) = caught.value.problems
    assert problem.key == f"variants.trt_fp16.engine{key}"
    assert message in problem.message


def test_an_engine_that_the_target_could_not_load_says_what_to_do(
    tmp_path: Path, classic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compatible = "variants.trt_fp16.engine.version_compatible=true"
    monkeypatch.setattr(tensorrt_flavours, "installed", lambda name: "10.16.1")
    for overrides in ([classic], [classic, compatible]):  # a later TensorRT's engine is not compatible either
        with pytest.raises(ConfigError) as caught:
            plan(tmp_path, *overrides, text=PRECISIONS)
        message = next(row.message for row in caught.value.problems if row.key == "variants.trt_fp16.engine")
        assert "the engine would be built by TensorRT 10.16.1, and Triton 24.10's container has 10.5.0.18" in message
        assert ": pip install 'tensorrt==10.5.0.*', build it in nvcr.io/nvidia/tensorrt:24.10-py3, or " in message
    monkeypatch.setattr(tensorrt_flavours, "installed", lambda name: "10.4.0")
    with pytest.raises(ConfigError) as caught:
        plan(tmp_path, classic, compatible, text=PRECISIONS)
    assert "trt_fp16" not in "".join(problem.key for problem in caught.value.problems)


def test_an_engines_key_holds_all_that_decides_it(
    tmp_path: Path, classic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = by_key(plan(tmp_path, classic, text=PRECISIONS))["trt_fp16"].engine.step
    assert step.parameters["gpu"] == {"name": "A100", "capability": "sm_80"}
    assert "tensorrt-cu13-libs" in step.tools
    rtx = by_key(plan(tmp_path, "variants.trt_fp16.engine.flavour=tensorrt_rtx", text=PRECISIONS))["trt_fp16"]
    assert "tensorrt-rtx-cu12-libs" in rtx.engine.step.tools
    machine(monkeypatch, tmp_path, gpu=replace(A100, capability="sm_86"))
    assert by_key(plan(tmp_path, classic, text=PRECISIONS))["trt_fp16"].engine.step.key != step.key


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


def test_torchserve_is_made_from_the_first_torchscript_variant_or_the_one_named(tmp_path: Path) -> None:
    made = plan(tmp_path, "torchserve={}").torchserve
    assert made is not None
    assert (made.identifier, made.key, made.model, made.variant.key) == ("m.torchserve", "m.torchserve", "m", "ts")
    assert (made.batch_size, made.max_batch_delay_ms, made.workers) == (8, 10, 1)
    assert (made.format, made.precision, made.server) == ("mar", "fp32", "torchserve")
    text = YAML.replace(
        "triton:\n  target", "  ts2: {from: ts}\ntorchserve: {from: ts2, batch_size: 3}\ntriton:\n  target"
    )
    named = plan(tmp_path, text=text)
    assert named.torchserve is not None
    assert (named.torchserve.variant.key, named.torchserve.batch_size) == ("ts2", 3)
    assert [row.identifier for row in named.rows][-1] == "m.torchserve"


def test_torchserve_is_left_out_where_its_variant_is(tmp_path: Path) -> None:
    assert plan(tmp_path, "torchserve={}", keys=("onnx",)).torchserve is None
    assert plan(tmp_path, "torchserve={}", keys=("ts",)).torchserve is not None
    assert plan(tmp_path).deployments == ()


def test_a_missing_java_is_said_for_the_proof_and_does_not_keep_the_archive_from_being_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = environment.probe(tmp_path)
    monkeypatch.setattr(environment, "probe", lambda _: replace(found, java=None))
    made = plan(tmp_path, "torchserve={}")
    assert made.torchserve is not None
    assert made.torchserve.lacking_to_make == ()
    assert made.missing_for_deployments == ("m.torchserve: Java: none; apt-get install openjdk-17-jre-headless",)


PROGRAM = """\
name: m
source: {model: {callable: "net.py:make"}}
inputs:
  x: {shape: [N, 1, 8, 8]}
outputs:
  y: {shape: [N, 10], labels: digits}
samples: {from: {dataset: digits}}
preprocess: {}
postprocess: {}
variants:
  cpp: {from: ts, format: libtorch}
  ts: {format: torchscript}
"""


def test_a_program_is_made_of_its_parents_file_and_serves_itself(tmp_path: Path) -> None:
    cpp, ts = plan(tmp_path, text=PROGRAM).variants
    assert (cpp.format, cpp.kind, cpp.server) == ("libtorch", "torchscript", "none")
    assert (ts.format, ts.kind, ts.server) == ("torchscript", "torchscript", "triton")
    assert cpp.export == ts.export
    assert cpp.parity.key == ts.parity.key  # judged once
    assert cpp.how == "from ts → C++ program"


def test_an_ensemble_asks_no_program(tmp_path: Path) -> None:
    made = plan(tmp_path, text=PROGRAM)
    assert made.ensemble is not None
    assert made.ensemble.variant.key == "ts"


KERAS = YAML.replace('{model: {callable: "net.py:Net"}}', "{keras: {file: x.npy}}").replace(
    "  ts: {format: torchscript", "  sm: {format: saved_model"
)


def test_a_saved_model_is_tritons_up_to_25_02_and_tf_servings_after_that(tmp_path: Path) -> None:
    made = plan(tmp_path, text=KERAS)
    assert [(item.key, item.kind, item.server, item.options) for item in made.variants][2] == (
        "sm", "saved_model", "triton", {},
    )  # fmt: skip
    assert made.tfserving is None
    newer = plan(tmp_path, "tfserving={}", "triton.target='25.03'", text=KERAS)
    assert [item.server for item in newer.variants] == ["triton", "triton", "tfserving"]
    assert newer.tfserving is not None
    assert newer.rows == (*newer.variants, newer.tfserving)
    assert (newer.tfserving.key, newer.tfserving.server, newer.tfserving.precision) == (
        "m.tfserving",
        "tfserving",
        "fp32",
    )
    assert newer.tfserving.root == tmp_path / "repo.tfserving"
    assert plan(tmp_path, "tfserving={}", text=KERAS, keys=("onnx",)).tfserving is None
    assert plan(tmp_path, "tfserving={}", text=KERAS, keys=("sm",)).tfserving is not None


def test_tensorflows_models_go_through_tf2onnx(tmp_path: Path) -> None:
    onnx, _, saved = plan(tmp_path, text=KERAS).variants
    assert onnx.options == {"exporter": "tf2onnx", "opset": 18, "simplify": True, "max_ir_version": 10}
    assert "tf2onnx" in onnx.export.tools
    assert "tf2onnx" not in saved.export.tools
    assert {"formats"} <= set(onnx.export.code) & set(saved.export.code)
