"""Inputs and outputs of an imported model: what its files tell, and what a person adds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.base.errors import ConfigError
from pipeline.base.values import NUMPY_DTYPES, Dim

if TYPE_CHECKING:
    import onnx

_LETTER = re.compile(r"[A-Z][A-Za-z0-9_]{0,15}")  # schema.DimLetter
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9_-]")
BATCH = "N"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """An input or output as far as it is known.

    Attributes:
        name: as in the file where it has one.
        dtype: numpy's name, or empty.
        shape: with the batch; a letter is a dynamic dimension; None where it is not known.
    """

    name: str
    dtype: str = ""
    shape: tuple[Dim, ...] | None = None

    @property
    def known(self) -> bool:
        """Whether nothing is left to be given."""
        return bool(self.dtype) and self.shape is not None


def given(text: str, flag: str) -> Tensor:
    """``NAME:DTYPE:SHAPE`` as on the command line, e.g. ``image:float32:N,3,224,224``.

    Raises:
        ConfigError: of another form, or a dtype or dimension that there is not.
    """
    parts = text.split(":")
    form = "expected NAME:DTYPE:SHAPE, e.g. image:float32:N,3,224,224; a capital letter is a dynamic dimension"
    if len(parts) != 3 or usable_name(parts[0]) != parts[0]:
        raise ConfigError(f"import-mar: {flag} {text!r} cannot be read", found=text, hint=form)
    name, dtype, shape = parts
    if dtype not in NUMPY_DTYPES:
        raise ConfigError(
            f"import-mar: {flag}: no dtype {dtype!r}", found=text, hint=f"one of {', '.join(NUMPY_DTYPES)}"
        )
    dims: list[Dim] = []
    for part in filter(None, shape.strip("[]").split(",")):
        dim = part.strip()
        if not _LETTER.fullmatch(dim) and not re.fullmatch(r"[1-9][0-9]{0,9}", dim):
            raise ConfigError(f"import-mar: {flag}: no dimension {dim!r}", found=text, hint=form)
        dims.append(int(dim) if dim.isdigit() else dim)
    return Tensor(name=name, dtype=dtype, shape=tuple(dims))


def merged(known: Sequence[Tensor], told: Sequence[Tensor], flag: str, *, by_position: bool) -> tuple[Tensor, ...]:
    """What the files tell, if only how many there are, completed or corrected by what a person says with ``flag``.

    Names may be given anew ``by_position`` of a model that takes its tensors in order.

    Raises:
        ConfigError: a name that the model does not have, or another number of them.
    """
    names = [tensor.name for tensor in known]
    by_name = {tensor.name: tensor for tensor in told}
    if len(by_name) < len(told):
        raise ConfigError(f"import-mar: {flag} names a tensor twice", found=", ".join(tensor.name for tensor in told))
    if set(by_name) <= set(names):
        return tuple(by_name.get(tensor.name, tensor) for tensor in known)
    if not known or (by_position and len(told) == len(known)):
        return tuple(told)
    found = f"{', '.join(by_name)}; the model has {', '.join(names)}"
    hint = "use the model's names" + (", or name all of them anew in the model's order" if by_position else "")
    raise ConfigError(f"import-mar: {flag} does not fit the model", found=found, hint=hint)


def usable_name(name: str) -> str:
    """A tensor's name as the YAML can have it (schema.NAME_PATTERN)."""
    return _NOT_IN_A_NAME.sub("_", name).lstrip("_-")[:64] or "tensor"


def of_onnx(graph: onnx.GraphProto) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Inputs and outputs of an ONNX graph, its dynamic dimensions as letters.

    A first dimension that is dynamic in every input, and in every output dynamic or unknown to shape inference, is the
    batch. Others keep their names where the YAML can have them.
    """
    constants = {item.name for item in graph.initializer}
    inputs = [item for item in graph.input if item.name not in constants]
    letters = _Letters(_batch_names((*inputs, *graph.output)))
    return (
        tuple(_of_value(item, letters, number) for number, item in enumerate(inputs)),
        tuple(_of_value(item, letters, number + len(inputs)) for number, item in enumerate(graph.output)),
    )


def _dims(item: onnx.ValueInfoProto) -> list[int | str] | None:
    """Numbers, names, and an empty text where a dimension has neither; None without a shape."""
    tensor = item.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return [dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in tensor.shape.dim]


def _batch_names(items: Iterable[onnx.ValueInfoProto]) -> frozenset[str]:
    """Names of the first dimension that stand for the batch; empty where there is none.

    Exporters before torch.export name the batch in the inputs and leave computed dimensions of outputs nameless.
    """
    firsts = {dims[0] if dims else 0 for item in items if (dims := _dims(item)) is not None}
    names = frozenset(first for first in firsts if isinstance(first, str))
    return names if len(names) == len(firsts) and len(names - {""}) <= 1 else frozenset()


class _Letters:
    """The YAML's letters for a graph's dynamic dimensions."""

    def __init__(self, batch: frozenset[str]) -> None:
        self._batch = batch
        self._known: dict[str, str] = {}
        self._taken = {BATCH}

    def of(self, name: str, axis: int, number: int) -> str:
        """The letter of a dimension, by its name or, where it has none, by its place."""
        if axis == 0 and name in self._batch:
            return BATCH
        key = name or f"{number}/{axis}"
        if key not in self._known:
            wanted = name if _LETTER.fullmatch(name) else f"D{len(self._known) + 1}"
            while wanted in self._taken:
                wanted = f"{wanted[:12]}_{len(self._taken)}"
            self._known[key] = wanted
            self._taken.add(wanted)
        return self._known[key]


def _of_value(item: onnx.ValueInfoProto, letters: _Letters, number: int) -> Tensor:
    import onnx

    tensor = item.type.tensor_type
    try:
        dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)) if tensor.elem_type else ""
    except KeyError:  # a type of a later onnx
        dtype = ""
    dims = _dims(item)
    shape = dims and [dim if isinstance(dim, int) else letters.of(dim, axis, number) for axis, dim in enumerate(dims)]
    return Tensor(
        name=item.name, dtype=dtype if dtype in NUMPY_DTYPES else "", shape=None if shape is None else tuple(shape)
    )
