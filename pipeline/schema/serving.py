"""Triton, the repository, and the server that proves it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline.schema.base import LocalPath, Name, PositiveInt, Section


class Triton(BaseModel):
    """The target release, and any field of Triton's ModelConfig, spelled as in model_config.proto."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    target: Annotated[str, Field(pattern=r"^\d\d\.(0[1-9]|1[0-2])$")] = Field(
        "24.10", description="Triton release whose limits the artifacts respect"
    )
    max_batch_size: Annotated[int, Field(ge=0, le=65_536)] | None = Field(
        None, description="default 32 where the model has a batch dimension, else 0"
    )

    @property
    def model_config_fields(self) -> dict[str, Any]:
        """Everything but ``target`` and ``max_batch_size``: fields for the ModelConfig message."""
        return dict(self.model_extra or {})


class Repository(Section):
    """Where versions go, and how many stay."""

    path: LocalPath | None = Field(None, description="default: model_repository/ in the working directory")
    retain: PositiveInt | None = Field(None, description="keep this many versions this tool wrote; default: all")


class Serve(Section):
    """The server that proves the repository."""

    engine: Literal["embedded", "container"] = Field(
        "embedded",
        description="embedded: tritonserver from nvidia-pytriton; container: the target's image through Docker",
    )
    start_timeout_s: Annotated[float, Field(gt=0, le=3600)] = 120.0
    request_timeout_s: Annotated[float, Field(gt=0, le=3600)] = 60.0


class TfServing(Section):
    """A tree for TensorFlow Serving beside the repository: <repository>.tfserving/."""

    from_: Name | None = Field(
        None, alias="from", description="the saved_model variant it serves; default: the first there is"
    )
