"""A TensorFlow model's tensors and the YAML's: which is which, and whether they agree."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pipeline.base.errors import StageError
from pipeline.base.ports import Port, unlike, written
from pipeline.base.values import TensorSpec


def match(side: str, ports: Sequence[Port], specs: Sequence[TensorSpec], where: str) -> tuple[dict[str, str], str]:
    """Find the model's tensor for each of the YAML's: by name where equal, the rest by the order of both.

    Returns:
        The model's name by the YAML's, and a note that says what was taken by order, or an empty text.

    Raises:
        StageError: their number, dtypes or fixed sizes differ; all differences are listed.
    """
    hint = f"correct `{side}`"
    if len(ports) != len(specs):
        what = f"source: the model has {len(ports)} {side}, the YAML {len(specs)}"
        shown = (f"{port.name} {port.dtype}{'' if port.shape is None else written(port.shape)}" for port in ports)
        raise StageError(what, found=f"the model's are {', '.join(shown) or 'none'}", where=where, hint=hint)
    known, wanted = {port.name: port for port in ports}, {spec.name for spec in specs}
    rest = iter(port for port in ports if port.name not in wanted)
    pairs = [(spec, known[spec.name] if spec.name in known else next(rest)) for spec in specs]
    if wrong := [item.told(_label(side, spec, port)) for spec, port in pairs for item in unlike(port, spec)]:
        raise StageError(
            f"source: the model's {side} are not the YAML's", found="\n".join(wrong), where=where, hint=hint
        )
    taken = [f"{spec.name} is its {port.name}" for spec, port in pairs if spec.name != port.name]
    note = f"{side} without the YAML's names are taken in order: {', '.join(taken)}" if taken else ""
    return {spec.name: port.name for spec, port in pairs}, note


def ordered(ports: Sequence[Port]) -> list[Port]:
    """A SavedModel's tensors have names and no order: that of the names, numbers in them counted as such."""

    def key(port: Port) -> list[str | int]:
        return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", port.name)]  # text comes first

    return sorted(ports, key=key)


def _label(side: str, spec: TensorSpec, port: Port) -> str:
    return f"{side.removesuffix('s')} {spec.name}" + (f" (its {port.name})" if port.name != spec.name else "")
