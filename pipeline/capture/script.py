"""A torch module or a TorchScript file -> a ScriptModule with the YAML's names: traced, else scripted."""

from __future__ import annotations

import keyword
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from pipeline.base.errors import StageError, first_line
from pipeline.base.values import Signature, SourceModel
from pipeline.capture import lines, tracing
from pipeline.capture.examples import Examples
from pipeline.capture.quiet import no_deprecation_warnings
from pipeline.capture.torch_module import NamedModule

Method = Literal["auto", "trace", "script"]
_SOURCE_LINE = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A ScriptModule that takes the signature's inputs by name and returns its outputs in order.

    Attributes:
        module: returns a tensor for one output, else a tuple.
        method: ``trace``, ``script`` or ``as given``.
        notes: fallbacks taken and warnings looked into.
    """

    module: Any
    method: str
    notes: tuple[str, ...]


def build(
    source: SourceModel, signature: Signature, pair: Examples, *, method: Method, capturable: bool | None = None
) -> Built:
    """Make the ScriptModule, in memory.

    Args:
        source: of kind ``torch`` or ``torchscript``.
        signature: its names.
        pair: what to trace on and to try the trace with.
        method: ``auto`` traces, and scripts what a trace would freeze.
        capturable: whether torch.export is known to capture the model; None for unknown.

    Raises:
        StageError: the model cannot be traced or scripted, or is frozen (``where`` names the line).
    """
    if source.kind == "torchscript":
        result = _run(source.module, pair)
        notes = (f"`method: {method}` has no effect: the source is TorchScript",) if method != "auto" else ()
        return Built(module=_wrap(source.module, signature, result), method="as given", notes=notes)
    if method == "script":
        return Built(module=_script(source.module, signature, pair), method="script", notes=())
    with no_deprecation_warnings():
        traced = _trace(NamedModule(source.module, signature).eval(), signature, pair, capturable)
    if not traced.frozen:
        wrapped = _wrap(traced.module, signature, tuple(pair.first.outputs))
        return Built(module=wrapped, method="trace", notes=traced.notes)
    if method == "trace":
        hint = "use `method: auto` or `script`, or write that line with tensor operations such as torch.where"
        raise StageError("export: tracing would freeze the model", found=traced.frozen, where=traced.where, hint=hint)
    try:
        module = _script(source.module, signature, pair)
    except StageError as error:
        raise StageError(
            "export: the model can be neither traced nor scripted",
            found=f"trace: {traced.frozen}\nscript: {error.found}",
            where=traced.where or error.where,
            hint="write that line with tensor operations such as torch.where, or make the module scriptable",
        ) from error
    where = f" [{traced.where}]" if traced.where and traced.where not in traced.frozen else ""
    note = f"scripted, because a trace would be frozen: {traced.frozen}{where}"
    return Built(module=module, method="script", notes=(note,))


def is_argument(name: str) -> bool:
    """Whether a TorchScript argument can have that name."""
    return name.isidentifier() and not keyword.iskeyword(name) and name != "self"


def _trace(module: NamedModule, signature: Signature, pair: Examples, capturable: bool | None) -> tracing.Traced:
    try:
        return tracing.trace(module, signature, pair, capturable=capturable)
    except Exception as error:  # noqa: BLE001 - the tracer and the user's module may raise anything; reported by build
        reason = f"it cannot be traced: {first_line(error)}"
        return tracing.Traced(module=None, frozen=reason, where=lines.of_error(error))


def _script(module: torch.nn.Module, signature: Signature, pair: Examples) -> Any:
    """Compile the module's Python source."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler warns about the user's attributes and annotations
            scripted = torch.jit.script(module)
            return _wrap(scripted, signature, _run(scripted, pair))
    except Exception as error:  # the compiler has no common base class for what it refuses
        places = [f"{place['file']}:{place['line']}" for place in _SOURCE_LINE.finditer(str(error))]
        raise StageError(
            "export: the model cannot be scripted",
            found=f"{type(error).__name__}: {str(error).strip()}",
            where=places[-1] if places else lines.of_error(error),
            hint="TorchScript is a part of Python: https://docs.pytorch.org/docs/stable/jit_language_reference.html",
        ) from error


def _run(module: Any, pair: Examples) -> Any:
    with torch.inference_mode():
        return module(*(tensor.clone() for tensor in pair.first.inputs))


def _wrap(inner: Any, signature: Signature, result: Any) -> Any:
    """Put a ScriptModule below one whose forward has the signature's names and returns its outputs in order.

    ``result`` is what it returned for an example, which tells how to reach its outputs.
    """

    class Model(torch.nn.Module):  # made anew each time: TorchScript shares compiled types between equal classes
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

    names = [spec.name if is_argument(spec.name) else f"_input_{index}" for index, spec in enumerate(signature.inputs)]
    accepted = {item.name for item in inner._c._get_method("forward").schema.arguments}
    arguments = [f"{name}={name}" if accepted.issuperset(names) else name for name in names]
    picked = _accessors(result, [spec.name for spec in signature.outputs])
    with no_deprecation_warnings():
        wrapper = torch.jit.script(Model().eval())
        wrapper.define(
            f"def forward(self, {', '.join(f'{name}: Tensor' for name in names)}):\n"
            f"    _result = self.inner({', '.join(arguments)})\n"
            f"    return {', '.join(picked)}\n"
        )
    return wrapper


def _accessors(result: Any, names: Sequence[str]) -> list[str]:
    """Expressions for the outputs, chosen as capture.torch_module.pick_outputs does: by name, else by position."""
    if isinstance(result, torch.Tensor):
        return ["_result"]
    if isinstance(result, Mapping):
        keys = list(names) if all(name in result for name in names) else list(result)[: len(names)]
        return [f"_result[{key!r}]" for key in keys]
    if all(name in getattr(result, "_fields", ()) for name in names):
        return [f"_result.{name}" for name in names]
    return [f"_result[{index}]" for index in range(len(names))]
