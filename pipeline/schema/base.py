"""What every section shares: its base class and the types of its values."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from pipeline.base.files import LOCAL_PATH
from pipeline.base.values import NUMPY_DTYPES

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"
Name = Annotated[str, Field(pattern=NAME_PATTERN, description="letters, digits, _ and -; it names a folder")]
Dtype = Literal[
    "bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32", "float64"
]
DimSize = Annotated[int, Field(ge=1, le=2**31 - 1)]
DimLetter = Annotated[str, Field(pattern=r"^[A-Z][A-Za-z0-9_]{0,15}$")]
Callable = Annotated[
    str,
    Field(
        pattern=r"^[^:]+:[A-Za-z_]\w*$",
        description="'file.py:callable' (relative to this YAML) or 'package.module:callable'",
    ),
]


def _no_url(path: str) -> str:
    if not re.match(LOCAL_PATH, path):
        raise PydanticCustomError("url", "a URL")  # explain.py says it in the words of the pattern
    return path


LocalPath = Annotated[str, AfterValidator(_no_url), Field(json_schema_extra={"pattern": LOCAL_PATH})]
"""A pattern for editors only: pydantic's own regular expressions cannot look ahead."""
PositiveInt = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]

assert set(Dtype.__args__) == set(NUMPY_DTYPES)  # type: ignore[attr-defined]


class Section(BaseModel):
    """Base of every mapping in the YAML: unknown keys are errors, values keep their YAML type."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def exactly_one(section: Section, names: tuple[str, ...]) -> None:
    """Refuse a section that has none, or several, of the keys ``names``.

    Raises:
        ValueError: says which were found.
    """
    present = [name for name in names if getattr(section, name) is not None]
    if len(present) != 1:
        raise ValueError(f"expected exactly one of {', '.join(names)}; found {', '.join(present) or 'none'}")
