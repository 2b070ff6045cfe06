"""TorchServe: a torchscript variant as an archive in a model store."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipeline.schema.base import Name, PositiveInt, Section


class TorchServe(Section):
    """The archive, named as the YAML, and how TorchServe runs it."""

    from_: Name | None = Field(None, alias="from", description="a torchscript variant; default: the first")
    batch_size: PositiveInt | None = Field(
        None, description="most requests in one forward pass; default 8, or 1 without a batch dimension"
    )
    max_batch_delay_ms: Annotated[int, Field(ge=0, le=60_000)] = Field(
        10, description="how long the first request of a batch waits for others"
    )
    workers: Annotated[int, Field(ge=1, le=256)] = Field(1, description="processes that serve the model")
    response_timeout_s: PositiveInt = Field(120, description="a worker that takes longer for a batch is restarted")
