"""What goes to Triton and comes back, whatever the protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.base.values import Tensors

DEAD_STUB = "is not healthy"
"""In a refusal: "Stub process 'x_0' is not healthy."; Triton 2.51 never restarts one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One inference request.

    Attributes:
        version: version directory's number as text; empty for the version the server chooses.
        outputs: names asked for; empty for all.
        classes: ask for this many classes of each output as ``score:index:label``
            (Triton's classification extension) instead of its values; 0 for the values.
    """

    model: str
    version: str = ""
    inputs: Tensors
    outputs: tuple[str, ...] = ()
    classes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A request encoded for one protocol.

    Attributes:
        arguments: of tritonclient's ``infer``, the request's id left out.
    """

    request: Request
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer with the id of the request that the server says it answers."""

    identifier: str
    outputs: Tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorMetadata:
    """A tensor as the server describes it; ``datatype`` is Triton's (``FP32``), -1 is a dynamic dimension."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelMetadata:
    """What the server says about a model; ``versions`` are those it serves."""

    name: str
    platform: str
    versions: tuple[str, ...]
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexRow:
    """One line of the repository index.

    Attributes:
        version: empty, as ``state``, for a model never tried.
        reason: why it is not ready: ``unloaded``, or what failed when it was loaded.
    """

    name: str
    version: str
    state: str
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Counters of one model version since it was loaded.

    Attributes:
        requests: successful requests, those the response cache answered left out.
        executions: runs of the backend; fewer than requests where requests were merged.
        batch_sizes: samples in one run -> how many such runs.
    """

    requests: int
    executions: int
    batch_sizes: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Class:
    """One ``score:index:label`` of the classification extension; the label is empty where the server has none."""

    score: float
    index: int
    label: str


def parse_class(value: bytes | str) -> Class:
    """Read one element of a classification answer.

    Raises:
        ValueError: it is not in that form.
    """
    text = value.decode(errors="replace") if isinstance(value, bytes) else value
    score, index, *label = text.split(":", 2)  # labels may hold colons
    return Class(float(score), int(index), label[0] if label else "")
