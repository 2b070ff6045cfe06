"""The YAML's shape. Every key a configuration may have is a field here, with its unit, default and limits."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipeline.schema.base import Name, Section
from pipeline.schema.images import Ensemble, Postprocess, Preprocess
from pipeline.schema.model import Input, Output, Samples, Source
from pipeline.schema.serving import Repository, Serve, TfServing, Triton
from pipeline.schema.torchserve import TorchServe
from pipeline.schema.variants import Gates, Variant


class Config(Section):
    """One model, from source to served."""

    name: Name
    source: Source
    inputs: Annotated[dict[Name, Input], Field(min_length=1)]
    outputs: Annotated[dict[Name, Output], Field(min_length=1)]
    samples: Samples = Samples.model_construct(from_="data.test", count=128, seed=0)
    variants: Annotated[dict[Name, Variant], Field(min_length=1)]
    gates: Gates = Gates()
    triton: Triton = Triton()
    repository: Repository = Repository()
    serve: Serve = Serve()
    preprocess: Preprocess | None = None
    postprocess: Postprocess | None = None
    ensemble: Ensemble | None = None
    torchserve: TorchServe | None = None
    tfserving: TfServing | None = None
