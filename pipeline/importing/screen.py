"""Looks through the source text in a TorchScript file for the operators that touch files.

A screen and no proof: it knows the ways to name an operator that were found in torch 2.13.0, and no more.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from itertools import groupby

from pipeline.lint import torchscript as lint
from pipeline.lint.model import MAX_TEXT_BYTES

_OPERATORS = frozenset({"save", "from_file", "read_file", "write_file"})  # of torch; the last two of torchvision
_NAMESPACES = frozenset({"torch", "ops", "aten"})
_MAX_CODE_BYTES = 32 * 2**20  # of all members; large models have a few
# the tokens of TorchScript's own lexer (torch/csrc/jit/frontend/lexer.h): a backslash continues a line, and a text
# without an end, which it refuses, is one here too, so that nothing is looked at twice
_TOKEN = re.compile(
    r"""
      (?P<skipped> \s+ | \\\r?\n | \#[^\n]* )
    | (?P<text> (?P<quote> "{3} | '{3} ) (?: \\.?+ | [^\\] )*? (?: (?P=quote) | \Z )
              | " (?: \\. | [^"\\\n] )*+ "? | ' (?: \\. | [^'\\\n] )*+ '? )
    | (?P<word> \w+ )
    | (?P<mark> . )
    """,
    re.VERBOSE | re.DOTALL,
)
_OCTAL = re.compile(r"\\([0-7]{1,3})")  # no other escape stands for a letter


def finding(inner: zipfile.ZipFile) -> str:
    """What in a TorchScript file's code would touch files when it runs; empty where nothing was found.

    Raises:
        ValueError: code too long to read, or in the form of torch before 1.2.
        zipfile.BadZipFile: damaged; or what else reading a member raises.
    """
    left = _MAX_CODE_BYTES
    for info in inner.infolist():
        name = info.orig_filename.casefold()  # torch finds a member by its name in any case
        if name.endswith("/model.json"):  # may name any member as code
            raise ValueError(f"{info.filename}, the form of torch before 1.2")
        if not name.endswith(".py"):
            continue
        left -= info.file_size
        if info.file_size > MAX_TEXT_BYTES or left < 0:
            raise ValueError(f"{info.filename}, code too long to read")
        if found := _search(lint.read_member(inner, info).decode(errors="replace")):
            return f"the code in {info.filename} {found}"
    return ""


def _search(code: str) -> str:
    before = last = ""
    taking = False  # between `getattr` and the first word of what it takes from
    for kind, sign in _tokens(code):
        if kind == "text" and sign in _OPERATORS:
            return f"names {sign!r}"
        if kind == "word" and last == "." and sign in _OPERATORS:
            return f"calls {before if before.isidentifier() else ''}.{sign}"
        if kind == "word" and taking and sign in _NAMESPACES:
            return f"takes something from {sign} by getattr"
        taking = kind != "text" and (sign == "getattr" or (taking and sign == "("))
        before, last = last, sign if kind != "text" else ""
    return ""


def _tokens(code: str) -> Iterator[tuple[str, str]]:
    """Kinds and tokens, without comments and space; texts that stand side by side are one, as TorchScript has it."""
    found = ((match.lastgroup or "", match[0]) for match in _TOKEN.finditer(code))
    for kind, run in groupby((row for row in found if row[0] != "skipped"), key=lambda row: row[0]):
        if kind == "text":
            yield kind, "".join(_content(sign) for _, sign in run)
        else:
            yield from run


def _content(text: str) -> str:
    inside = text[3:-3] if text.startswith(('"""', "'''")) else text[1:-1]
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), inside)
