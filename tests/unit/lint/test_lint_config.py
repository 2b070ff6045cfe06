"""Each rule on a configuration: one bad case that it names, at the configuration, with its severity."""

from __future__ import annotations

from pathlib import Path

import pytest

from .lint_repository import (
    ENSEMBLE_CONFIG,
    ONNX_CONFIG,
    PYTHON_CONFIG,
    TORCH_CONFIG,
    check,
    ensemble,
    python_model,
    replaced,
    rules,
    tiny,
    torch_model,
)

BATCHING = "dynamic_batching { preferred_batch_size: [ 4, 8 ] }"
GROUP = "instance_group { kind: KIND_CPU count: 1 }"
IN = 'input { name: "x" data_type: TYPE_FP32 dims: [ 4 ]'
WARM = 'inputs { key: "x" value { data_type: TYPE_FP32 dims: [ 4 ] input_data_file: "x" } }'
SEQUENCE = "sequence_batching { %s }"
START = "control { kind: CONTROL_SEQUENCE_START %s }"

# (rule, severity, part of the good configuration, what replaces it)
ONNX_CASES = [
    ("name-mismatch", "error", 'name: "tiny"', 'name: "large"'),
    ("platform-backend-pair", "error", '"onnxruntime_onnx"', '"pytorch_libtorch"'),
    ("platform-backend-pair", "error", '"onnxruntime_onnx"', '"onnx"'),
    ("runtime-set", "warning", GROUP, GROUP + ' runtime: "libtriton_onnxruntime.so"'),
    ("repository-agent", "warning", GROUP, GROUP + ' model_repository_agents { agents { name: "checksum" } }'),
    ("parameter-unknown", "warning", "intra_op_thread_count", "intra_op_num_threads_count"),
    ("parameter-unknown", "warning", "intra_op_thread_count", "Intra_Op_Thread_Count"),
    ("execution-mode", "error", GROUP, GROUP + ' parameters { key: "execution_mode" value { string_value: "2" } }'),
    ("thread-count", "error", 'string_value: "1"', 'string_value: "one"'),
    ("accelerator-unknown", "error", GROUP,
     GROUP + ' optimization { execution_accelerators { gpu_execution_accelerator { name: "trt" } } }'),
    ("accelerator-unknown", "error", GROUP,
     GROUP + ' optimization { execution_accelerators { cpu_execution_accelerator { name: "tensorrt" } } }'),
    ("accelerator-parameter-unknown", "error", GROUP,
     GROUP + " optimization { execution_accelerators { gpu_execution_accelerator "
     '{ name: "tensorrt" parameters { key: "trt_fp16_enable" value: "1" } } } }'),
    ("graph-level-off", "warning", GROUP, GROUP + " optimization { graph { level: 2 } }"),
    ("instance-group-missing", "warning", GROUP, ""),
    ("instance-group-gpus", "error", "kind: KIND_CPU count: 1", "kind: KIND_CPU count: 1 gpus: [ 0 ]"),
    ("instance-group-gpus", "error", "kind: KIND_CPU count: 1", "kind: KIND_GPU count: 1 gpus: [ -1 ]"),
    ("instance-group-count", "warning", "kind: KIND_CPU count: 1", "kind: KIND_CPU"),
    ("instance-group-profile", "error", "kind: KIND_CPU count: 1", 'kind: KIND_CPU count: 1 profile: "0"'),
    ("max-batch-size-negative", "error", "max_batch_size: 8", "max_batch_size: -1"),
    ("dynamic-batching-without-batch", "warning", "max_batch_size: 8", "max_batch_size: 0"),
    ("preferred-batch-size", "error", "[ 4, 8 ]", "[ 4, 9 ]"),
    ("preferred-batch-size", "error", "[ 4, 8 ]", "[ 0 ]"),
    ("priority-levels", "error", "[ 4, 8 ]", "[ 4 ] priority_levels: 2"),
    ("priority-levels", "error", "[ 4, 8 ]", "[ 4 ] priority_levels: 2 default_priority_level: 3"),
    ("priority-levels", "error", "[ 4, 8 ]",
     "[ 4 ] priority_levels: 2 default_priority_level: 1 priority_queue_policy { key: 3 value { max_queue_size: 1 } }"),
    ("priority-levels", "warning", "[ 4, 8 ]", "[ 4 ] default_priority_level: 1"),
    ("preserve-ordering", "error", "[ 4, 8 ]",
     "[ 4 ] preserve_ordering: true priority_levels: 2 default_priority_level: 1"),
    ("preserve-ordering", "error", "[ 4, 8 ]",
     "[ 4 ] preserve_ordering: true default_queue_policy { timeout_action: DELAY default_timeout_microseconds: 9 }"),
    ("queue-policy-without-timeout", "warning", "[ 4, 8 ]", "[ 4 ] default_queue_policy { timeout_action: DELAY }"),
    ("response-cache-unsupported", "error", GROUP,
     GROUP + " response_cache { enable: true } model_transaction_policy { decoupled: true }"),
    ("response-cache-unsupported", "error", BATCHING, "response_cache { enable: true } sequence_batching { }"),
    ("batch-strategy-with-sequences", "error", BATCHING,
     'sequence_batching { } parameters { key: "TRITON_BATCH_STRATEGY_PATH" value { string_value: "/b.so" } }'),
    ("sequence-control", "error", BATCHING, SEQUENCE % ('control_input { name: "s" ' + START % "" + "}")),
    ("sequence-control", "error", BATCHING,
     SEQUENCE % ('control_input { name: "s" ' + START % "int32_false_true: [ 0 ]" + "}")),
    ("sequence-control", "error", BATCHING,
     SEQUENCE % ('control_input { name: "s" ' + START % "int32_false_true: [ 0, 1 ] fp32_false_true: [ 0, 1 ]" + "}")),
    ("sequence-control", "error", BATCHING, SEQUENCE % 'control_input { name: "s" }'),
    ("sequence-control", "error", BATCHING,
     SEQUENCE % (('control_input { name: "s" ' + START % "int32_false_true: [ 0, 1 ]" + "}") * 2)),
    ("sequence-correlation-id", "error", BATCHING,
     SEQUENCE % 'control_input { name: "id" control { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_FP32 } }'),
    ("sequence-slot-utilization", "error", BATCHING, SEQUENCE % "direct { minimum_slot_utilization: 1.5 }"),
    ("preferred-batch-size", "error", BATCHING, SEQUENCE % "oldest { preferred_batch_size: [ 16 ] }"),
    ("sequence-state", "error", BATCHING, SEQUENCE % 'state { input_name: "a" data_type: TYPE_FP32 dims: [ 1 ] }'),
    ("input-missing", "error", IN + " }", ""),
    ("tensor-name-missing", "error", 'name: "x" data_type', "data_type"),
    ("tensor-data-type-missing", "error", 'name: "x" data_type: TYPE_FP32', 'name: "x"'),
    ("tensor-name-duplicate", "error", IN + " }", (IN + " }\n") * 2),
    ("dims-missing", "error", IN, 'input { name: "x" data_type: TYPE_FP32'),
    ("dims-value", "error", IN, IN.replace("4", "0")),
    ("dims-value", "error", IN, IN.replace("4", "-2")),
    ("reshape-value", "error", IN, IN + " reshape { shape: [ 4, 0 ] }"),
    ("reshape-size", "error", IN, IN + " reshape { shape: [ 2, 3 ] }"),
    ("reshape-size", "error", IN, IN.replace("[ 4 ]", "[ 2, 4, -1, 6 ]") + " reshape { shape: [ 8, -1, 5 ] }"),
    ("format-dims", "error", IN, IN + " format: FORMAT_NCHW"),
    ("shape-tensor", "error", IN, IN + " is_shape_tensor: true"),
    ("non-linear-format", "error", IN, IN + " is_non_linear_format_io: true"),
    ("optional-with-batching", "error", IN, IN + " optional: true"),
    ("batch-tensor-source", "error", GROUP,
     GROUP + ' batch_input { kind: BATCH_ELEMENT_COUNT target_name: "n" data_type: TYPE_FP32 source_input: "z" }'),
    ("batch-tensor-type", "error", GROUP,
     GROUP + ' batch_input { kind: BATCH_ELEMENT_COUNT target_name: "n" data_type: TYPE_INT64 source_input: "x" }'),
    ("batch-tensor-target", "error", GROUP,
     GROUP + ' batch_output { target_name: "q" kind: BATCH_SCATTER_WITH_INPUT_SHAPE source_input: "x" }'),
    ("warmup-skipped", "warning", "batch_size: 1", "batch_size: 0"),
    ("warmup-batch-size", "warning", "batch_size: 1", "batch_size: 9"),
    ("warmup-input-missing", "error", WARM, ""),
    ("warmup-input-unknown", "error", WARM, WARM + WARM.replace('"x" value', '"z" value')),
    ("warmup-data-type", "error", WARM, WARM.replace("TYPE_FP32", "TYPE_INT32")),
    ("warmup-dims", "error", WARM, WARM.replace("[ 4 ]", "[ 2, 2 ]")),
    ("warmup-dims", "error", WARM, WARM.replace("[ 4 ]", "[ -1 ]")),
    ("warmup-data-missing", "error", WARM, WARM.replace('input_data_file: "x"', "")),
    ("version-policy-selects-none", "error", "latest { num_versions: 1 }", "latest { num_versions: 0 }"),
    ("version-policy-selects-none", "error", "latest { num_versions: 1 }", "specific { versions: [ 2, 3 ] }"),
    ("version-policy-absent-version", "warning", "latest { num_versions: 1 }", "specific { versions: [ 1, 3 ] }"),
    ("model-filename-escapes", "error", GROUP, GROUP + ' default_model_filename: "../model.onnx"'),
    ("model-filename-escapes", "error", GROUP, GROUP + ' default_model_filename: "/model.onnx"'),
    ("model-filename-path", "warning", GROUP, GROUP + ' default_model_filename: "weights/model.onnx"'),
    ("cc-model-filename-key", "error", GROUP, GROUP + ' cc_model_filenames { key: "sm89" value: "model.onnx" }'),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "severity", "old", "new"), ONNX_CASES)
def test_a_bad_configuration(tmp_path: Path, rule: str, severity: str, old: str, new: str) -> None:
    found = check(tmp_path, tiny(replaced(ONNX_CONFIG, old, new)))
    assert (rule, "tiny/config.pbtxt") in rules(found)
    assert next(item.severity for item in found if item.rule == rule) == severity


def test_the_fix_of_a_typo_is_the_nearest_name(tmp_path: Path) -> None:
    found = check(tmp_path, tiny(replaced(ONNX_CONFIG, "intra_op_thread_count", "intra_op_threads_count")))
    assert [item.fix for item in found] == ["write intra_op_thread_count"]


def test_parameters_of_ones_own_are_left_alone(tmp_path: Path) -> None:
    own = GROUP + ' parameters { key: "preprocessing_mean" value { string_value: "0.5" } }'
    assert check(tmp_path, tiny(replaced(ONNX_CONFIG, GROUP, own))) == []


@pytest.mark.parametrize(
    "shape", ["dims: [ 2, 4, -1, 6 ] reshape { shape: [ 8, -1, 1, 6 ] }", "dims: [ 1 ] reshape { shape: [ ] }"]
)
def test_a_reshape_triton_accepts(tmp_path: Path, shape: str) -> None:
    text = replaced(
        PYTHON_CONFIG, 'name: "x" data_type: TYPE_FP32 dims: [ 4 ]', f'name: "x" data_type: TYPE_FP32 {shape}'
    )
    assert check(tmp_path, python_model(text)) == []


def test_an_empty_reshape_needs_a_batch_dimension(tmp_path: Path) -> None:
    text = replaced(PYTHON_CONFIG, "dims: [ 4 ]", "dims: [ 1 ] reshape { shape: [ ] }").replace(": 8", ": 0")
    assert rules(check(tmp_path, python_model(text))) == {("reshape-empty", "py/config.pbtxt")}


@pytest.mark.parametrize(
    "name", ["trt_layer_norm_fp32_fallback", "int8_calibration_table_name", "int8_use_native_calibration_table"]
)
def test_a_parameter_of_the_tensorrt_accelerator_that_the_backend_takes(tmp_path: Path, name: str) -> None:
    accelerator = f'gpu_execution_accelerator {{ name: "tensorrt" parameters {{ key: "{name}" value: "1" }} }}'
    text = replaced(ONNX_CONFIG, GROUP, GROUP + f" optimization {{ execution_accelerators {{ {accelerator} }} }}")
    assert check(tmp_path, tiny(text)) == []


def test_parameters_of_the_tensorflow_backend_are_known(tmp_path: Path) -> None:
    text = replaced(PYTHON_CONFIG, 'backend: "python"', 'backend: "tensorflow" platform: "tensorflow_savedmodel"')
    threads = 'parameters { key: "%s" value { string_value: "%s" } }'
    for name, value, expected in (
        ("TF_NUM_INTRA_THREADS", "2", set()),
        ("TF_NUM_INTRA_THREAD", "2", {("parameter-unknown", "tf/config.pbtxt")}),
        ("TF_NUM_INTRA_THREADS", "-1", {("thread-count", "tf/config.pbtxt")}),
    ):
        files = {"tf/config.pbtxt": text + threads % (name, value), "tf/1/model.savedmodel/saved_model.pb": "x"}
        assert rules(check(tmp_path / f"{name}{value}", files)) == expected


def test_a_good_sequence_model(tmp_path: Path) -> None:
    controls = (
        'control_input { name: "s" control { kind: CONTROL_SEQUENCE_START fp32_false_true: [ 0, 1 ] } }'
        'control_input { name: "id" control { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 } }'
        'state { input_name: "a" output_name: "b" data_type: TYPE_FP32 dims: [ 1 ] '
        'initial_state { name: "zero" data_type: TYPE_FP32 dims: [ 1 ] data_file: "first" } }'
    )
    files = {**python_model(PYTHON_CONFIG + SEQUENCE % controls), "py/initial_state/first": bytes(4)}
    assert check(tmp_path / "good", files) == []
    del files["py/initial_state/first"]
    assert rules(check(tmp_path / "bad", files)) == {("initial-state-file-missing", "py/initial_state/first")}


def test_a_python_model_without_tensors_is_only_warned_about(tmp_path: Path) -> None:
    found = check(tmp_path, python_model('backend: "python" ' + GROUP))
    assert {(item.rule, item.severity) for item in found} == {
        ("input-missing", "warning"),
        ("output-missing", "warning"),
    }


def test_a_backend_that_must_be_guessed(tmp_path: Path) -> None:
    text = replaced(PYTHON_CONFIG, 'backend: "python"', "")
    assert rules(check(tmp_path / "a", python_model(text))) == {("backend-missing", "py/config.pbtxt")}
    found = check(tmp_path / "b", {"py/config.pbtxt": text, "py/1/weights.bin": "x"})
    assert [(item.rule, item.severity) for item in found] == [("backend-missing", "error")]
    text = replaced(ONNX_CONFIG, 'backend: "onnxruntime"', "")
    assert check(tmp_path / "c", tiny(text)) == []


def test_of_two_files_the_guess_is_the_one_that_the_core_looks_for_first(tmp_path: Path) -> None:
    text = replaced(PYTHON_CONFIG, 'backend: "python"', "")
    found = check(tmp_path, {"two/config.pbtxt": text, "two/1/model.onnx": "x", "two/1/model.plan": "x"})
    assert "no backend is given; Triton guesses 'tensorrt' from file names." in {item.reason for item in found}


def test_an_unknown_platform(tmp_path: Path) -> None:
    text = replaced(TORCH_CONFIG, 'backend: "pytorch"', "").replace("pytorch_libtorch", "pytorch_libtorsch")
    (found,) = check(tmp_path, torch_model(text))
    assert (found.rule, found.fix) == ("platform-unknown", 'write platform: "pytorch_libtorch"')


def test_a_backend_of_ones_own_takes_any_platform(tmp_path: Path) -> None:
    text = replaced(PYTHON_CONFIG, 'backend: "python"', 'backend: "mine" platform: "anything"')
    assert check(tmp_path, {**python_model(text), "py/libtriton_mine.so": ""}) == []


@pytest.mark.parametrize(("target", "bad"), [("26.02", True), ("26.03", False)])
def test_aoti_packages(tmp_path: Path, target: str, bad: bool) -> None:
    text = replaced(TORCH_CONFIG, "pytorch_libtorch", "torch_aoti")
    files = {"torch/config.pbtxt": text, "torch/1/model.pt2": "x"}
    expected = {("platform-unsupported", "torch/config.pbtxt"), ("model-pt2-unsupported", "torch/1/model.pt2")}
    assert rules(check(tmp_path, files, target=target)) == (expected if bad else set())


def test_tensorrt_configurations(tmp_path: Path) -> None:
    text = """
        platform: "tensorrt_plan" backend: "tensorrt" max_batch_size: 8
        input { name: "x" data_type: TYPE_FP32 dims: [ 3, 4, 4 ] is_non_linear_format_io: true }
        output { name: "y" data_type: TYPE_FP32 dims: [ 4 ] is_shape_tensor: true }
        instance_group { kind: KIND_GPU count: 1 gpus: [ 0, 1 ] profile: [ "0", "1" ] }
    """
    assert check(tmp_path / "good", {"trt/config.pbtxt": text, "trt/1/model.plan": "x"}) == []
    bad = text.replace("KIND_GPU", "KIND_CPU").replace('"1"', '"one"').replace("gpus: [ 0, 1 ]", "")
    found = rules(check(tmp_path / "bad", {"trt/config.pbtxt": bad, "trt/1/model.plan": "x"}))
    assert found == {("tensorrt-needs-gpu", "trt/config.pbtxt"), ("instance-group-profile", "trt/config.pbtxt")}


# Ensembles

STEP = next(line.strip() for line in ENSEMBLE_CONFIG.splitlines() if "model_version: 1" in line)
ENSEMBLE_CASES = [
    ("ensemble-platform", 'platform: "ensemble"', ""),
    ("ensemble-platform", 'platform: "ensemble"', 'platform: "ensemble" backend: "onnxruntime"'),
    ("ensemble-platform", 'platform: "ensemble"', 'backend: "ensemble"'),
    ("ensemble-step", ENSEMBLE_CONFIG[ENSEMBLE_CONFIG.index("ensemble_scheduling"):], ""),
    ("ensemble-step", 'input_map { key: "x" value: "mid" }', ""),
    ("ensemble-field", 'platform: "ensemble"', 'platform: "ensemble" ' + GROUP),
    ("ensemble-field", 'platform: "ensemble"', 'platform: "ensemble" optimization { }'),
    ("ensemble-field", 'platform: "ensemble"', 'platform: "ensemble" model_warmup { batch_size: 0 }'),
    ("ensemble-tensor", 'value: "mid" } }', 'value: "out" } }'),
    ("ensemble-tensor", 'key: "x" value: "in"', 'key: "x" value: "other"'),
    ("ensemble-tensor", 'input { name: "in"',
     'input { name: "spare" data_type: TYPE_FP32 dims: [ 4 ] } input { name: "in"'),
    ("ensemble-tensor", 'output { name: "out"',
     'output { name: "no" data_type: TYPE_FP32 dims: [ 4 ] } output { name: "out"'),
    ("ensemble-tensor", 'key: "x" value: "mid"', 'key: "x" value: "in"'),
    ("ensemble-tensor", 'key: "x" value: "in"', 'key: "x" value: "out"'),
    ("ensemble-member-missing", STEP, STEP.replace('"tiny"', '"absent"')),
    ("ensemble-member-version", STEP, STEP.replace("model_version: 1", "model_version: 7")),
    ("ensemble-batch-size", "max_batch_size: 8", "max_batch_size: 9"),
    ("ensemble-map", STEP, STEP.replace('key: "x"', 'key: "w"')),
    ("ensemble-map", STEP, STEP.replace('key: "y"', 'key: "w"')),
    ("ensemble-data-type", 'name: "in" data_type: TYPE_FP32', 'name: "in" data_type: TYPE_FP16'),
    ("ensemble-shape", 'name: "in" data_type: TYPE_FP32 dims: [ 4 ]', 'name: "in" data_type: TYPE_FP32 dims: [ 5 ]'),
    ("ensemble-cycle", STEP, STEP.replace('"tiny"', '"both"')),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "old", "new"), ENSEMBLE_CASES)
def test_a_bad_ensemble(tmp_path: Path, rule: str, old: str, new: str) -> None:
    found = check(tmp_path, ensemble(replaced(ENSEMBLE_CONFIG, old, new)))
    assert (rule, "both/config.pbtxt") in rules(found)
    assert {item.severity for item in found if item.rule == rule} == {"error"}


def test_an_ensemble_needs_a_version_directory_and_it_may_be_empty(tmp_path: Path) -> None:
    files = ensemble()
    del files["both/1/"]
    assert rules(check(tmp_path, files)) == {("version-missing", "both")}


def test_a_cycle_of_tensors_is_told_as_one(tmp_path: Path) -> None:
    text = replaced(ENSEMBLE_CONFIG, 'key: "x" value: "in"', 'key: "x" value: "out"')
    text = text.replace('input { name: "in" data_type: TYPE_FP32 dims: [ 4 ] }', "")
    reasons = [item.reason for item in check(tmp_path, ensemble(text)) if item.rule == "ensemble-tensor"]
    assert reasons == ["ensemble tensor 'mid' depends on itself through mid, out."]


def test_a_version_the_members_policy_does_not_load(tmp_path: Path) -> None:
    files = {**ensemble(), "tiny/2/model.onnx": tiny()["tiny/1/model.onnx"]}
    assert rules(check(tmp_path, files)) == {("ensemble-member-version", "both/config.pbtxt")}


def test_a_member_without_batches_fits_when_its_full_shape_does(tmp_path: Path) -> None:
    single = replaced(PYTHON_CONFIG, "max_batch_size: 8", "").replace("[ 4 ]", "[ -1, 4 ]")
    text = ENSEMBLE_CONFIG.replace('"tiny" model_version: 1', '"py" model_version: 1')
    assert check(tmp_path, {**ensemble(text), **python_model(single)}) == []
