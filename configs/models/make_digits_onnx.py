"""Makes digits.onnx, which from_onnx.yaml serves: a perceptron trained by scikit-learn, written with onnx.helper.

Run from the root: python configs/models/make_digits_onnx.py
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from sklearn.neural_network import MLPClassifier

from pipeline.base.values import Signature, TensorSpec
from pipeline.data import datasets
from pipeline.schema.model import Data

SIGNATURE = Signature(
    inputs=(TensorSpec(name="image", dtype="float32", shape=("N", 1, 8, 8), layout="NCHW"),),
    outputs=(TensorSpec(name="logits", dtype="float32", shape=("N", 10)),),
    batch="N",
)


def main() -> None:
    """Train on the same part of the digits that the configuration's golden samples are not taken from."""
    data = datasets.load(Data(dataset="digits", image_size=(8, 8)), signature=SIGNATURE, resolve=Path, seed=0)
    pixels = np.concatenate([sample["image"] for sample in data.train.inputs]).reshape(-1, 64)
    model = MLPClassifier((32,), random_state=0, max_iter=300).fit(pixels, data.train.targets)
    weights = {}
    for index, (matrix, bias) in enumerate(zip(model.coefs_, model.intercepts_, strict=True)):
        weights |= {f"w{index}": matrix.astype(np.float32), f"b{index}": bias.astype(np.float32)}
    nodes = [
        helper.make_node("Flatten", ["image"], ["pixels"]),
        helper.make_node("Gemm", ["pixels", "w0", "b0"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("Gemm", ["active", "w1", "b1"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    onnx_model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(onnx_model, full_check=True)
    onnx.save(onnx_model, Path(__file__).with_name("digits.onnx"))


if __name__ == "__main__":
    main()
