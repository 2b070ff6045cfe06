"""YAML text -> plain values, with the place of every node; nothing in the text can run, grow or hide.

The event stream is composed here rather than by the library's composer, so that depth and size are limited
while reading: a nested bomb ends at its first node too many. Scalars follow the YAML 1.2 core schema; there are
no tags, no merge keys, no dates.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, MappingStartEvent, ScalarEvent, SequenceStartEvent
from ruamel.yaml.reader import ReaderError

from pipeline.base.errors import Problem

Key = tuple[str | int, ...]

MAX_DEPTH = 32
MAX_NODES = 50_000  # some 3 s of reading, and twice the longest list of class names in use

_NULL = re.compile(r"~|null|Null|NULL|")
_TRUE = re.compile(r"true|True|TRUE")
_FALSE = re.compile(r"false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_A_NUMBER = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_REFERENCE = re.compile(r"\$\{([^}]*)\}?")
_ENV_NAME = re.compile(r"env:([A-Za-z_][A-Za-z0-9_]*)")
_INT64 = range(-(2**63), 2**64)

_SYNTAX = (
    (r"found character '\\t' that cannot start any token", "a tab; YAML is indented with spaces"),
    (r"mapping values are not allowed here", "a `:` where no key can be: check the indentation, or quote the text"),
    (r"could not find expected ':'", "expected `key: value`"),
    (r"found unexpected end of stream", "the text ends inside quotes"),
    (r"expected <block end>, but found.*", "not in line with the entries above: check the indentation"),
    (r"expected ',' or '(.)', but got.*", r"expected `,` or `\1`"),
    (r"found character '(.)' that cannot start any token", r"a value cannot start with `\1`: quote the text"),
)


class _RefusedError(Exception):
    """The text cannot be read any further."""

    def __init__(self, where: str, message: str) -> None:
        super().__init__(message)
        self.problem = Problem(where, "", message)


@dataclass(slots=True)
class _Node:
    """One YAML node; an alias is the very node it refers to."""

    kind: Literal["scalar", "sequence", "mapping"]
    where: str
    text: str = ""
    plain: bool = False
    items: list[tuple[_Node | None, _Node]] = field(default_factory=list)  # (key, value); no key in a sequence
    size: int = 1
    height: int = 1
    closed: bool = False
    refusal: str = ""  # why this node cannot be used


@dataclass(kw_only=True)
class Document:
    """A configuration's values, and where each of them stands.

    Attributes:
        value: plain Python: dict, list, str, int, float, bool, None.
        keys: path -> place of the key (``file:line:column``, or the flag that set it); of the item, in a list.
        values: path -> place of the value.
        texts: path -> text of an unquoted scalar, as written.
        problems: what is wrong so far, by path.
        void: paths whose value could not be had; what stands there is a filler, not to be judged.
        secrets: value taken from the environment -> the reference that named it.
    """

    value: Any = None
    keys: dict[Key, str] = field(default_factory=dict)
    values: dict[Key, str] = field(default_factory=dict)
    texts: dict[Key, str] = field(default_factory=dict)
    problems: list[tuple[Key, Problem]] = field(default_factory=list)
    void: set[Key] = field(default_factory=set)
    secrets: dict[str, str] = field(default_factory=dict)

    def place(self, key: Key, *, of_key: bool = False) -> str:
        """Where a node stands, or the nearest of its parents that exists."""
        places = self.keys if of_key else self.values
        while key and key not in places:
            key = key[:-1]
        return places.get(key, "")

    def report(self, key: Key, message: str, where: str | None = None) -> None:
        """Note a problem, once."""
        problem = Problem(self.place(key) if where is None else where, dotted(key), message)
        if all(problem != known for _, known in self.problems):
            self.problems.append((key, problem))

    def forget(self, key: Key) -> None:
        """Drop what is known at and below a path, problems included: the value is about to be replaced."""
        for places in (self.keys, self.values, self.texts):
            for known in [known for known in places if known[: len(key)] == key]:
                del places[known]
        self.problems = [row for row in self.problems if row[0][: len(key)] != key]
        self.void = {known for known in self.void if known[: len(key)] != key}


def dotted(key: Key) -> str:
    """``('inputs', 'x', 'shape', 0)`` -> ``inputs.x.shape[0]``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key)
    return text.removeprefix(".")


def read(text: str, place: Callable[[int, int], str], environ: Mapping[str, str] = os.environ) -> Document:
    """Read one YAML document.

    Args:
        text: the document.
        place: (line, column), both from 1 -> how to name that place in a message.
        environ: where ``${env:NAME}`` is looked up.

    Returns:
        Its values and everything wrong with it; ``value`` is None when the text is empty or no YAML at all.
    """
    document = Document(values={(): place(1, 1)}, keys={(): place(1, 1)})
    try:
        root = _compose(text, place)
    except _RefusedError as refusal:
        document.problems.append(((), refusal.problem))
        return document
    if root is not None:
        document.values[()] = document.keys[()] = root.where
        document.value = _Flattening(document, environ).plain(root, ())
    return document


def _compose(text: str, place: Callable[[int, int], str]) -> _Node | None:
    composer = _Composer(place)
    try:
        events = YAML(typ="safe", pure=True).parse(text)
        composer.consume(events)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = place(mark.line + 1, mark.column + 1) if mark else place(1, 1)
        line = text.splitlines()[mark.line] if mark and mark.line < len(text.splitlines()) else ""
        advice = "; between braces or brackets, quote the ${env:NAME}" if "${" in line else ""
        raise _RefusedError(where, _syntax_message(error) + advice) from error
    except ReaderError as error:
        line, column = line_and_column(text, error.position)
        raise _RefusedError(place(line, column), f"a control character (U+{ord(text[error.position]):04X})") from error
    except (ValueError, OverflowError) as error:  # of chr(): "\UFFFFFFFF"
        raise _RefusedError(composer.last, "not valid YAML: after this, an escape beyond Unicode") from error
    except YAMLError as error:
        raise _RefusedError(composer.last, f"not valid YAML after this: {error}") from error
    return composer.root


def line_and_column(text: str, offset: int) -> tuple[int, int]:
    """Line and column, both from 1, of a character offset."""
    return text.count("\n", 0, offset) + 1, offset - (text.rfind("\n", 0, offset) + 1) + 1


def _syntax_message(error: MarkedYAMLError) -> str:
    problem = str(error.problem or error.context)
    for pattern, plain in _SYNTAX:
        if match := re.fullmatch(pattern, problem):
            problem = match.expand(plain)
            break
    mark = error.context_mark
    opened = (
        f" (it began on line {mark.line + 1})"
        if mark and error.problem_mark and mark.line != error.problem_mark.line
        else ""
    )
    return f"not valid YAML: {problem}{opened}"


class _Composer:
    """Builds the node tree from events, within the limits."""

    def __init__(self, place: Callable[[int, int], str]) -> None:
        self.place = place
        self.root: _Node | None = None
        self.last = place(1, 1)
        self.count = 0
        self.anchors: dict[str, _Node] = {}
        self.open: list[_Node] = []
        self.pending: list[_Node | None] = []  # per open mapping: the key that waits for its value

    def consume(self, events: Iterator[Any]) -> None:
        for event in events:
            if isinstance(event, (ScalarEvent, AliasEvent, MappingStartEvent, SequenceStartEvent)):
                self.last = self.place(event.start_mark.line + 1, event.start_mark.column + 1)
                self.add(self.node_of(event))
            elif type(event).__name__ in ("MappingEndEvent", "SequenceEndEvent"):
                self.close()

    def node_of(self, event: Any) -> _Node:
        if isinstance(event, AliasEvent):
            target = self.anchors.get(event.anchor)
            if target is not None and target.closed:
                return target
            refusal = f"*{event.anchor} refers to " + ("itself" if target else "no &anchor above it")
            return _Node("scalar", self.last, closed=True, refusal=refusal)
        if isinstance(event, ScalarEvent):
            node = _Node("scalar", self.last, text=event.value, plain=not event.style, closed=True)
        else:
            node = _Node("mapping" if isinstance(event, MappingStartEvent) else "sequence", self.last)
        if event.tag is not None:
            tag = str(event.tag).replace("tag:yaml.org,2002:", "!!")
            node.refusal = f"the tag {tag} is not supported: write the plain value, text in quotes"
        if event.anchor:
            self.anchors[event.anchor] = node
        return node

    def add(self, node: _Node) -> None:
        self.count += node.size
        if self.count > MAX_NODES:
            raise _RefusedError(self.last, f"more than {MAX_NODES} values, aliases written out")
        if len(self.open) + node.height > MAX_DEPTH:
            raise _RefusedError(self.last, f"nested more than {MAX_DEPTH} levels deep")
        if self.open:
            self.attach(node)
        elif self.root is None:
            self.root = node
        else:
            raise _RefusedError(self.last, "a second document; expected one")
        if not node.closed:
            self.open.append(node)
            self.pending.append(None)

    def attach(self, node: _Node) -> None:
        parent = self.open[-1]
        if parent.kind == "sequence":
            parent.items.append((None, node))
        elif self.pending[-1] is None:
            self.pending[-1] = node
        else:
            parent.items.append((self.pending[-1], node))
            self.pending[-1] = None

    def close(self) -> None:
        node = self.open.pop()
        self.pending.pop()
        node.closed = True
        children = [child for _, child in node.items]
        node.size += sum(child.size for child in children)
        node.height += max((child.height for child in children), default=0)


class _Flattening:
    """Nodes -> plain values, noting places and problems in the document."""

    def __init__(self, document: Document, environ: Mapping[str, str]) -> None:
        self.document, self.environ = document, environ

    def plain(self, node: _Node, path: Key) -> Any:
        self.document.values.setdefault(path, node.where)
        self.document.keys.setdefault(path, node.where)
        if node.refusal:
            self.refuse(path, node.refusal, node.where)
        if node.kind == "scalar":
            return self.scalar(node, path)
        if node.kind == "sequence":
            return [self.plain(child, (*path, index)) for index, (_, child) in enumerate(node.items)]
        return self.mapping(node, path)

    def refuse(self, path: Key, message: str, where: str) -> None:
        """Report a value that cannot be had; once, however many aliases repeat it."""
        self.document.void.add(path)
        if all((where, message) != (known.where, known.message) for _, known in self.document.problems):
            self.document.report(path, message, where)

    def mapping(self, node: _Node, path: Key) -> dict[str, Any]:
        result: dict[str, Any] = {}
        seen: dict[str, str] = {}
        for key, child in node.items:
            assert key is not None
            reason = _key_problem(key)
            if key.kind == "scalar" and key.text in seen:
                reason = f"the same key twice; first at {seen[key.text]}"
            if reason:
                self.document.report((*path, key.text) if key.text else path, reason, key.where)
                continue
            seen[key.text] = key.where
            self.document.keys[(*path, key.text)] = key.where
            result[key.text] = self.plain(child, (*path, key.text))
        return result

    def scalar(self, node: _Node, path: Key) -> Any:
        if node.plain:
            self.document.texts[path] = node.text
            value = self.resolved(node, path)
        else:
            value = node.text
        return self.interpolated(value, node, path) if isinstance(value, str) else value

    def resolved(self, node: _Node, path: Key) -> Any:
        text = node.text
        if _NULL.fullmatch(text):
            return None
        if _TRUE.fullmatch(text) or _FALSE.fullmatch(text):
            return text[0] in "tT"
        if _NOT_A_NUMBER.fullmatch(text):
            self.refuse(path, f"expected a finite number; found {text}", node.where)
            return 0
        if _INT.fullmatch(text):
            return self.integer(text, node, path)
        if _FLOAT.fullmatch(text):
            if (number := float(text)) in (float("inf"), float("-inf")):
                self.refuse(path, f"expected a finite number; {text} is beyond float64", node.where)
                return 0
            return number
        return text

    def integer(self, text: str, node: _Node, path: Key) -> int:
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        number = int(text, base) if len(text) <= 40 else None  # Python itself refuses texts of over 4300 digits
        if number is None or number not in _INT64:
            self.refuse(path, "expected an integer of at most 64 bits", node.where)
            return 0
        return number

    def interpolated(self, text: str, node: _Node, path: Key) -> str:
        def value_of(match: re.Match[str]) -> str:
            name = _ENV_NAME.fullmatch(match[1])
            if name is None or not match[0].endswith("}"):
                self.document.report(
                    path, f"expected ${{env:NAME}}, the only reference there is; found {match[0]}", node.where
                )
                return match[0]
            if name[1] not in self.environ:
                self.refuse(path, f"the environment variable {name[1]} is not set", node.where)
                return match[0]
            value = self.environ[name[1]]
            if value:
                self.document.secrets[value] = match[0]
            return value

        result = _REFERENCE.sub(value_of, text)
        if "\0" in result or not _is_unicode(result):
            self.refuse(path, "text that is not Unicode, or holds a NUL character", node.where)
            return ""
        return result


def _key_problem(key: _Node) -> str:
    if key.kind != "scalar":
        return "a list or mapping as a key; expected a name"
    if key.plain and key.text == "<<":
        return "merge keys are not supported: write the keys out, or alias a whole value"
    if not key.text or not _is_unicode(key.text):
        return "expected a name before the `:`"
    return ""


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate, from an escape or an undecodable environment variable
        return False
    return True


def shown(value: Any, limit: int = 60) -> str:
    """A value as it may stand in a message: JSON, cut to ``limit`` characters."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= limit else text[: limit - 1] + "…"
