"""What is known of a TensorRT engine: the JSON sidecar that this tool writes beside it, read and checked.

An engine says nothing of itself that can be read without its library. A repository of other origin has no sidecars,
and its engines are only looked at from outside.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.lint.model import INT64_MAX, MAX_TEXT_BYTES, Finding, Findings, Model, printable, read_text

# Bounds that no engine reaches; they keep a hostile sidecar from filling the screen.
_Size = Annotated[int, Field(ge=-INT64_MAX, le=INT64_MAX)]
_Sizes = Annotated[list[_Size], Field(max_length=64)]
_Counts = dict[str, Annotated[int, Field(ge=0, le=INT64_MAX)]]
_Version = Annotated[str, Field(pattern=r"^[0-9]{1,9}(\.[0-9]{1,9}){1,3}$")]
_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Part(BaseModel):
    """Parts that no rule needs are not read."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


class Range(_Part):
    """What a profile allows for one input: full shapes, batch included (for a shape tensor: its values)."""

    min: _Sizes
    opt: _Sizes
    max: _Sizes

    @model_validator(mode="after")
    def _ascending(self) -> Range:
        if not len(self.min) == len(self.opt) == len(self.max):
            raise ValueError("min, opt and max have different ranks")
        if not all(low <= mid <= high for low, mid, high in zip(self.min, self.opt, self.max, strict=True)):
            raise ValueError("min, opt and max do not ascend")
        return self


class Tensor(_Part):
    """An input or output: numpy's name of its type, and its full shape; -1 or a letter is a dynamic dimension."""

    name: str
    dtype: str = ""
    shape: Annotated[list[_Size | str], Field(max_length=64)] | None = None


class Options(_Part):
    """The settings an engine was built with that are not at their default."""

    version_compatible: bool = False


class Sidecar(_Part):
    """The facts in a sidecar; any may be missing."""

    flavour: Literal["tensorrt", "tensorrt_rtx"] | None = None
    version: _Version | None = None
    compute_capabilities: list[str] = []
    precision: Literal["fp32", "fp16", "bf16", "int8"] | None = None
    layers: _Counts = {}
    layer_types: dict[str, _Counts] = {}
    options: Options = Options()
    profiles: list[dict[str, Range]] | None = None
    inputs: list[Tensor] | None = None
    outputs: list[Tensor] | None = None
    plan_sha256: _Sha256 | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """One engine file of a version, and what is known of it: without a usable sidecar nothing."""

    version: int
    path: Path
    sidecar: Sidecar
    sidecar_path: Path


EngineRule = Callable[[Model, Engine], Findings]


def open_engine(model: Model, version: int, path: Path, *, alone: bool) -> tuple[Engine, Finding | None]:
    """An engine, ``alone`` in its directory or not, and what is wrong with its sidecar: nothing of a wrong one is used.

    Raises:
        OSError: not readable.
    """
    own, shared = path.with_name(f"{path.name}.json"), path.with_name("engine.json")
    chosen = own if own.exists() or not shared.exists() else shared
    problem, sidecar = None, Sidecar()
    if chosen == shared and not alone:
        problem = model.at(shared).warning(
            "engine-sidecar-ambiguous",
            "several engines are in this directory, and the sidecar does not say which one it is about.",
            f"name each engine's sidecar after it, for example {printable(own.name)}",
        )
    elif chosen.exists():
        try:
            sidecar = _read(chosen)
        except ValueError as unusable:
            problem = model.at(chosen).warning(
                "engine-sidecar-malformed",
                f"the engine's sidecar cannot be used ({_told(unusable)}), so nothing it says is checked.",
                "build the engine again, or remove the sidecar",
            )
    return Engine(version=version, path=path, sidecar=sidecar, sidecar_path=chosen), problem


def _read(path: Path) -> Sidecar:
    text = read_text(path)
    if text is None:
        raise ValueError(f"it is no plain file of at most {MAX_TEXT_BYTES >> 20} MiB")
    return Sidecar.model_validate_json(text)


def _told(problem: ValueError) -> str:
    if not isinstance(problem, ValidationError):
        return str(problem)
    first = problem.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return printable(f"{where}: {first['msg']}" if where else first["msg"])


def compute_capability(name: str) -> str | None:
    """``8.9`` for ``8.9`` and for ``sm_89``; None for what names no compute capability."""
    match = re.fullmatch(r"([0-9]{1,2})\.([0-9])|sm_([0-9]{1,2})([0-9])", name)
    return f"{match[1] or match[3]}.{match[2] or match[4]}" if match else None
