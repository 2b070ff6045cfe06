"""Triton's ModelConfig protobuf: built from plain values, written as text, read back; never from templates.

The message is that of tritonclient 2.51.0. Only its generated module is loaded: the package around it imports
gRPC, which ``plan`` must not wait for.
"""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.base.errors import ConfigError, MissingError

FieldPath = tuple[str | int, ...]


def unknown_fields(fields: Mapping[str, Any]) -> list[tuple[FieldPath, str]]:
    """Names that ModelConfig does not have, anywhere in a nested mapping: path, and the nearest field that it has."""
    return [(path, text) for path, unknown, text in _problems(_message_class().DESCRIPTOR, fields, ()) if unknown]


def wrong_values(fields: Mapping[str, Any]) -> list[tuple[FieldPath, str]]:
    """Values that ModelConfig's known fields refuse: (path, message with what was expected) for each."""
    return [(path, text) for path, unknown, text in _problems(_message_class().DESCRIPTOR, fields, ()) if not unknown]


def overlay(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay ``over`` on ``base``: mappings merge, anything else replaces, and ``build`` leaves out what is None then.

    ``version_policy`` is replaced whole, being a choice of one of several messages.
    """
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping) and key != "version_policy"
        result[key] = overlay(result[key], value) if both else value
    return result


def build(fields: Mapping[str, Any]) -> Any:
    """A ``ModelConfig`` message from plain values (protobuf's JSON mapping; None leaves a field unset).

    Raises:
        ConfigError: an unknown field, or a value of the wrong type.
    """
    from google.protobuf import json_format

    found = [f"{_dotted(path)}: {text}" for path, _, text in _problems(_message_class().DESCRIPTOR, fields, ())]
    if found:
        raise ConfigError("these fields make no ModelConfig", found="\n".join(found))
    try:
        return json_format.ParseDict(dict(fields), _message_class()())
    except json_format.ParseError as error:
        raise ConfigError("these fields make no ModelConfig", found=str(error)) from error


def to_text(config: Any) -> str:
    """``config.pbtxt``: protobuf text format, fields in the order of their numbers."""
    from google.protobuf import text_format

    text = text_format.MessageToString(config, as_utf8=True, use_short_repeated_primitives=True)
    if parse_text(text, "config.pbtxt as written") != config:
        raise AssertionError(f"the text does not give back the message:\n{text}")
    return text


def parse_text(text: str, where: str) -> Any:
    """Read the text of a ``config.pbtxt``; ``where`` is its path, for messages.

    Raises:
        ConfigError: not the text of a ModelConfig; its ``where`` is ``path:line:column``.
    """
    from google.protobuf import text_format

    try:
        return text_format.Parse(text, _message_class()())
    except text_format.ParseError as error:
        line, column = error.GetLine() or 1, error.GetColumn() or 1
        raise ConfigError(
            "not a ModelConfig",
            found=str(error).removeprefix(f"{line}:{column} : "),
            where=f"{where}:{line}:{column}",
            hint="fields are spelled as in Triton's model_config.proto",
        ) from error
    except ValueError as error:  # a string that is not UTF-8, for example
        raise ConfigError("not a ModelConfig", found=str(error), where=where) from error


def to_dict(config: Any) -> dict[str, Any]:
    """Plain values of a message, under the proto's field names (protobuf's JSON mapping: int64 as text)."""
    from google.protobuf import json_format

    return json_format.MessageToDict(config, preserving_proto_field_name=True)


def takes_files(config: Any) -> bool:
    """Whether a client may send a file as it is, as a bare HTTP body: one input, a single text per sample, batched.

    Source of the rule: Triton's raw binary requests (``Inference-Header-Content-Length: 0``).
    """
    inputs = to_dict(config).get("input", [])
    single = len(inputs) == 1 and (inputs[0]["data_type"], inputs[0]["dims"]) == ("TYPE_STRING", ["1"])
    return single and config.max_batch_size > 0


def served_versions(config: Any, numbers: Iterable[int]) -> list[int]:
    """The versions, of those there are, that a server loads by the message's ``version_policy``, ascending.

    Source of the rule: core r24.10, VersionsToLoad and NormalizeModelConfig; seen with the embedded server. Without a
    policy that is the latest one, with a policy that chooses nothing all, and with ``latest { }`` none.
    """
    present, policy = sorted(set(numbers)), config.version_policy
    if not config.HasField("version_policy"):
        return present[-1:]
    if policy.HasField("specific"):
        return [number for number in present if number in policy.specific.versions]
    if policy.HasField("latest"):
        return present[max(len(present) - policy.latest.num_versions, 0) :]
    return present


@cache
def _message_class() -> Any:
    package = importlib.util.find_spec("tritonclient")
    if package is None or not package.submodule_search_locations:
        raise MissingError("tritonclient is not installed", hint="pip install 'tritonclient[grpc,http]==2.51.0'")
    path = Path(package.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("pipeline_model_config_pb2", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ModelConfig


def _dotted(path: FieldPath) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def _problems(descriptor: Any, value: Any, path: FieldPath) -> Iterator[tuple[FieldPath, bool, str]]:
    """(path, whether it is an unknown name, message) for all that a message type refuses in a value."""
    known = descriptor.fields_by_name
    if not isinstance(value, Mapping):
        yield path, False, f"expected a mapping with {', '.join(known) or 'nothing in it'}; found {value!r}"
        return
    for name, item in value.items():
        if name not in known:
            yield (*path, name), True, _unknown(str(name), list(known))
        elif item is not None:
            yield from _field_problems(known[name], item, (*path, name))
    for choice in descriptor.oneofs:
        given = [field.name for field in choice.fields if value.get(field.name) is not None]
        if len(given) > 1:
            yield (*path, given[1]), False, f"only one of these may be given: {', '.join(given)}"


def _unknown(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    advice = f"did you mean `{close[0]}`?" if close else f"known here: {', '.join(known) or 'nothing'}"
    return f"no such field in Triton's ModelConfig; {advice}"


def _field_problems(field: Any, value: Any, path: FieldPath) -> Iterator[tuple[FieldPath, bool, str]]:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        if not isinstance(value, Mapping):
            yield path, False, f"expected a mapping; found {value!r}"
            return
        values: list[tuple[str | int, Any]] = list(value.items())
        field = field.message_type.fields_by_name["value"]
    elif field.label == field.LABEL_REPEATED:
        if not isinstance(value, (list, tuple)):
            yield path, False, f"expected a list; found {value!r}"
            return
        values = list(enumerate(value))
    else:
        yield from _single_problems(field, value, path)
        return
    for key, item in values:
        yield from _single_problems(field, item, (*path, key))


def _single_problems(field: Any, value: Any, path: FieldPath) -> Iterator[tuple[FieldPath, bool, str]]:
    if field.message_type is not None:
        yield from _problems(field.message_type, value, path)
    elif (expected := _expected(field, value)) is not None:
        yield path, False, f"expected {expected}; found {value!r}"


def _expected(field: Any, value: Any) -> str | None:
    """What a plain field takes, or None when ``value`` is that (as protobuf's JSON mapping has it)."""
    if field.enum_type is not None:
        names = [item.name for item in field.enum_type.values]
        return None if value in names else f"one of {', '.join(names)}"
    if field.cpp_type == field.CPPTYPE_BOOL:
        return None if isinstance(value, bool) else "true or false"
    if field.cpp_type == field.CPPTYPE_STRING:
        return None if isinstance(value, str) else "text (in quotes)"
    if field.cpp_type in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return None if isinstance(value, (int, float)) and not isinstance(value, bool) else "a number"
    unsigned = field.cpp_type in (field.CPPTYPE_UINT32, field.CPPTYPE_UINT64)
    bits = 32 if field.cpp_type in (field.CPPTYPE_INT32, field.CPPTYPE_UINT32) else 64
    low, high = (0, 2**bits) if unsigned else (-(2 ** (bits - 1)), 2 ** (bits - 1))
    fits = isinstance(value, int) and not isinstance(value, bool) and low <= value < high
    return None if fits else f"an integer{' >= 0' if unsigned else ''} of {bits} bits"
