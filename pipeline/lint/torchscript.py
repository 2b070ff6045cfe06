"""Lint rules on TorchScript files, read as what they are: zip archives of source text. Nothing in them is run."""

from __future__ import annotations

import ast
import pickletools
import re
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.base.triton_facts import BACKENDS
from pipeline.lint.model import (
    AOTI_PLATFORM,
    MAX_TEXT_BYTES,
    Finding,
    Findings,
    Model,
    Place,
    Rule,
    dims_text,
    enum_name,
    model_dims,
    printable,
)

_TYPES = BACKENDS["pytorch"].types
_MAX_CODE_FILES = 10_000
_COPY = "copy the file again, or export it again with torch.jit.save"
_EXPORT = "export with torch.jit.trace or torch.jit.script, and torch.jit.save"


@dataclass(frozen=True, slots=True, kw_only=True)
class Forward:
    """The signature of a TorchScript file's ``forward``.

    Attributes:
        path: the file.
        arguments: (name, type) without self, types as TorchScript writes them.
        returns: its type.
        results: how many tensors that is, where it is one or a tuple; else None.
        devices: device constants in the code, such as ``cuda:0``.
    """

    path: Path
    arguments: tuple[tuple[str, str], ...]
    returns: str
    results: int | None
    devices: frozenset[str]


ForwardRule = Callable[[Model, Forward], Findings]


def data_types(model: Model) -> Findings:
    """Types that libtorch of the backend does not have, and strings of more than one dimension."""
    if model.backend != "pytorch":
        return
    batched = model.batched
    for item in (*model.config.input, *model.config.output):
        kind, dims = enum_name(item, "data_type"), model_dims(item)
        if kind != "TYPE_INVALID" and kind not in _TYPES:
            reason = f"the pytorch backend has no type {kind}, given for {printable(item.name)!r}."
            yield model.error("torchscript-data-type", reason, f"use one of {', '.join(_TYPES)}")
        if kind == "TYPE_STRING" and len(dims) + batched > 1:
            reason = (
                f"the pytorch backend takes strings of one dimension only; {printable(item.name)!r} has dims "
                f"{dims_text(dims)}{' and a batch dimension' * batched}."
            )
            yield model.error("torchscript-string-dims", reason, "use dims: [ -1 ] with max_batch_size: 0")


def torchscript_files(model: Model) -> Findings:
    """All rules on every version's TorchScript file."""
    config = model.config
    if model.backend != "pytorch" or config.platform == AOTI_PLATFORM or config.runtime == "model.py":
        return
    for version in model.versions.values():
        for path in model.files(version):
            yield from _file(model, path)


def _file(model: Model, path: Path) -> Findings:
    at = model.at(path)
    if not zipfile.is_zipfile(path):
        with path.open("rb") as stream:
            pickled = stream.read(1) == b"\x80"
        if pickled:
            reason = "this is a pickle of torch.save, which the pytorch backend cannot load."
            yield at.error("torch-save-archive", reason, _EXPORT)
        else:
            yield at.error("torchscript-corrupt", "this is no TorchScript archive; it may be truncated.", _COPY)
        return
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if not any(name.endswith("/constants.pkl") for name in names):
                yield _saved_otherwise(at, names)
                return
            forward = read_forward(path, archive)
    # What zipfile raises for broken, encrypted and exotic archives, and pickletools for broken pickles.
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, zlib.error) as problem:
        yield at.error("torchscript-corrupt", f"the archive is damaged: {printable(str(problem))}.", _COPY)
        return
    if forward is not None:
        for rule in FORWARD_RULES:
            yield from rule(model, forward)


def _saved_otherwise(at: Place, names: list[str]) -> Finding:
    if any(name.endswith("data.pkl") for name in names):
        reason = (
            "torch.save wrote this file (it has data.pkl and no constants.pkl); the pytorch backend loads TorchScript "
            "only."
        )
        return at.error("torch-save-archive", reason, _EXPORT)
    return at.error("torchscript-corrupt", "the archive is not TorchScript: it has no constants.pkl.", _EXPORT)


def read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """The first ``MAX_TEXT_BYTES`` of a member: a bound on what a crafted archive unfolds to.

    Raises:
        NotImplementedError: compressed in a way that torch does not read; Python's readers of those raise errors of
            their own.
        zipfile.BadZipFile: damaged; or zlib.error, EOFError, RuntimeError (encrypted).
    """
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise NotImplementedError(f"{info.filename} is compressed by method {info.compress_type}, not deflate")
    with archive.open(info) as stream:
        return stream.read(MAX_TEXT_BYTES)


def read_forward(path: Path, archive: zipfile.ZipFile) -> Forward | None:
    """The signature in the source text, or None when the archive does not show it plainly; nothing is loaded."""
    members = {info.filename.partition("/")[2]: info for info in archive.infolist()}
    if "data.pkl" not in members:
        return None
    opcodes = pickletools.genops(read_member(archive, members["data.pkl"]))
    # The first global a TorchScript pickle names is the class of the whole module.
    main = next((str(argument) for opcode, argument, _ in opcodes if opcode.name == "GLOBAL"), "")
    module, _, name = main.partition(" ")
    source = members.get(f"code/{module.replace('.', '/')}.py")
    if source is None:
        return None
    text = read_member(archive, source).decode(errors="replace")
    body = re.search(rf"^class {re.escape(name)}\(.*?(?=^class |\Z)", text, re.MULTILINE | re.DOTALL)
    head = re.search(r"^  def forward\((.*?)\) -> (.*?):\n", body[0], re.MULTILINE | re.DOTALL) if body else None
    if head is None:
        return None
    try:  # TorchScript's types are written as Python's are
        function, returns = ast.parse(f"def forward({head[1]}): ...").body, ast.parse(head[2], mode="eval").body
        assert isinstance(function[0], ast.FunctionDef)
        arguments = tuple(
            (item.arg, ast.unparse(item.annotation) if item.annotation else "") for item in function[0].args.args[1:]
        )
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return Forward(
        path=path,
        arguments=arguments,
        returns=ast.unparse(returns),
        results=_results(returns),
        devices=_devices(archive, members),
    )


def _results(returns: ast.expr) -> int | None:
    if isinstance(returns, ast.Subscript) and ast.unparse(returns.value) == "Tuple":
        return len(returns.slice.elts) if isinstance(returns.slice, ast.Tuple) else 1
    return 1 if ast.unparse(returns) == "Tensor" else None


def _devices(archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo]) -> frozenset[str]:
    code = [info for name, info in members.items() if name.startswith("code/") and name.endswith(".py")]
    found: set[str] = set()
    for info in code[:_MAX_CODE_FILES]:
        text = read_member(archive, info).decode(errors="replace")
        found |= set(re.findall(r'torch\.device\("(\w+(?::\d+)?)"\)', text))
    return frozenset(found)


def inputs(model: Model, forward: Forward) -> Findings:
    """Argument types and number (libtorch.cc, ValidateInputs)."""
    at, kinds = model.at(forward.path), [kind for _, kind in forward.arguments]
    if len(kinds) == 1 and kinds[0].startswith("Dict["):
        return
    if refused := [name for name, kind in forward.arguments if kind != "Tensor" and not kind.startswith("List[")]:
        reason = (
            f"forward takes {printable(', '.join(refused))} as something other than a tensor, which the backend "
            "refuses."
        )
        yield at.error("torchscript-input-type", reason, "export a forward whose arguments are all tensors")
    sequence = model.config.sequence_batching
    fed = len(model.config.input) + len(sequence.control_input) + len(sequence.state)
    fed += sum(len(item.target_name) for item in model.config.batch_input)
    if fed != len(kinds):
        reason = f"forward takes {len(kinds)} inputs; config.pbtxt feeds {fed}."
        yield at.error("torchscript-input-count", reason, "configure one input per argument of forward")


def input_names(model: Model, forward: Forward) -> Findings:
    """How configured names find forward's arguments."""
    names = [item.name for item in model.config.input]
    arguments = [name for name, _ in forward.arguments]
    dictionary = len(arguments) == 1 and forward.arguments[0][1].startswith("Dict[")
    if dictionary or set(names) <= set(arguments):
        return
    indices = _indices(names)
    if indices is None:
        reason = (
            f"the input names {printable(', '.join(names))} are neither forward's ({printable(', '.join(arguments))}) "
            "nor of the form name__0, so inputs are bound in the order they stand in."
        )
        yield model.warning("torchscript-input-order", reason, "use the names of forward's arguments")
    elif sorted(indices) != list(range(len(indices))) or len(indices) > len(arguments):
        yield model.error(
            "torchscript-input-index",
            f"the indices in {printable(', '.join(names))} do not number forward's {len(arguments)} arguments from 0.",
            "number the inputs name__0, name__1, … in the order of forward's arguments",
        )


def _indices(names: Sequence[str]) -> list[int] | None:
    """The numbers in ``name__0``, ``name__1``; None where a name has none."""
    found = [match for name in names if (match := re.search(r"__([0-9]{1,6})$", name))]
    return [int(match[1]) for match in found] if len(found) == len(names) else None


def outputs(model: Model, forward: Forward) -> Findings:
    """The configured outputs are among what forward returns."""
    if forward.returns.startswith("Dict["):
        reason = "forward returns a dictionary, which the pytorch backend does not take apart."
        fix = "export a forward that returns a tensor or a tuple of tensors"
        yield model.at(forward.path).error("torchscript-output-type", reason, fix)
        return
    names = [item.name for item in model.config.output]
    indices = _indices(names)
    highest = len(names) - 1 if indices is None else max(indices, default=0)
    if forward.results is not None and highest >= forward.results:
        reason = f"forward returns {forward.results} tensors; config.pbtxt reaches for number {highest + 1}."
        fix = "configure one output per returned tensor, in their order"
        yield model.at(forward.path).error("torchscript-output-count", reason, fix)


def devices(model: Model, forward: Forward) -> Findings:
    """Tracing writes the device of constants into the file."""
    kinds = {enum_name(group, "kind") for group in model.config.instance_group}
    several = any(group.count > 1 or len(group.gpus) > 1 for group in model.config.instance_group)
    gpu = sorted(name for name in forward.devices if name.startswith("cuda"))
    if gpu and ("KIND_CPU" in kinds or several):
        reason = f"the code has tensors fixed to {', '.join(gpu)}, and the model's instances run elsewhere too."
        fix = "script the model instead of tracing it, or run one instance on that GPU"
        yield model.at(forward.path).warning("torchscript-device-constant", reason, fix)
    elif "cpu" in forward.devices and "KIND_GPU" in kinds:
        reason = "the code makes tensors on the CPU, and the model's instances run on GPUs."
        fix = "script the model, or trace it on a GPU"
        yield model.at(forward.path).warning("torchscript-device-constant", reason, fix)


FORWARD_RULES: tuple[ForwardRule, ...] = (inputs, input_names, outputs, devices)
TORCHSCRIPT_RULES: tuple[Rule, ...] = (data_types, torchscript_files)
