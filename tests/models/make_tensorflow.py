"""Makes tiny Keras models and SavedModels: ``python make_tensorflow.py FOLDER``; in a process of its own.

``FOLDER/answers.npz`` holds what Keras itself answers for ``inputs``. ``FOLDER/protobuf.json`` holds what the package
tensorflow-serving-api, on PYTHONPATH, says of TF-Serving's messages.
"""

import json
import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

FOLDER = Path(sys.argv[1])


def one() -> keras.Model:
    """[N, 4] -> probabilities [N, 3]; the names are not those of the YAML."""
    layers = [keras.Input((4,)), keras.layers.Dense(5, activation="relu"), keras.layers.Dense(3, activation="softmax")]
    return keras.Sequential(layers)


def two() -> keras.Model:
    """Inputs ``b`` and ``a``, in that order; outputs ``total`` and ``difference``."""
    b, a = keras.Input((2,), name="b"), keras.Input((2,), name="a")
    total = keras.layers.Dense(2, name="total")(keras.layers.Add()([a, b]))
    return keras.Model([b, a], [total, keras.layers.Subtract(name="difference")([a, b])])


def mapping() -> keras.Model:
    """A mapping in, a mapping out."""
    a = keras.Input((2,), name="a")
    return keras.Model({"a": a}, {"doubled": a + a})


def code() -> keras.Model:
    """Holds Python code."""
    return keras.Sequential([keras.Input((4,)), keras.layers.Lambda(lambda x: x[:, :3] * 2.0, output_shape=(3,))])


class Numbers(tf.Module):
    """y = 2 x, under two signatures of which none is serving_default."""

    @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32, name="x")])
    def double(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": 2.0 * x}


def save() -> None:
    keras.utils.set_random_seed(0)
    x = np.arange(12, dtype=np.float32).reshape(3, 4) / 10
    pair = {"a": x[:, :2], "b": x[:, 2:]}
    model = one()
    model.save(FOLDER / "one.keras")
    model.save(FOLDER / "one.h5")
    model.export(FOLDER / "one_saved", verbose=False)
    both = two()
    both.save(FOLDER / "two.keras")
    mapping().save(FOLDER / "mapping.keras")
    code().save(FOLDER / "code.keras")
    code().save(FOLDER / "code.h5")
    total, difference = both.predict([pair["b"], pair["a"]], verbose=0)
    probabilities = model.predict(x, verbose=0)
    np.savez(FOLDER / "answers.npz", x=x, **pair, total=total, difference=difference, probabilities=probabilities)
    numbers = Numbers()
    tf.saved_model.save(tf.Module(), FOLDER / "unsigned")
    signatures = {"first": numbers.double, "second": numbers.double}
    tf.saved_model.save(numbers, FOLDER / "signed", signatures=signatures)


def describe() -> None:
    from google.protobuf import text_format
    from tensorflow_serving.apis import predict_pb2
    from tensorflow_serving.config import model_server_config_pb2

    config, predict = model_server_config_pb2.DESCRIPTOR, predict_pb2.DESCRIPTOR
    spec = predict_pb2.PredictRequest().model_spec.DESCRIPTOR
    messages = [*config.message_types_by_name.values(), *predict.message_types_by_name.values(), spec]
    rows = {message.name: [[field.number, field.name, kind(field)] for field in message.fields] for message in messages}
    parsed = text_format.Parse(sys.stdin.read(), model_server_config_pb2.ModelServerConfig())
    listed = {item.name: [item.base_path, item.model_platform] for item in parsed.model_config_list.config}
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = "m", "serving_default"
    request.model_spec.version.value = 7
    request.inputs["x"].CopyFrom(tf.make_tensor_proto([[1.0, 2.0]], tf.float32))
    text = request.SerializeToString(deterministic=True).hex()
    (FOLDER / "protobuf.json").write_text(json.dumps({"messages": rows, "listed": listed, "request": text}))


def kind(field) -> str:
    """As formats/saved_model/tfserving_messages.py writes it."""
    message = field.message_type
    if message is not None and message.GetOptions().map_entry:
        return f"map {kind(message.fields_by_name['value'])}"
    name = "string" if field.type == field.TYPE_STRING else message.full_name if message else "?"
    repeated = "repeated " if field.label == field.LABEL_REPEATED else ""
    return repeated + name.removeprefix("tensorflow.serving.")  # what ours has not is not compared


if __name__ == "__main__":
    save()
    describe()
