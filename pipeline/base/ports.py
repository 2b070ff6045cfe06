"""The inputs and outputs of a file, or of a served model, against the signature: one comparison for all of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.base.values import TensorSpec

Shape = tuple[int | str | None, ...]
"""A dynamic dimension is a text, None or -1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """An input or output as it was found.

    Attributes:
        dtype: numpy's name where numpy has one.
        shape: None where even the rank is unknown.
    """

    name: str
    dtype: str
    shape: Shape | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One thing in which the ports are not the signature's.

    Attributes:
        kind: ``unknown`` where the signature has no such port; ``missing`` where only the signature has it.
        expected: the signature's dtype or shape, in words.
        found: the port's.
    """

    name: str
    kind: Literal["unknown", "missing", "dtype", "shape"]
    expected: str = ""
    found: str = ""

    def told(self, what: str) -> str:
        """What is wrong with the dtype or shape of a port, for a person who wrote the YAML."""
        return f"{what} {'is' if self.kind == 'dtype' else 'has shape'} {self.found}; the YAML says {self.expected}"


def differences(ports: Sequence[Port], specs: Sequence[TensorSpec], *, exact: bool = False) -> Iterator[Difference]:
    """All differences, whatever the order of the ports.

    Where ``exact``, a dynamic dimension must be dynamic in the signature too; else it admits any size. A fixed one must
    always be the signature's.
    """
    by_name, wanted = {port.name: port for port in ports}, {spec.name for spec in specs}
    yield from (Difference(name=name, kind="unknown") for name in by_name if name not in wanted)
    for spec in specs:
        if spec.name in by_name:
            yield from unlike(by_name[spec.name], spec, exact=exact)
        else:
            yield Difference(name=spec.name, kind="missing")


def unlike(port: Port, spec: TensorSpec, *, exact: bool = False) -> Iterator[Difference]:
    """In what a port is not the tensor of the signature, whatever its name; see ``differences``."""
    if port.dtype != spec.dtype:
        yield Difference(name=spec.name, kind="dtype", expected=spec.dtype, found=port.dtype)
    if port.shape is not None and not _fits(port.shape, spec, exact=exact):
        yield Difference(name=spec.name, kind="shape", expected=written(spec.shape), found=written(port.shape))


def same_names(names: Iterable[str], specs: Sequence[TensorSpec]) -> bool:
    """Whether the names are the signature's, in any order."""
    return set(names) == {spec.name for spec in specs}


def written(shape: Shape) -> str:
    """``[N, 3]``, with a question mark for a size that has no name."""
    return f"[{', '.join('?' if size is None else str(size) for size in shape)}]"


def _fits(shape: Shape, spec: TensorSpec, *, exact: bool) -> bool:
    return len(shape) == len(spec.shape) and all(
        found == wanted if isinstance(found, int) and found >= 0 else isinstance(wanted, str) or not exact
        for found, wanted in zip(shape, spec.shape, strict=True)
    )
