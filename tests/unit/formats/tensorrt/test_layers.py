from dataclasses import replace
from typing import Any

import pytest

from pipeline.formats.tensorrt import layers
from pipeline.formats.tensorrt.engine_session import OptimizationProfile
from pipeline.formats.tensorrt.interface import Port
from pipeline.formats.tensorrt.layers import Layer, Tensor

from .layer_tables import ATTENTION, HALF, INT8

CLASSIC = """\
Layers:
Name: /f.0/Conv + /f.1/Relu, LayerType: CaskConvolution, Inputs: [ { Name: Reformatted Input Tensor 0 to /f.0/Conv, \
Location: Device, Dimensions: [1,3,224,224], Format/Datatype: Half }], Outputs: [ { Name: /f.1/Relu_output_0, \
Location: Device, Dimensions: [1,64,224,224], Format/Datatype: Row major linear FP16 format }], ParameterType: \
Convolution, TacticValue: 0x0, StreamId: 0, Metadata: [ONNX Layer: /f.0/Conv]\x1e[ONNX Layer: /f.1/Relu]
Name: c, LayerType: CaskConvolution, Inputs: [ { Name: q, Location: Device, Dimensions: [4,64,56,56], Format/Datatype: \
Thirty-two wide channel vectorized row major Int8 format }], Outputs: [], Metadata: [ONNX Layer: c]
"""  # put together from public logs of TensorRT 8 and 10


def product(dtype: str = "Half", *, name: str = "l", nodes: tuple[str, ...] = ("n",), weight: str = "") -> Layer:
    return Layer(
        name=name,
        type="gemm",
        inputs=(Tensor(dtype=dtype, shape=(-1, 8)),),
        constants=(
            Tensor(dtype="Float", shape=(1,)),
            Tensor(dtype=weight or dtype, shape=(8, 4)),
            Tensor(dtype="Float", shape=(1, 4)),
        ),
        outputs=(Tensor(dtype="Float", shape=(-1, 4)),),
        nodes=nodes,
    )


def test_a_real_table_is_read_whole() -> None:
    nothing, moved, conv, gemm = layers.parse(HALF)
    assert (nothing.type, nothing.dtype, nothing.nodes) == ("shape_call", "", ())
    assert (moved.type, moved.is_product, moved.nodes) == ("kgen", False, ("cast_in", "conv1", "relu1"))
    assert (conv.name, conv.type, conv.is_product) == ("conv1_myl0_2", "correlation", True)
    assert conv.inputs == (Tensor(dtype="Half", shape=(-1, 4, 16, 16)),)
    assert [tensor.shape for tensor in conv.constants] == [(16, 4, 3, 3), (1,), (1,)]
    assert [tensor.dtype for tensor in conv.constants] == ["Half", "Float", "Float"]
    assert (conv.arithmetic, conv.nodes) == (("Half",), ("conv1", "relu1"))
    assert (gemm.type, gemm.is_product, gemm.outputs[0].dtype) == ("runtime_fusion", True, "Float")
    assert str(gemm) == "__myl_FcCast_myl0_6 (runtime_fusion) in Half, from fc, cast_out"


def test_attention_is_a_product() -> None:
    (attention,) = layers.parse(ATTENTION)
    assert (attention.type, attention.is_product, attention.arithmetic) == ("kgen", True, ("Half",))
    assert attention.nodes[-1] == "node_MatMul_104"


def test_the_inputs_and_outputs_are_read_with_their_profiles() -> None:
    inputs, outputs = layers.ports(HALF)
    shapes = OptimizationProfile(min=(1, 3, 16, 16), opt=(4, 3, 16, 16), max=(8, 3, 16, 16))
    assert inputs == (Port(name="x", dtype="float32", shape=(-1, 3, 16, 16), profiles=(shapes,)),)
    assert outputs == (Port(name="y", dtype="float32", shape=(-1, 10)),)


def test_a_table_of_classic_tensorrt_is_read_too() -> None:
    first, second = layers.parse(CLASSIC)
    assert (first.is_product, first.arithmetic) == (True, ("Half",))
    assert first.nodes == ("/f.0/Conv", "/f.1/Relu")
    assert first.outputs == (Tensor(dtype="Half", shape=(1, 64, 224, 224)),)
    assert second.arithmetic == ("Int8",)
    assert layers.ports(CLASSIC) == ((), ())


def test_what_is_no_table_has_no_layers() -> None:
    assert layers.parse("") == ()
    assert layers.parse("Layers:\nsomething else, LayerType: none") == ()


def test_layers_are_counted_by_type_of_layer_and_of_values() -> None:
    table = layers.parse(INT8)
    assert layers.counts(table) == {"Int8": 3}
    assert layers.summary(table) == {"correlation": {"Int8": 1}, "gemm": {"Int8": 1}, "kgen": {"Int8": 1}}
    assert layers.counts(layers.parse(HALF)) == {"Half": 3}
    assert "shape_call" not in layers.summary(layers.parse(HALF))


def test_weights_decide_also_where_scales_and_biases_are_float() -> None:
    assert product("Int8").arithmetic == ("Int8",)
    assert product("Float", weight="Int8").arithmetic == ("Int8", "Float")
    scalars = replace(product("Half"), constants=(Tensor(dtype="Float", shape=(1,)),))
    assert scalars.arithmetic == ("Half",)


@pytest.mark.parametrize(
    ("record", "precision", "faults"),
    [
        (HALF, "fp16", 0),
        (HALF, "fp32", 2),
        (HALF, "bf16", 2),
        (HALF, "int8", 2),
        (INT8, "int8", 0),
        (INT8, "fp32", 2),
        (INT8, "fp16", 2),
    ],
)
def test_a_mislabelled_engine_is_found_by_its_layers(record: str, precision: Any, faults: int) -> None:
    found = layers.judge(layers.parse(record), precision)
    assert len(found) == faults
    if faults:
        assert found[0].startswith("conv1_myl0_2 (correlation) in ")


def test_one_float_product_among_many_is_named() -> None:
    table = [product("Half"), product("Float", name="odd", nodes=("head",)), product("Half")]
    assert layers.judge(table, "fp16") == ["odd (gemm) in Float, from head"]
    assert layers.judge(table, "fp16", kept=["other"]) == ["odd (gemm) in Float, from head"]
    assert layers.judge(table, "fp16", kept=["head"]) == []
    assert layers.judge([product("BFloat16")], "bf16") == []
    assert layers.judge([product("Float")], "fp32") == []


def test_layers_of_a_recurrent_node_name_none_and_pass_where_something_was_kept() -> None:
    table = [product("Half"), product("Float", name="step", nodes=())]
    assert layers.judge(table, "fp16") == ["step (gemm) in Float"]
    assert layers.judge(table, "fp16", kept=["lstm"]) == []


def test_keeping_everything_is_not_fp16() -> None:
    assert layers.judge([product("Float", nodes=("a",))], "fp16", kept=["a"]) == ["no layer has a tensor in Half"]


def test_kept_nodes_that_are_not_in_float_are_told() -> None:
    table = [product("Float", nodes=("a", "b")), product("Half", nodes=("c", "d")), product("Half", nodes=("b",))]
    assert layers.narrowed(table, ["a", "b", "c", "gone"]) == ["c"]
    assert layers.narrowed(table, []) == []


def test_int8_needs_one_product_in_int8_and_all_that_are_quantised() -> None:
    mixed = [product("Int8", nodes=("a",)), product("Float", nodes=("b",))]
    assert layers.judge(mixed, "int8", quantized=["a"]) == []
    assert layers.judge(mixed, "int8", quantized=["a", "b", "c"]) == [
        "node b is quantised in the graph and not in the engine",
        "node c is quantised in the graph and not in the engine",
    ]
    assert layers.judge(mixed[1:], "int8") == ["l (gemm) in Float, from b"]
    assert layers.judge([], "int8") == ["the engine has no convolution and no matrix product"]
