"""What a source's step depends on: files, libraries and the function that makes it; imports nothing heavy."""

from __future__ import annotations

from pipeline.data.user_code import Resolve
from pipeline.schema.model import Source
from pipeline.sources import table


def function(source: Source) -> str:
    """The step's function, by what the YAML's section holds."""
    return f"{table.of(source).module}:make"


def digests(source: Source, resolve: Resolve) -> dict[str, str]:
    """SHA-256 of every file the source reads, user code included; a ConfigError where one is missing."""
    return table.of(source).digests(source, resolve)


def tools(source: Source) -> tuple[str, ...]:
    """Distributions whose version decides the result."""
    return table.of(source).tools(source)
