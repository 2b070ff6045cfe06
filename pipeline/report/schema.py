"""The shape of report.json: what scripts may depend on."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline.base.values import AccuracyResult, Measurement, ParityResult, SmokeCheck


class Record(BaseModel):
    """Base of every mapping in the report."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_serialization_defaults_required=True)


class Smoke(Record):
    """The smoke test of a served variant."""

    outcome: Literal["passed", "failed", "not run"]
    checks: list[SmokeCheck]


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
    parity: ParityResult | None
    accuracy: AccuracyResult | None
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
