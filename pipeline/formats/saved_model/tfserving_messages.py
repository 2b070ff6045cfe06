"""The few protobuf messages of TF-Serving that this tool writes and reads.

Declared here, name by name and number by number, as TensorFlow Serving 2.19 declares them (Apache-2.0):
tensorflow_serving/config/model_server_config.proto, apis/model.proto and apis/predict.proto of
github.com/tensorflow/serving. The tests hold them against the package tensorflow-serving-api; that package itself needs
the distribution ``tensorflow``, and would break an installation that has ``tensorflow-cpu``. Fields not used here are
left out; protobuf skips them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from pipeline.base.errors import ConfigError

PACKAGE = "tensorflow.serving"
Fields = tuple[tuple[int, str, str], ...]

CONFIG: Mapping[str, Fields] = {
    "ModelServerConfig": ((1, "model_config_list", "ModelConfigList"),),
    "ModelConfigList": ((1, "config", "repeated ModelConfig"),),
    "ModelConfig": ((1, "name", "string"), (2, "base_path", "string"), (4, "model_platform", "string")),
}
"""Number, name and type of every field, by message; types that are no scalars are messages of the same package."""

PREDICT: Mapping[str, Fields] = {
    "ModelSpec": ((1, "name", "string"), (2, "version", "google.protobuf.Int64Value"), (3, "signature_name", "string")),
    "PredictRequest": (
        (1, "model_spec", "ModelSpec"),
        (2, "inputs", "map tensorflow.TensorProto"),
        (3, "output_filter", "repeated string"),
    ),
    "PredictResponse": ((2, "model_spec", "ModelSpec"), (1, "outputs", "map tensorflow.TensorProto")),
}


def models_config(names: Iterable[str], folder: str) -> str:
    """The text of ``models.config``: a ModelServerConfig that lists SavedModels, each a folder of ``folder``.

    The server finds that as an absolute path: ``/models``.
    """
    from google.protobuf import text_format

    config = _config_class()()
    for name in names:
        config.model_config_list.config.add(name=name, base_path=f"{folder}/{name}", model_platform="tensorflow")
    text = text_format.MessageToString(config, as_utf8=True)
    if parse_models_config(text, "models.config as written") != {name: f"{folder}/{name}" for name in names}:
        raise AssertionError(f"the text does not give back the models:\n{text}")
    return text


def parse_models_config(text: str, where: str) -> dict[str, str]:
    """Base path by model name.

    Raises:
        ConfigError: not the text of a ModelServerConfig; ``where`` is ``path:line:column``.
    """
    from google.protobuf import text_format

    try:
        config = text_format.Parse(text, _config_class()())
    except text_format.ParseError as error:
        line, column = error.GetLine() or 1, error.GetColumn() or 1
        raise ConfigError(
            "not a ModelServerConfig",
            found=str(error).removeprefix(f"{line}:{column} : "),
            where=f"{where}:{line}:{column}",
            hint="fields are spelled as in TF-Serving's model_server_config.proto",
        ) from error
    return {item.name: item.base_path for item in config.model_config_list.config}


@cache
def _config_class() -> Any:
    return classes(CONFIG, ())["ModelServerConfig"]


def classes(messages: Mapping[str, Fields], imports: Iterable[Any]) -> dict[str, Any]:
    """Message classes by name, in a descriptor pool of their own: tensorflow-serving-api may be loaded beside them.

    ``imports`` are the descriptors of the files that declare the other packages' messages.
    """
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    pool = descriptor_pool.DescriptorPool()
    known: dict[str, Any] = {}
    for file in imports:
        _add(pool, file, known)
    declared = descriptor_pb2.FileDescriptorProto(
        name="pipeline/tfserving.proto", package=PACKAGE, syntax="proto3", dependency=list(known)
    )
    for name, fields in messages.items():
        message = declared.message_type.add(name=name)
        for number, field, kind in fields:
            _declare(message, number, field, kind)
    pool.Add(declared)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}")) for name in messages}


def _add(pool: Any, file: Any, known: dict[str, Any]) -> None:
    """Put a file into the pool, after those it imports."""
    if file.name not in known:
        for other in file.dependencies:
            _add(pool, other, known)
        pool.AddSerializedFile(file.serialized_pb)
        known[file.name] = file


def _declare(message: Any, number: int, name: str, kind: str) -> None:
    from google.protobuf import descriptor_pb2

    types = descriptor_pb2.FieldDescriptorProto
    label, _, bare = kind.rpartition(" ")
    field = message.field.add(name=name, number=number, label=types.LABEL_REPEATED if label else types.LABEL_OPTIONAL)
    if bare == "string":
        field.type = types.TYPE_STRING
        return
    field.type = types.TYPE_MESSAGE
    target = f".{bare}" if "." in bare else f".{PACKAGE}.{bare}"
    if label != "map":
        field.type_name = target
        return
    entry = message.nested_type.add(name=f"{name.capitalize()}Entry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=types.LABEL_OPTIONAL, type=types.TYPE_STRING)
    entry.field.add(name="value", number=2, label=types.LABEL_OPTIONAL, type=types.TYPE_MESSAGE, type_name=target)
    field.type_name = f".{PACKAGE}.{message.name}.{entry.name}"
