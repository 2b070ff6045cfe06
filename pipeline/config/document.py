"""YAML text -> plain values, with the place of every node; nothing in the text can run, grow or hide.

ruamel.yaml composes the nodes. Scalars follow the YAML 1.2 core schema; there are no tags, no merge keys, no dates.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer, MaxDepthExceededError
from ruamel.yaml.error import MarkedYAMLError, StreamMark, YAMLError
from ruamel.yaml.events import AliasEvent
from ruamel.yaml.nodes import Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from pipeline.base.errors import Problem

Key = tuple[str | int, ...]
Place = Callable[[int, int], str]
"""(line, column), both from 1 -> how to name that place in a message."""

MAX_DEPTH = 32
MAX_NODES = 50_000  # some 3 s of reading, and twice the longest list of class names in use

_WORDS: Mapping[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
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


class _TooMuchError(MarkedYAMLError):
    """The text is YAML, but more than is read."""


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


def read(text: str, place: Place, environ: Mapping[str, str] = os.environ) -> Document:
    """Read one YAML document, and all that is wrong with it; ``${env:NAME}`` is looked up in ``environ``.

    The ``value`` is None when the text is empty or no YAML at all.
    """
    yaml = YAML(typ="safe", pure=True)
    yaml.Composer, yaml.max_depth = _Composer, MAX_DEPTH
    composer: _Composer = yaml.composer
    document = Document()
    try:
        for root in yaml.compose_all(text):
            document.value = _Flattening(document, place, environ, composer.refusals).plain(root, ())
    except (YAMLError, ValueError, OverflowError) as error:  # the last two of chr(): "\\UFFFFFFFF"
        document = Document(problems=[((), _unreadable(error, text, place, composer.last))])
    for places in (document.keys, document.values):
        places.setdefault((), place(1, 1))
    return document


def _unreadable(error: Exception, text: str, place: Place, last: StreamMark | None) -> Problem:
    """Why there are no values at all."""
    mark = last
    if isinstance(error, ReaderError):
        where = place(*line_and_column(text, error.position))
        return Problem(where, "", f"a control character (U+{ord(text[error.position]):04X})")
    if isinstance(error, MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        message = _syntax_message(error, text)
    elif isinstance(error, YAMLError):
        message = f"not valid YAML after this: {error}"
    else:
        message = "not valid YAML: after this, an escape beyond Unicode"
    return Problem(place(mark.line + 1, mark.column + 1) if mark else place(1, 1), "", message)


def line_and_column(text: str, offset: int) -> tuple[int, int]:
    """Line and column, both from 1, of a character offset."""
    return text.count("\n", 0, offset) + 1, offset - (text.rfind("\n", 0, offset) + 1) + 1


def _syntax_message(error: MarkedYAMLError, text: str) -> str:
    problem = str(error.problem or error.context)
    if isinstance(error, _TooMuchError):
        return problem
    if isinstance(error, MaxDepthExceededError):
        return f"nested more than {MAX_DEPTH} levels deep"
    for pattern, plain in _SYNTAX:
        if match := re.fullmatch(pattern, problem):
            problem = match.expand(plain)
            break
    start, mark = error.context_mark, error.problem_mark
    opened = f" (it began on line {start.line + 1})" if start and mark and start.line != mark.line else ""
    line = (text.splitlines()[mark.line :] or [""])[0] if (mark := mark or start) else ""
    advice = "; between braces or brackets, quote the ${env:NAME}" if "${" in line else ""
    return f"not valid YAML: {problem}{opened}{advice}"


class _Composer(Composer):
    """The library's, within limits; what cannot be used does not keep the rest from being read."""

    def __init__(self, loader: Any = None) -> None:
        super().__init__(loader)
        self.warn_double_anchors = False
        self.refusals: dict[Node, str] = {}  # why a node cannot be used
        self.last: StreamMark | None = None  # where the last node began
        self._count = 0
        self._sizes: dict[str, int] = {}  # by anchor, aliases written out

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.parser.peek_event()
        self.last = event.start_mark
        is_alias = isinstance(event, AliasEvent)
        if self.depth == 0 and self._count:
            raise _TooMuchError(problem="a second document; expected one", problem_mark=self.last)
        before = self._count
        self._count += self._sizes.get(event.anchor, 1) if is_alias else 1
        if self._count > MAX_NODES:
            problem = f"more than {MAX_NODES} values, aliases written out"
            raise _TooMuchError(problem=problem, problem_mark=self.last)
        if is_alias and ((target := self.anchors.get(event.anchor)) is None or target.end_mark is None):
            refusal = f"*{event.anchor} refers to " + ("itself" if target else "no &anchor above it")
            self.parser.get_event()
            node: Node = ScalarNode(None, "", event.start_mark, style="*")
            self.refusals[node] = refusal
            return node
        node = super().compose_node(parent, index)
        if not is_alias:
            self._sizes[event.anchor] = self._count - before
            if event.tag is not None:
                tag = str(event.tag).replace("tag:yaml.org,2002:", "!!")
                self.refusals[node] = f"the tag {tag} is not supported: write the plain value, text in quotes"
        return node


class _Flattening:
    """Nodes -> plain values, noting places and problems in the document."""

    def __init__(
        self, document: Document, place: Place, environ: Mapping[str, str], refusals: Mapping[Node, str]
    ) -> None:
        self.document, self.place, self.environ, self.refusals = document, place, environ, refusals

    def where(self, node: Node) -> str:
        return self.place(node.start_mark.line + 1, node.start_mark.column + 1)

    def plain(self, node: Node, path: Key) -> Any:
        if len(path) >= MAX_DEPTH:  # of aliases, which the composer does not write out
            raise _TooMuchError(problem=f"nested more than {MAX_DEPTH} levels deep", problem_mark=node.start_mark)
        where = self.where(node)
        self.document.values.setdefault(path, where)
        self.document.keys.setdefault(path, where)
        if node in self.refusals:
            self.refuse(path, self.refusals[node], where)
        if isinstance(node, ScalarNode):
            return self.scalar(node, path)
        if isinstance(node, SequenceNode):
            return [self.plain(child, (*path, index)) for index, child in enumerate(node.value)]
        return self.mapping(node, path)

    def refuse(self, path: Key, message: str, where: str) -> None:
        """Report a value that cannot be had; once, however many aliases repeat it."""
        self.document.void.add(path)
        if all((where, message) != (known.where, known.message) for _, known in self.document.problems):
            self.document.report(path, message, where)

    def mapping(self, node: Node, path: Key) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, child in node.value:
            at, name = self.where(key), key.value if isinstance(key, ScalarNode) else ""
            reason = _key_problem(key)
            if name in result:
                reason = f"the same key twice; first at {self.document.keys[*path, name]}"
            if reason:
                self.document.report((*path, name) if name else path, reason, at)
                continue
            self.document.keys[*path, name] = at
            result[name] = self.plain(child, (*path, name))
        return result

    def scalar(self, node: ScalarNode, path: Key) -> Any:
        value: Any = node.value
        if node.style is None:
            self.document.texts[path] = node.value
            value = self.resolved(node.value, self.where(node), path)
        return self.interpolated(value, self.where(node), path) if isinstance(value, str) else value

    def resolved(self, text: str, where: str, path: Key) -> Any:
        if text in _WORDS:
            return _WORDS[text]
        if _NOT_A_NUMBER.fullmatch(text):
            self.refuse(path, f"expected a finite number; found {text}", where)
            return 0
        if _INT.fullmatch(text):
            return self.integer(text, where, path)
        if _FLOAT.fullmatch(text):
            if math.isfinite(number := float(text)):
                return number
            self.refuse(path, f"expected a finite number; {text} is beyond float64", where)
            return 0
        return text

    def integer(self, text: str, where: str, path: Key) -> int:
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        number = int(text, base) if len(text) <= 40 else None  # Python itself refuses texts of over 4300 digits
        if number is None or number not in _INT64:
            self.refuse(path, "expected an integer of at most 64 bits", where)
            return 0
        return number

    def interpolated(self, text: str, where: str, path: Key) -> str:
        def value_of(match: re.Match[str]) -> str:
            name = _ENV_NAME.fullmatch(match[1])
            if name is None or not match[0].endswith("}"):
                self.document.report(
                    path, f"expected ${{env:NAME}}, the only reference there is; found {match[0]}", where
                )
                return match[0]
            if name[1] not in self.environ:
                self.refuse(path, f"the environment variable {name[1]} is not set", where)
                return match[0]
            value = self.environ[name[1]]
            if value:
                self.document.secrets[value] = match[0]
            return value

        result = _REFERENCE.sub(value_of, text)
        if "\0" in result or not _is_unicode(result):
            self.refuse(path, "text that is not Unicode, or holds a NUL character", where)
            return ""
        return result


def _key_problem(key: Node) -> str:
    if not isinstance(key, ScalarNode):
        return "a list or mapping as a key; expected a name"
    if key.style is None and key.value == "<<":
        return "merge keys are not supported: write the keys out, or alias a whole value"
    if not key.value or not _is_unicode(key.value):
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
