"""TorchScript, as Triton's pytorch backend serves it."""

from __future__ import annotations

from typing import Any

from pipeline.base import triton_facts
from pipeline.formats.format import Export, Format
from pipeline.machine.target import Limits
from pipeline.schema.variants import Variant


def _options(making: Variant, target: Limits) -> dict[str, Any]:
    return {"method": making.method or "auto"}


_EXPORT = Export(function="pipeline.formats.torchscript.export:make", tools=("torch",), options=_options)
FORMAT = Format(
    kind="torchscript",
    backends={"torchscript": triton_facts.BACKENDS["pytorch"]},
    exports={"torch": _EXPORT, "torchscript": _EXPORT},
    refusal="{source} cannot be made into TorchScript; expected {formats}",
    judge="pipeline.formats.torchscript.runtime:judge",
)
