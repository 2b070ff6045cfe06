import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from pipeline.base.errors import StageError
from pipeline.base.values import Array, GoldenSamples
from pipeline.formats.onnx import graph
from pipeline.precision import calibration, int8, modelopt
from tests.unit.precision.nets import constants, convnet, golden, images, made, one_layer, quantize, silent


@pytest.fixture(autouse=True)
def _no_modelopt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modelopt, "version", lambda: None)


def scales(model: onnx.ModelProto) -> dict[str, Array]:
    """By the tensor that is quantised: one scale, or one per channel."""
    values = constants(model)
    pairs = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    return {node.input[0]: values[node.input[1]] for node in pairs if node.input[1] in values}


def reads_int8(model: onnx.ModelProto) -> set[str]:
    dequantised = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    return {
        node.name
        for node in model.graph.node
        if node.op_type in ("Conv", "Gemm", "MatMul", "Add") and dequantised.issuperset(node.input[:2])
    }


def inputs_of(model: onnx.ModelProto, name: str) -> list[str]:
    return list(next(node for node in model.graph.node if node.name == name).input)


def run(model: onnx.ModelProto, samples: GoldenSamples, **entries: str) -> Array:
    options = onnxruntime.SessionOptions()
    for key, value in entries.items():
        options.add_session_config_entry(f"session.{key}", value)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, dict(sample.inputs))[0] for sample in samples.samples])


def simulated(model: onnx.ModelProto, samples: GoldenSamples) -> Array:
    return run(model, samples, disable_quant_qdq="1")


def cosine(one: Array, other: Array) -> float:
    return float((one * other).sum() / np.linalg.norm(one) / np.linalg.norm(other))


def kernels(model: onnx.ModelProto, folder: Path) -> list[str]:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(str(folder / "optimised.onnx")).graph.node]


@pytest.mark.parametrize("consumer", ["onnxruntime", "tensorrt"])
@pytest.mark.parametrize("method", ["minmax", "entropy", "percentile"])
def test_close_to_fp32_on_samples_calibration_never_saw(tmp_path: Path, consumer: str, method: str) -> None:
    model, outcome = quantize(tmp_path, samples=images(16), consumer=consumer, method=method)
    held_out = images(16, seed=2)
    assert cosine(simulated(model, held_out), run(convnet(), held_out)) > (0.99 if method == "entropy" else 0.999)
    properties = outcome.values
    assert list(outcome.notes) == []
    assert properties["nodes_int8"] == 3
    assert properties["precision"] == "int8"
    assert properties["recipe"] == ("S8S8" if consumer == "tensorrt" else "U8S8")
    assert properties["tool"] == f"onnxruntime {onnxruntime.__version__}"
    expected = {"method": method, "samples": 16} | ({"percentile": 99.99} if method == "percentile" else {})
    assert properties["calibration"] == expected
    assert properties["opset"] == 20


def test_tensorrt_graph(tmp_path: Path) -> None:
    model, _ = quantize(tmp_path)
    values = constants(model)
    pairs = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    zeros = [values[node.input[2]] for node in pairs]
    assert all(zero.dtype == np.int8 and not zero.any() for zero in zeros)
    assert all(name in values for name in ("b1", "b2", "b3"))
    assert reads_int8(model) == {"first", "second", "residual", "linear"}
    assert {tensor.data_type for tensor in model.graph.initializer} == {TensorProto.FLOAT, TensorProto.INT8}
    assert model.graph.output[0].name in {name for node in model.graph.node for name in node.output}
    assert next(node for node in model.graph.node if node.output[0] == "y").name == "linear"  # not requantised


def test_one_symmetric_scale_per_output_channel(tmp_path: Path) -> None:
    model, _ = quantize(tmp_path)
    weights = {name: array for name, array in constants(convnet()).items() if name.startswith("w")}
    found = scales(model)
    for name, array in weights.items():
        per_channel = np.abs(array).reshape(len(array), -1).max(axis=1) / 127
        assert np.allclose(found[f"{name}_quantized"], per_channel, rtol=1e-6)
    largest = max(np.abs(sample.inputs["x"]).max() for sample in images(8).samples)
    assert found["x"] == pytest.approx(largest / 127)


def test_onnxruntime_runs_it_in_integers(tmp_path: Path) -> None:
    model, _ = quantize(tmp_path, consumer="onnxruntime", reduce_range=True)
    found = kernels(model, tmp_path)
    assert [found.count(op) for op in ("QLinearConv", "QLinearAdd", "QGemm")] == [2, 1, 1]
    assert not {"Conv", "Gemm", "Add", "Relu"} & set(found)
    held_out = images(16, seed=2)
    assert cosine(run(model, held_out), run(convnet(), held_out)) > 0.999


def test_reduced_range_is_seven_bits(tmp_path: Path) -> None:
    for reduce_range, limit in ((True, 64), (False, 127)):
        model, outcome = quantize(tmp_path / str(limit), consumer="onnxruntime", reduce_range=reduce_range)
        weights = [array for name, array in constants(model).items() if name.startswith("w") and array.ndim > 1]
        assert [array.dtype for array in weights] == [np.dtype(np.int8)] * 3
        assert {int(np.abs(array.astype(int)).max()) for array in weights} == {limit}
        assert outcome.values["reduce_range"] is reduce_range


def test_tensorrt_weights_keep_eight_bits(tmp_path: Path) -> None:
    model, outcome = quantize(tmp_path, reduce_range=True)
    assert np.abs(constants(model)["w1_quantized"].astype(int)).max() == 127
    assert outcome.values["reduce_range"] is False


def test_every_sample_moves_the_range(tmp_path: Path) -> None:
    arrays = [np.ones((1, 2, 4), np.float32)] * 10 + [np.full((1, 2, 4), 50, np.float32)]
    model, outcome = quantize(tmp_path, one_layer(), golden(arrays))
    assert scales(model)["x"] == pytest.approx(50 / 127)
    assert outcome.values["calibration"]["samples"] == 11


def test_a_sample_left_out_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    every = calibration.feeds

    def all_but_the_first(samples: GoldenSamples) -> Iterator[Any]:
        yield from list(every(samples))[1:]

    monkeypatch.setattr(calibration, "feeds", all_but_the_first)
    with pytest.raises(StageError, match="did not use every sample") as raised:
        quantize(tmp_path, samples=images(9))
    assert raised.value.found == "5 of 9"
    assert not list((tmp_path / "out").iterdir())


def test_entropy_differs_from_minmax(tmp_path: Path) -> None:
    found = [scales(quantize(tmp_path / method, method=method)[0]) for method in ("minmax", "entropy", "percentile")]
    assert float(found[1]["r1"]) < 0.95 * float(found[0]["r1"])
    assert float(found[2]["r1"]) <= float(found[0]["r1"])


@pytest.mark.parametrize("consumer", ["onnxruntime", "tensorrt"])
def test_kept_nodes_and_operators(tmp_path: Path, consumer: str) -> None:
    model, outcome = quantize(tmp_path / "a", consumer=consumer, keep_nodes=["second"])
    assert "second" not in reads_int8(model)
    assert {"first", "linear"} <= reads_int8(model)
    assert list(outcome.notes) == ["2 of 3 Conv, Gemm and MatMul nodes are int8", "kept in fp32: second (as asked for)"]
    assert outcome.values["kept"] == ["second"]
    assert np.array_equal(constants(model)["w2"], constants(convnet())["w2"])
    assert inputs_of(model, "second")[1:] == ["w2", "b2"]
    if consumer == "tensorrt":
        assert inputs_of(model, "second")[0] == "r1"  # although the sum reads it rounded
    model, outcome = quantize(tmp_path / "b", consumer=consumer, keep_ops=["Gemm", "Add", "Softmax"])
    assert outcome.values["nodes_int8"] == 2
    assert not {"linear", *(["residual"] if consumer == "tensorrt" else [])} & reads_int8(model)
    assert outcome.notes[1:] == ("no Softmax in the graph to keep in fp32",)
    assert outcome.values["kept"] == ["linear", "residual"]


def test_a_name_that_is_no_nodes(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="no node has a name") as raised:
        quantize(tmp_path, keep_nodes=["first", "frist", "third"])
    assert raised.value.found == "frist, third"


@pytest.mark.parametrize("options", [{"keep_ops": ["Conv", "Gemm"]}, {"keep_nodes": ["first", "second", "linear"]}])
def test_nothing_left_to_quantise(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(StageError, match="no Conv, Gemm or MatMul") as raised:
        quantize(tmp_path, **options)
    assert raised.value.found == "1 Add, 2 Conv, 1 Flatten, 1 Gemm, 1 GlobalAveragePool, 2 Relu"
    assert not list((tmp_path / "out").iterdir())


def test_a_graph_without_layers(tmp_path: Path) -> None:
    model = made([helper.make_node("Relu", ["x"], ["y"])], {}, ["N", 4], ["N", 4])
    with pytest.raises(StageError) as raised:
        quantize(tmp_path, model, golden([np.ones((1, 4), np.float32)]))
    assert raised.value.found == "1 Relu"


def test_a_layer_that_cannot_be_quantised_is_named(tmp_path: Path) -> None:
    """The one MatMul has its weights on the left: one scale per channel would lie along the summed dimension."""
    model = made(
        [helper.make_node("MatMul", ["w", "x"], ["y"], name="left")],
        {"w": np.eye(4, dtype=np.float32)},
        ["N", 4, 4],
        ["N", 4, 4],
    )
    with pytest.raises(StageError, match="could be quantised") as raised:
        quantize(tmp_path, model, golden([np.ones((1, 4, 4), np.float32)]))
    assert raised.value.found == "1 MatMul"


@pytest.mark.parametrize("consumer", ["onnxruntime", "tensorrt"])
@pytest.mark.parametrize("method", ["minmax", "entropy", "percentile"])
def test_an_activation_that_is_always_zero(tmp_path: Path, consumer: str, method: str) -> None:
    zeros = golden([np.zeros((1, 2, 4), np.float32)] * 5)
    model, _ = quantize(tmp_path, one_layer(), zeros, consumer=consumer, method=method)
    assert scales(model)["x"] > 0
    assert not simulated(model, zeros).any()


def test_a_channel_of_zero_weights(tmp_path: Path) -> None:
    weights = np.eye(4, dtype=np.float32)
    weights[:, 2] = 0
    model = one_layer()
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, "w"))
    made_int8, _ = quantize(tmp_path, model, golden([np.ones((1, 2, 4), np.float32)]))
    assert (scales(made_int8)["w_quantized"] > 0).all()
    assert np.allclose(simulated(made_int8, golden([np.ones((1, 2, 4), np.float32)]))[0, 0], [1, 1, 0, 1])


@pytest.mark.parametrize("consumer", ["onnxruntime", "tensorrt"])
def test_masks_and_biases_stay_fp32(tmp_path: Path, consumer: str) -> None:
    """scores = x @ wq, masked by -3.4e38 where x < 0, as attention does it; an Add of a constant between."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"], name="layer"),
        helper.make_node("Add", ["product", "b"], ["scores"], name="bias"),
        helper.make_node("Less", ["x", "zero"], ["hidden"], name="less"),
        helper.make_node("Where", ["hidden", "far", "zero"], ["mask"], name="where"),
        helper.make_node("Add", ["scores", "mask"], ["masked"], name="masking"),
        helper.make_node("Softmax", ["masked"], ["shares"], name="softmax"),
        helper.make_node("MatMul", ["shares", "w"], ["y"], name="last"),
    ]
    random = np.random.default_rng(0)
    weights = {
        "w": random.standard_normal((4, 4), np.float32),
        "b": np.float32([1, 2, 3, 4]),
        "zero": np.float32(0),
        "far": np.finfo(np.float32).min,
    }
    model = made(nodes, weights, ["N", "L", 4], ["N", "L", 4])
    samples = golden([random.standard_normal((1, length, 4), np.float32) for length in (2, 5, 3, 5, 5, 2)])
    result, outcome = quantize(tmp_path, model, samples, consumer=consumer)
    assert reads_int8(result) == {"layer", "last"}
    assert [note.partition(" to ")[0] for note in outcome.notes] == ["kept in fp32: masking (values from -3.4e+38"]
    for sample in samples.samples:
        one = golden([sample.inputs["x"]])
        assert cosine(simulated(result, one), run(model, one)) > 0.999


def test_weights_in_constant_nodes_and_nodes_without_names(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.diag(np.float32([1, 2, 4, 8])))
    nodes = [
        helper.make_node("Constant", [], ["w"], value=weight),
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"], name="y"),
        helper.make_node("MatMul", ["b", "w"], ["y"]),
    ]
    model = made(nodes, {}, ["N", 4], ["N", 4])
    samples = golden([np.ones((1, 4), np.float32)] * 3)
    result, outcome = quantize(tmp_path / "a", model, samples)
    assert np.allclose(scales(result)["w_quantized"], np.float32([1, 2, 4, 8]) / 127, rtol=1e-6)
    assert outcome.values["nodes_int8"] == 2
    result, outcome = quantize(tmp_path / "b", model, samples, keep_nodes=["a"])
    assert outcome.values["nodes_int8"] == 1
    assert reads_int8(result) == {"y_"}  # the name y was taken


def test_weights_and_tensors_that_a_kept_node_shares_are_not_rounded_for_it(tmp_path: Path) -> None:
    """A kept node and a quantised one read the same tensor and the same weights; the tensor is an output as well."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["z"], name="first"),
        helper.make_node("MatMul", ["z", "w"], ["a"], name="kept"),
        helper.make_node("MatMul", ["z", "w"], ["b"], name="other"),
        helper.make_node("Sub", ["a", "b"], ["y"], name="difference"),
    ]
    random = np.random.default_rng(0)
    model = made(nodes, {"w": random.standard_normal((4, 4), np.float32)}, ["N", 4], ["N", 4])
    model.graph.output.insert(0, helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 4]))
    samples = golden([random.standard_normal((1, 4), np.float32) for _ in range(20)])
    result, _ = quantize(tmp_path, model, samples, keep_nodes=["kept"])
    assert reads_int8(result) == {"first", "other"}
    assert inputs_of(result, "kept")[0] == "z"
    assert np.array_equal(constants(result)[inputs_of(result, "kept")[1]], constants(model)["w"])
    assert [item.name for item in result.graph.output] == ["z", "y"]
    z = simulated(result, samples)
    steps = z / scales(result)["z"]
    assert np.abs(steps - steps.round()).max() > 0.3
    assert cosine(z, run(model, samples)) > 0.999


def test_a_gemm_bias_that_is_no_vector_stays_fp32(tmp_path: Path) -> None:
    """ONNX Runtime's quantiser takes its elements for channels."""
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], name="odd"),
        helper.make_node("MatMul", ["h", "w"], ["y"], name="even"),
    ]
    weights = {"w": np.eye(4, dtype=np.float32), "b": np.float32([[3]])}
    model = made(nodes, weights, ["N", 4], ["N", 4])
    result, outcome = quantize(tmp_path, model, golden([np.ones((1, 4), np.float32)]), consumer="onnxruntime")
    assert outcome.notes[1] == "kept in fp32: odd (its bias is not a vector)"
    assert "odd" not in reads_int8(result)


@pytest.mark.parametrize("consumer", ["onnxruntime", "tensorrt"])
def test_twice_is_the_same(tmp_path: Path, consumer: str) -> None:
    for name in ("a", "b"):
        quantize(tmp_path / name, consumer=consumer, method="percentile")
    assert (tmp_path / "a/out/model.onnx").read_bytes() == (tmp_path / "b/out/model.onnx").read_bytes()


def test_a_directory_with_external_data(tmp_path: Path) -> None:
    source = tmp_path / "model.onnx"
    source.mkdir()
    onnx.save_model(convnet(), str(source / "model.onnx"), save_as_external_data=True, size_threshold=0)
    (tmp_path / "out").mkdir()
    before = sorted(item.name for item in source.iterdir())
    options = {"consumer": "tensorrt", "method": "minmax", "percentile": 99.99, "reduce_range": False}
    int8.quantize(source, images(8), tmp_path / "out", **options, progress=silent)  # type: ignore[arg-type]
    assert sorted(item.name for item in source.iterdir()) == before
    assert sorted(item.name for item in tmp_path.iterdir()) == ["model.onnx", "out"]
    quantize(tmp_path / "other")
    one, other = (constants(graph.load(tmp_path / name)) for name in ("out/model.onnx", "other/out/model.onnx"))
    assert one.keys() == other.keys()
    assert all(np.array_equal(array, other[name]) for name, array in one.items())


def test_an_old_opset(tmp_path: Path) -> None:
    model = made(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": np.eye(4, dtype=np.float32)}, ["N", 4], ["N", 4], 12
    )
    with pytest.raises(StageError, match="no scales per channel") as raised:
        quantize(tmp_path, model, golden([np.ones((1, 4), np.float32)]))
    assert raised.value.found == "opset 12, expected 13 or later"


def test_a_failing_quantiser_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any, **options: Any) -> None:
        raise ValueError("no such luck")

    monkeypatch.setattr(int8, "quantize_static", fails)
    with pytest.raises(StageError, match="quantization failed") as raised:
        quantize(tmp_path)
    assert raised.value.found == "ValueError: no such luck"
    assert sorted(item.name for item in tmp_path.rglob("*")) == ["fp32.onnx", "out"]


def test_nothing_is_said_and_logging_stays_as_it_was(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    state = (list(logging.root.handlers), list(logging.root.filters))
    bias = [helper.make_node("Gemm", ["x", "w", "h"], ["y"], name="odd")]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"], name="layer"), *bias]
    model = made(nodes, {"w": np.eye(4, dtype=np.float32)}, ["N", 4], ["N", 4])
    quantize(tmp_path, model, golden([np.ones((1, 4), np.float32)]), method="entropy")
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []
    assert (list(logging.root.handlers), list(logging.root.filters)) == state


def test_modelopt_is_used_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_onnxruntime, _ = quantize(tmp_path / "a")
    asked: list[dict[str, Any]] = []

    def fake(file: Path, samples: GoldenSamples, **options: Any) -> tuple[onnx.ModelProto, int]:
        assert reads_int8(graph.load(file)) == set()
        asked.append(options)
        return by_onnxruntime if len(asked) < 3 else convnet(), len(samples.samples) - (len(asked) == 2)

    monkeypatch.setattr(modelopt, "version", lambda: "0.47.0")
    monkeypatch.setattr(modelopt, "quantize", fake)
    _, outcome = quantize(tmp_path / "b", keep_ops=["Mul"])
    assert outcome.values["tool"] == "nvidia-modelopt 0.47.0"
    assert outcome.values["calibration"] == {"method": "minmax", "samples": 8}
    assert asked == [{"keep_ops": ["Mul"], "keep_nodes": ()}]
    with pytest.raises(StageError, match="did not use every sample"):
        quantize(tmp_path / "c")
    for folder, method in (("d", "entropy"), ("e", "percentile")):
        _, outcome = quantize(tmp_path / folder, method=method)
        assert outcome.values["tool"].startswith("onnxruntime")
        assert list(outcome.notes) == [
            "made with the ONNX Runtime recipe: of the methods, ModelOpt 0.47.0 has minmax only"
        ]
    _, outcome = quantize(tmp_path / "f", consumer="onnxruntime")
    assert outcome.values["tool"].startswith("onnxruntime")
    assert list(outcome.notes) == []
    assert len(asked) == 2
    _, outcome = quantize(tmp_path / "g")
    assert outcome.values["tool"].startswith("onnxruntime")
    assert list(outcome.notes) == [
        "made with the ONNX Runtime recipe: ModelOpt 0.47.0 found no layer that gains by int8"
    ]
