"""What a build hands to a server, and gets from it: plain values, and never the books of the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pipeline.base.errors import MissingError, SmokeError
from pipeline.base.step import Made, Step
from pipeline.base.values import (
    Artifact,
    GoldenSamples,
    Measurement,
    Progress,
    ProofLevel,
    RepositoryEntry,
    Signature,
    SmokeCheck,
    SmokeResult,
    Tolerance,
)
from pipeline.formats.tensorrt.spec import EngineSpec
from pipeline.images.postprocessing import Postprocessing
from pipeline.machine.target import Limits
from pipeline.repository.versions import Version
from pipeline.schema.serving import Serve
from pipeline.servers.server import Settings


class Engine(Protocol):
    """A variant's engine."""

    @property
    def spec(self) -> EngineSpec:
        """What was built."""

    @property
    def file_names(self) -> Mapping[str, str]:
        """Its file by compute capability, as Triton writes it: ``{"8.0": "model_sm80.plan"}``."""


class Answering(Protocol):
    """The variant that answers, as it was planned."""

    @property
    def key(self) -> str:
        """Its key under ``variants``."""

    @property
    def identifier(self) -> str:
        """``<name>_<key>``."""

    @property
    def kind(self) -> str:
        """What its file is."""

    @property
    def precision(self) -> str:
        """Of its weights and arithmetic."""

    @property
    def engine(self) -> Engine | None:
        """Where it is one."""

    @property
    def max_batch_size(self) -> int:
        """0 where none are joined."""

    @property
    def fields(self) -> Mapping[str, Any]:
        """ModelConfig fields from the YAML."""

    @property
    def tolerance(self) -> Tolerance:
        """How close its answers must be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What a server is given of a row: what is served, and what is right of its answers.

    Attributes:
        identifier: the row's.
        model: the YAML's ``name``.
        published: the row's model directories.
        members: the models that it asks, where it is an ensemble.
        variant: the one whose file it is.
        settings: of a deployment, else None.
        serve: how servers are launched and asked.
        limits: of the target.
        scores: the output that labels are made of, and how; None where the YAML has no `postprocess`.
        golden_path: the file of ``golden``.
        where: place of a key in the YAML.
    """

    identifier: str
    model: str
    published: tuple[str, ...]
    members: tuple[str, ...]
    variant: Answering
    settings: Settings | None
    serve: Serve
    limits: Limits
    signature: Signature
    scores: tuple[str, Postprocessing] | None
    golden: GoldenSamples
    golden_path: Path
    where: Callable[..., str]

    @property
    def labelling(self) -> tuple[str, Postprocessing]:
        """``scores``, for what is made only where the YAML has a `postprocess`."""
        assert self.scores is not None
        return self.scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Making:
    """What a version is made from.

    Attributes:
        artifact: the variant's file.
        manifest: all that is known of that.
        prepared: the deployment's steps, with what they made or why they could not.
        folder: an empty one, for what is written.
        root: the candidate's; what was emitted before is there.
    """

    artifact: Artifact
    manifest: Mapping[str, Any]
    prepared: Sequence[tuple[Step, Made | MissingError]]
    folder: Path
    root: Path

    @property
    def origin(self) -> dict[str, Any]:
        """What every manifest begins with."""
        return {key: self.manifest[key] for key in ("schema", "tool", "model")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Emission:
    """A version for the candidate.

    Attributes:
        version: what it holds.
        artifact: what the report tells of its file; None for what is judged by its answers alone.
        loose: files of it that have other bytes in an equal version of another build.
        notes: what a person should know.
    """

    version: Version
    artifact: Artifact | None
    loose: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


Versions = Callable[[Given, Making], Iterator[Emission]]
"""What is published of a row: each is in the candidate before the next is asked for, and the last is the row's own."""
Complete = Callable[[Path], str]
"""Writes what a root holds beside its models, and says how it is launched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proving:
    """What a proof is given besides.

    Attributes:
        entry: the version that is to be proven.
        intact: whether its files are those of its manifest.
        directory: for logs and what is printed.
        work_dir: the build's.
        samples: the step that made the golden samples.
    """

    entry: RepositoryEntry
    intact: SmokeCheck
    directory: Path
    work_dir: Path
    samples: Step


Done = Callable[[Step, Path], Made]
"""Does a step, or takes it from the store; given the path of its log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """The proof of one version, ready to run.

    Attributes:
        check: runs every check; None where that cannot be done here, as the notes say.
        at: where the server listens, which was launched for it.
        stage: what it is called.
        measure: measures its speed, once it has passed, or says what was wrong then.
        unmeasured: why that is not done.
        level: what passing proves.
        log: the server's.
        notes: what a person should know.
    """

    check: Callable[[Progress, Done], SmokeResult] | None
    at: str = ""
    stage: str = "smoke"
    measure: Callable[[Progress], Measurement | SmokeError] | None = None
    unmeasured: str = ""
    level: ProofLevel = "served"
    log: Path | None = None
    notes: tuple[str, ...] = ()


Prove = Callable[[Given, Proving], AbstractContextManager[Suite]]
"""Launches what is needed for a proof, until the block is left."""
