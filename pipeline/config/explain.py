"""pydantic's complaints -> problems in plain words, at the node they are about.

pydantic says where something is wrong; what would be right is read from the JSON Schema, so that one sentence
names every form that a key may take.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from pydantic import ValidationError

from pipeline.base.files import LOCAL_PATH
from pipeline.config.document import Document, Key, shown
from pipeline.schema import Config
from pipeline.schema.base import NAME_PATTERN

_MANY = 2**31 - 1  # a limit this high is only mentioned to who has passed it

PATTERNS: Mapping[str, str] = {
    NAME_PATTERN: "a name of letters, digits, _ and - (at most 64, the first a letter or a digit)",
    r"^[A-Z][A-Za-z0-9_]{0,15}$": "a capital letter",
    r"^[^:]+:[A-Za-z_]\w*$": "'file.py:callable' or 'package.module:callable'",
    r"^sm_\d{2,3}$": "a compute capability such as sm_80",
    LOCAL_PATH: "a path on this machine, no URL",
    r"^\d\d\.(0[1-9]|1[0-2])$": 'a release such as "24.10"',
}
"""The schema's patterns, in words."""

Schema = Mapping[str, Any]


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a configuration, for editors and for ``python -m pipeline schema``."""
    schema = Config.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "Configuration of one model"}


@cache
def _root() -> Schema:
    return json_schema()


def add_problems(error: ValidationError, document: Document) -> None:
    """Report everything pydantic found, in the document's terms.

    Nothing is said about values that could not be had.
    """
    mismatched: list[Key] = []
    explained: set[Key] = set()
    for details in error.errors(include_url=False, include_context=False, include_input=False):
        path = real_path(details["loc"], document.value)
        void = document.void.intersection(path[:depth] for depth in range(1, len(path) + 1))
        if void and details["type"] != "extra_forbidden":
            continue
        if _structural(details["type"], details["loc"], details["msg"], path, document):
            explained.add(path)
        elif path not in mismatched:
            mismatched.append(path)
    for path in mismatched:
        found = value_at(document.value, path)
        deeper = any(other != path and other[: len(path)] == path for other in (*mismatched, *explained))
        if isinstance(found, (dict, list)) and (deeper or path in explained):
            continue  # the branch of a union that fits the node's kind has said more
        document.report(path, _mismatch(path, found, document))


def real_path(loc: Iterable[str | int], value: Any) -> Key:
    """The nodes that a pydantic location passes; names of union branches and the like are left out."""
    path: list[str | int] = []
    for part in loc:
        inside_list = isinstance(value, list) and isinstance(part, int) and part < len(value)
        if inside_list or (isinstance(value, dict) and part in value):
            path.append(part)
            value = value[part]
    return tuple(path)


def value_at(value: Any, path: Key) -> Any:
    """The value at a path that exists."""
    for part in path:
        value = value[part]
    return value


def nearest(name: str, known: Iterable[str]) -> str:
    """`` did you mean `x`?`` or the list of what there is; for messages."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.7)
    return f"did you mean `{close[0]}`?" if close else f"known here: {', '.join(names)}"


def _structural(kind: str, loc: Sequence[str | int], message: str, path: Key, document: Document) -> bool:
    """Report what is not a wrong value: unknown, missing and ill-named keys, and rules that span keys."""
    if kind == "extra_forbidden":
        section = [name for schema in _schemas(path[:-1]) for name in schema.get("properties", ())]
        text = f"unknown key; {nearest(str(path[-1]), section)}"
    elif kind == "missing" and isinstance(loc[-1], str):
        path = (*path, loc[-1])
        text = f"missing; expected {_described(_schemas(path))}"
    elif kind == "value_error":
        text = message.removeprefix("Value error, ")
    elif loc and loc[-1] == "[key]":
        text = f"expected {PATTERNS[NAME_PATTERN]} as the key"
    else:
        return False
    document.report(path, text, document.place(path, of_key=True))
    return True


def _mismatch(path: Key, found: Any, document: Document) -> str:
    schemas = _schemas(path)
    text = f"expected {_described(schemas, found)}; found {shown(found)}"
    written = document.texts.get(path)
    if isinstance(found, str):
        numeric = any(schema.get("type") in ("integer", "number") for schema in schemas)
        quoted = written is None and re.fullmatch(r"-?\d+(\.\d+)?", found)
        return f"{text}; without the quotes it is a number" if numeric and quoted else text
    fits = all(s.get("type") == "string" and re.search(s.get("pattern", ""), written or "") for s in schemas)
    return f'{text}; quote it: "{written}"' if fits and written else text


def _schemas(path: Key) -> list[Schema]:
    """Every schema that may apply at a path: references followed, alternatives side by side, no null."""
    here = _alternatives(_root())
    for part in path:
        here = [schema for parent in here for child in _children(parent, part) for schema in _alternatives(child)]
    return here


def _alternatives(schema: Schema) -> list[Schema]:
    if "$ref" in schema:
        return _alternatives(_root()["$defs"][schema["$ref"].rsplit("/", 1)[-1]])
    if "anyOf" in schema:
        return [found for branch in schema["anyOf"] for found in _alternatives(branch)]
    return [] if schema.get("type") == "null" else [schema]


def _children(schema: Schema, part: str | int) -> list[Schema]:
    if isinstance(part, int):
        fixed = schema.get("prefixItems", ())
        return [fixed[part]] if part < len(fixed) else [schema["items"]] if "items" in schema else []
    if part in schema.get("properties", {}):
        return [schema["properties"][part]]
    return list(schema.get("patternProperties", {}).values())


def _described(schemas: Sequence[Schema], found: Any = None) -> str:
    """All forms that a node may take, as one phrase."""
    return " or ".join(dict.fromkeys(_phrase(schema, found) for schema in schemas))


def _phrase(schema: Schema, found: Any) -> str:
    if "enum" in schema or "const" in schema:
        choices = [str(choice) for choice in schema.get("enum", [schema.get("const")])]
        return f"one of {', '.join(choices)}" if len(choices) > 1 else choices[0]
    kind = schema.get("type")
    if kind in ("integer", "number"):
        return ("an integer" if kind == "integer" else "a number") + _bounds(schema, found)
    if kind == "string":
        return PATTERNS.get(schema["pattern"], f"text like {schema['pattern']}") if "pattern" in schema else "text"
    if kind == "array":
        return _list_phrase(schema)
    if kind == "object":
        keys = ", ".join(schema.get("properties", ()))
        return "a mapping" + (
            f" with {keys}" if keys else " with at least one entry" if schema.get("minProperties") else ""
        )
    return "true or false" if kind == "boolean" else "a value"


def _bounds(schema: Schema, found: Any) -> str:
    signs = (("minimum", ">="), ("exclusiveMinimum", ">"), ("maximum", "<="), ("exclusiveMaximum", "<"))
    passed = isinstance(found, (int, float)) and found > _MANY
    rows = [f"{sign} {schema[key]}" for key, sign in signs if key in schema and (schema[key] < _MANY or passed)]
    return f" {' and '.join(rows)}" if rows else ""


def _list_phrase(schema: Schema) -> str:
    if "prefixItems" in schema:
        return f"a list of {len(schema['prefixItems'])}: {schema.get('description', 'values')}"
    items = _described(_alternatives(schema.get("items", {})))
    most = f", at most {schema['maxItems']}" if "maxItems" in schema else ""
    return f"a list (each item {items}{most})"
