"""Rewrites a TorchScript file so that equal models give equal bytes.

A file of torch.jit.save depends on more than the model: class names carry the number of classes the process had
compiled before (``___torch_mangle_12``) and the module path they were imported by; a scripted layer's constants come in
the order of a Python set, which the hash seed decides; ``*.debug_pkl`` records hold the source's path and lines.

Here every class and function gets a plain name, numbered in the order the model's own data reaches it, all code goes
into one record, constants are sorted, and the debug records are left out (error messages then lack Python's lines).

Format: torch/csrc/jit/docs/serialization.md in the PyTorch repository.
"""

from __future__ import annotations

import pickletools
import re
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

_CODE = "code/__torch__.py"
_PREFIX = "__torch__."
_QUALIFIED = re.compile(r"__torch__(?:\.\w+)+")
_DEFINITION = re.compile(r"^(class|def) (\w+)", re.MULTILINE)
_CONSTANTS = re.compile(r"(?:^  \S+ : Final\[.*\n)+", re.MULTILINE)
_WRITTEN_BY_TORCH = ("version", "byteorder", ".data/serialization_id")


def canonicalise(source: Path, target: Path) -> None:
    """Write ``source``, a file of torch.jit.save, to ``target`` in canonical form.

    The archive's inner folder is named after ``target``'s stem, so equal bytes need equal file names.
    """
    reader = torch._C.PyTorchFileReader(str(source))
    records = [name for name in reader.get_all_records() if not name.endswith(".debug_pkl")]
    blocks = _definitions({name: reader.get_record(name).decode() for name in records if _is_code(name)})
    pickles = {name: reader.get_record(name) for name in records if name.endswith(".pkl")}
    names = _plain_names(blocks, [_global_names(pickles[name]) for name in sorted(pickles, reverse=True)])
    code = "".join(_renamed_definition(names, old, blocks[old]) for old in names)
    writer = torch._C.PyTorchFileWriter(str(target))
    for name in records:
        if _is_code(name) or name in _WRITTEN_BY_TORCH:
            continue
        data = _renamed_pickle(pickles[name], names) if name in pickles else reader.get_record(name)
        writer.write_record(name, data, len(data))
    writer.write_record(_CODE, code.encode(), len(code.encode()))
    writer.write_end_of_file()


def _is_code(name: str) -> bool:
    return name.startswith("code/") and name.endswith(".py")


def _definitions(code: Mapping[str, str]) -> dict[str, str]:
    """Text of every class and function by qualified name; a record's path is the name's first part."""
    blocks = {}
    for record, text in code.items():
        module = record.removeprefix("code/").removesuffix(".py").replace("/", ".")
        starts = list(_DEFINITION.finditer(text))
        for start, following in zip(starts, [*starts[1:], None], strict=True):
            end = following.start() if following else len(text)
            blocks[f"{module}.{start[2]}"] = text[start.start() : end].rstrip("\n") + "\n\n"
    return blocks


def _global_names(pickled: bytes) -> list[str]:
    """Qualified names of TorchScript classes in a pickle, in order."""
    found = []
    for opcode, argument, _ in pickletools.genops(pickled):
        if isinstance(argument, str) and opcode.name in ("GLOBAL", "BINUNICODE"):
            found += _QUALIFIED.findall(argument.replace(" ", ".") if opcode.name == "GLOBAL" else argument)
    return found


def _plain_names(blocks: Mapping[str, str], roots: Iterable[list[str]]) -> dict[str, str]:
    """New names by old, in the order reached from the pickled objects through the code."""
    names: dict[str, str] = {}
    counts: dict[str, int] = {}
    waiting = [name for group in roots for name in group]
    for old in waiting:  # grows while it is walked
        known = _known(old, blocks)
        if known is None or known in names:
            continue
        plain = known.rsplit(".", 1)[-1]
        number = counts[plain] = counts.get(plain, 0) + 1
        names[known] = f"{_PREFIX}{plain}" if number == 1 else f"{_PREFIX}{plain}__{number}"
        waiting += _QUALIFIED.findall(blocks[known])
    return names


def _known(name: str, names: Mapping[str, str]) -> str | None:
    """The defined name that ``name`` is, or starts with (an enumeration's value, a static method)."""
    while name not in names:
        name, dot, _ = name.rpartition(".")
        if not dot:
            return None
    return name


def _renamed(names: Mapping[str, str], text: str) -> str:
    def plain(match: re.Match[str]) -> str:
        known = _known(match[0], names)
        return match[0] if known is None else names[known] + match[0][len(known) :]

    return _QUALIFIED.sub(plain, text)


def _renamed_definition(names: Mapping[str, str], old: str, block: str) -> str:
    plain = names[old].removeprefix(_PREFIX)
    ordered = _CONSTANTS.sub(lambda match: "".join(sorted(match[0].splitlines(keepends=True))), block)
    return _renamed(names, _DEFINITION.sub(lambda match: f"{match[1]} {plain}", ordered, count=1))


def _renamed_pickle(pickled: bytes, names: Mapping[str, str]) -> bytes:
    """Replace class names: GLOBAL holds module and name, a line each; BINUNICODE a length and UTF-8 (pickletools)."""
    operations = list(pickletools.genops(pickled))
    ends = [position for _, _, position in operations[1:]] + [len(pickled)]
    parts = []
    for (opcode, argument, start), end in zip(operations, ends, strict=True):
        raw = pickled[start:end]
        if opcode.name == "GLOBAL" and _PREFIX in f"{argument}.":
            module, _, name = _renamed(names, str(argument).replace(" ", ".")).rpartition(".")
            raw = f"c{module}\n{name}\n".encode()
        elif opcode.name == "BINUNICODE" and _PREFIX in str(argument):
            text = _renamed(names, str(argument)).encode()
            raw = b"X" + struct.pack("<I", len(text)) + text
        parts.append(raw)
    return b"".join(parts)
