"""What a build hands to a server, and gets from it: plain values, and never the books of the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

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
)
from pipeline.images.postprocessing import Postprocessing
from pipeline.machine.target import Limits
from pipeline.repository.versions import Version
from pipeline.schema.serving import Serve
from pipeline.servers.planned import Row

R_co = TypeVar("R_co", bound=Row, covariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Given(Generic[R_co]):
    """What a server is given of a row: what is served, and what is right of its answers.

    Attributes:
        row: as it was planned.
        scores: the output that labels are made of, and how; None where the YAML has no `postprocess`.
        golden_path: the file of ``golden``.
        samples: the step that made it.
        serve: how servers are launched and asked.
        where: place of a key in the YAML.
        directory: for logs and what is printed.
        work_dir: the build's.
    """

    row: R_co
    signature: Signature
    scores: tuple[str, Postprocessing] | None
    golden: GoldenSamples
    golden_path: Path
    samples: Step
    serve: Serve
    limits: Limits
    where: Callable[..., str]
    directory: Path
    work_dir: Path

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
        artifact: what the report tells of its file; None for what is judged by its answers alone.
        loose: files of it that have other bytes in an equal version of another build.
        notes: what a person should know.
    """

    version: Version
    artifact: Artifact | None
    loose: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


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


Versions = Callable[[Given[Row], Making], Iterator[Emission]]
"""What is published of a row: each is in the candidate before the next is asked for, and the last is the row's own."""
Complete = Callable[[Path], str]
"""Writes what a root holds beside its models, and says how it is launched."""
Prove = Callable[[Given[Row], RepositoryEntry, SmokeCheck], AbstractContextManager[Suite]]
"""Launches what the proof of a version needs, until the block is left; told whether its files are its manifest's."""
