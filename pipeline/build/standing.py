"""Proves a repository by what was written down of it, without its YAML: `smoke REPOSITORY`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.base import model_config
from pipeline.base.errors import ConfigError, StageError
from pipeline.base.values import (
    AccuracyResult,
    Artifact,
    GoldenSamples,
    ParityResult,
    RepositoryEntry,
    RunningServer,
    Tolerance,
    VariantResult,
)
from pipeline.build import prove
from pipeline.build.books import Books, Named
from pipeline.build.prove import Serving, Subject
from pipeline.data import samples
from pipeline.machine import doctor, environment
from pipeline.machine.tensorrt_flavours import FlavourName
from pipeline.proof import record
from pipeline.report.terminal import Terminal
from pipeline.repository import pins
from pipeline.repository.manifest import golden_path, read_manifest
from pipeline.repository.versions import state_dir, version_numbers
from pipeline.schema.serving import Serve
from pipeline.servers.triton.models import engines_of, models_of

_RTX: FlavourName = "tensorrt_rtx"
_SERVING = Serving(name="repository", release="", serve=Serve())


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A model as it stands in a repository.

    Attributes:
        config: its config.pbtxt as a message.
        manifests: of its versions that are served, by number; only those that this tool wrote.
    """

    root: Path
    name: str
    config: Any
    manifests: Mapping[int, Mapping[str, Any]]

    @property
    def key(self) -> str:
        """Its row in the report."""
        return self.name

    @property
    def identifier(self) -> str:
        """Its Triton model name."""
        return self.name

    @property
    def newest(self) -> Mapping[str, Any]:
        """The manifest of the newest version that is served and that this tool wrote; empty where it wrote none."""
        return self.manifests[max(self.manifests)] if self.manifests else {}

    @property
    def is_part(self) -> bool:
        """Whether it only answers inside an ensemble."""
        return "ensemble" in self.newest and self.name != self.newest.get("model")

    def blank(self) -> VariantResult:
        """Its row, before anything is proven."""
        found, version = self.newest, max(self.manifests, default=0)
        entry = RepositoryEntry(root=self.root, model_name=self.name, version=version, created=False)
        blank = VariantResult(
            identifier=self.name,
            model=str(found.get("model", self.name)),
            format=str(found.get("format", "ensemble" if "ensemble" in found else "–")),
            precision=str(found.get("precision", "–")),
            entry=entry if version else None,
        )
        return replace(blank, **_figures(found, entry.version_dir)) if "variant" in found else blank


def _figures(manifest: Mapping[str, Any], version_dir: Path) -> dict[str, Any]:
    """A variant's size and its numbers in process, as its manifest has them; none where it is not as this build's."""
    try:
        parity, accuracy = manifest["parity"], manifest["accuracy"]
        typed = {"tolerance": Tolerance(**parity["tolerance"]), "batch_sizes": tuple(parity["batch_sizes"])}
        return {
            "artifact": Artifact(
                path=version_dir,
                kind=manifest["format"],
                sha256=manifest["sha256"],
                size_bytes=manifest["size_bytes"],
                tool_versions=manifest["tool_versions"],
            ),
            "parity": ParityResult(**{**parity, **typed}),
            "accuracy": AccuracyResult(**accuracy) if accuracy else None,
        }
    except (KeyError, TypeError):
        return {}


def standing(root: Path, name: str) -> Standing:
    """A model with what is known of its served versions.

    Raises:
        ConfigError: its config.pbtxt is none.
    """
    path = root / name / "config.pbtxt"
    config = model_config.parse_text(path.read_text(encoding="utf-8"), str(path))
    served = model_config.served_versions(config, version_numbers(root / name))
    found = {number: manifest for number in served if (manifest := read_manifest(root, name, number)) is not None}
    return Standing(root=root, name=name, config=config, manifests=found)


class Proof(Books):
    """The books of one proof of a repository.

    Attributes:
        rows: the models that are looked at.
    """

    def __init__(self, root: Path, models: Sequence[str], work_dir: Path, terminal: Terminal) -> None:
        self.rows = _chosen(root, models)
        super().__init__(work_dir, str(root), {row.key: row.blank() for row in self.rows}, terminal)
        self._root = root

    def reproduce(self, row: Named, command: str) -> str:
        """The command that proves just that model again."""
        words = ["python", "-m", "pipeline", "smoke", str(self._root), row.identifier]
        return shlex.join([*words, "--work-dir", str(self.work_dir)])


def _chosen(root: Path, models: Sequence[str]) -> list[Standing]:
    """The models named, or all but those that are proven with the ensemble they belong to.

    Raises:
        ConfigError: no such repository, no such model, or a model that answers only inside an ensemble.
    """
    if not state_dir(root).is_dir():
        raise ConfigError(
            "smoke: nothing is known of this repository",
            found=f"no {state_dir(root)}",
            where=str(root),
            hint="this tool keeps there what it proves by: copy it along, or name the YAML instead",
        )
    present = models_of(root)
    if unknown := [name for name in models if name not in present]:
        raise ConfigError(f"smoke: no model is called {', '.join(unknown)}", found=f"there are {', '.join(present)}")
    rows = [standing(root, name) for name in dict.fromkeys(models or present)]
    parts = [row for row in rows if row.is_part]
    if models and parts:
        whole = str(parts[0].newest["model"])
        raise ConfigError(
            f"smoke: {parts[0].name} answers only inside the ensemble {whole}", hint=f"name {whole}: it proves both"
        )
    return [row for row in rows if not row.is_part]


def prove_standing(books: Proof, remote: RunningServer | None) -> None:
    """Prove every model by its manifests and golden samples, on a server started here or on a running one.

    Raises:
        StageError: none of the models was written by this tool.
    """
    from pipeline.servers.triton.client import readiness

    known = []
    for row in books.rows:
        if row.manifests:
            known.append(row)
        else:
            books.update(row, skipped="no served version of it was written by this tool: what is right is not known")
    if not known:
        raise StageError("smoke: this tool wrote none of these models", found=", ".join(row.name for row in books.rows))
    if remote is None:
        subjects = []
        for row in known:
            with books.guarded(row, "smoke"):
                subjects.append(_subject(row, pins.member_versions(row.root, row.config), _obstacle(books, row)))
        prove.prove(books, _SERVING, subjects)
        books.record_levels(known)
        return
    for row in known:
        with books.guarded(row, "smoke"):
            if not (_obstacle(books, row) and prove.skips_at(books, row, remote)):
                served, _, reached = readiness.versions(remote.http_url, row.name)
                prove.prove_at(books, _SERVING, _subject(row, reached, ""), remote, served)


def _obstacle(books: Proof, row: Standing) -> str:
    """Why a model cannot be served here, or empty; an engine needs a GPU that it was built for."""
    if not engines_of([row.root], [row.name, *pins.member_versions(row.root, row.config)]):
        return ""
    here = environment.probe(books.work_dir)
    if lacking := doctor.lacks_to_run_engines(here):
        return lacking
    built_for = [f"sm_{name.replace('.', '')}" for name in row.config.cc_model_filenames]
    if here.gpu is not None and built_for and here.gpu.capability not in built_for:
        return f"the GPU here is {here.gpu.capability}, and the engine is for {', '.join(built_for)}"
    return ""


def _subject(row: Standing, reached: Mapping[str, int], obstacle: str) -> Subject:
    """What is right of a model, by its manifests.

    Raises:
        StageError: an older build of this tool wrote them, or the golden samples are lost.
    """
    return Subject(
        row=row,
        entry=RepositoryEntry(root=row.root, model_name=row.name, version=max(row.manifests), created=False),
        known=record.read(row.newest, row.name),
        golden=partial(_golden, row.root),
        members=reached,
        config=row.config,
        flavour=_RTX if row.config.backend == _RTX else "tensorrt",
        obstacle=obstacle,
    )


def _golden(root: Path, model: str, number: int) -> GoldenSamples | None:
    manifest = read_manifest(root, model, number)
    return samples.read(golden_path(root, manifest)) if manifest else None
