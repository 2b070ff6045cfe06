"""The shape of report.json: what scripts may depend on."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Record(BaseModel):
    """Base of every mapping in the report."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Parity(Record):
    """The variant against the source model, in process."""

    passed: bool
    max_abs: float = Field(description="greatest absolute difference, in the output's unit")
    max_rel: float = Field(description="greatest difference relative to the reference")
    cosine: float = Field(description="least cosine similarity, -1 to 1")
    top1_agreement: float | None = Field(description="share of samples with the same arg-max, 0 to 1")
    samples: int
    batch_sizes: list[int]
    tolerance: dict[str, float]
    worst: str
    reason: str = Field(description="why it did not pass; empty when it did")


class Accuracy(Record):
    """Over the golden samples, 0 to 1."""

    metric: str
    value: float
    reference: float = Field(description="the source model's")
    samples: int
    passed: bool
    reason: str


class Check(Record):
    """One check of the smoke test."""

    name: str
    protocol: Literal["http", "grpc", "-"]
    outcome: Literal["passed", "failed"]
    detail: str


class Smoke(Record):
    """The smoke test of a served variant."""

    outcome: Literal["passed", "failed", "not run"]
    checks: list[Check]


class Measurement(Record):
    """How fast it answered, as served on this machine beside the build: to compare siblings by; never a gate."""

    p50_ms: float = Field(description="median time of one request alone, sent and answered")
    p99_ms: float = Field(description="99th percentile of the same requests")
    throughput_per_s: float = Field(description="samples answered per second with `concurrency` requests in flight")
    concurrency: int = Field(description="requests in flight at once while throughput was measured")
    batch: int = Field(description="samples in each request")
    requests: int = Field(description="requests timed, alone and together")
    memory_bytes: int | None = Field(
        description="resident memory of the processes that run it; null where they cannot be told from others"
    )


class Pick(Record):
    """Which variant to take for one purpose."""

    purpose: Literal["latency", "throughput", "memory"]
    name: str | None = Field(description="the variant; null when there is nothing to choose")
    reason: str


class VariantReport(Record):
    """One variant, or one deployment made of variants."""

    name: str = Field(description="identifier and Triton model name")
    format: str
    precision: str
    model: str = Field(description="the YAML's `name`")
    server: str = Field(description="what serves it: triton, torchserve, tfserving, or none")
    version: int | None = Field(description="version directory; null when nothing was emitted")
    path: str | None = Field(description="version directory's path")
    sha256: str | None = Field(description="of the model file, or of the names and contents of its directory")
    size_bytes: int | None
    cached: bool = Field(description="export and parity came from the step store, and no new version was made")
    parity: Parity | None
    accuracy: Accuracy | None
    smoke: Smoke
    proof: Literal["none", "inspected", "served"] | None = Field(
        description="how far the version was proven, as its manifest says: by a real server's answers (served), by "
        "what was read in its files (inspected), not at all (none); null when it failed or was not published"
    )
    measurement: Measurement | None
    unmeasured_reason: str | None = Field(description="why there is no measurement; null when there is one")
    notes: list[str]
    skipped_reason: str | None
    error: str | None


class RunReport(Record):
    """One configuration's run."""

    run_id: str
    config: str
    environment: dict[str, Any]
    durations_s: dict[str, float] = Field(description="seconds per step")
    exit_code: Literal[0, 1, 2, 3, 4, 5]
    error: str | None = Field(description="what ended the run before its variants, if anything did")
    server_log: str | None
    variants: list[VariantReport]
    picks: list[Pick] = Field(description="what to take for latency, for throughput and for memory, and why")


def json_schema() -> dict[str, Any]:
    """JSON Schema of one run; ``build`` of several configurations writes an array of runs."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **RunReport.model_json_schema(mode="serialization"),
    }
