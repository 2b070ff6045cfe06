"""What all variants and deployments of a configuration share while they are planned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.base.step import Step
from pipeline.base.values import Signature
from pipeline.config.load import LoadedConfig
from pipeline.machine.environment import Environment
from pipeline.machine.target import Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What all variants of a configuration share.

    Attributes:
        calibration_digests: by variant key, the files that its calibration data is read from.
        timing_cache: folder of TensorRT's timing caches.
        repository: Triton's root.
    """

    loaded: LoadedConfig
    signature: Signature
    limits: Limits
    environment: Environment
    source: Step
    samples: Step
    calibration_digests: Mapping[str, Mapping[str, str]]
    timing_cache: Path
    repository: Path

    def beside(self, suffix: str) -> Path:
        """A root of its own for what Triton does not serve: ``<repository>.<suffix>``."""
        return self.repository.with_name(f"{self.repository.name}.{suffix}")
