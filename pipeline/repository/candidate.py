"""A candidate: the models of one build as they shall be, a whole repository that no server but the proof's sees.

``<root>.state/candidates/<run>/`` is a repository root of its own, on the root's file system: standing versions as hard
links, the new version and the configuration written anew, and its own ``<run>.state`` with the manifests and golden
samples, so that whatever proves a repository proves a candidate. ``<run>.lock`` is held while the build lives: the
kernel lets go of it whatever kills the build, and whoever comes next clears what is left.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.base import files
from pipeline.base.errors import StageError
from pipeline.base.values import RepositoryEntry
from pipeline.repository import manifest as manifests
from pipeline.repository import pins, swap
from pipeline.repository.versions import CONFIG, LOCK_TIMEOUT_S, Version, Waiting, changing, state_dir, version_numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class Emitted:
    """A model in a candidate.

    Attributes:
        version: the number it has, or has already.
        created: False where the newest version that stands has the same content.
        own: the configuration as the YAML has it, labels and warmup data.
        manifest: of the version, without a proof level.
        retain: how many versions of this tool's are kept; None for all.
        damage: what is wrong with the version that it replaces, or empty.
    """

    model_name: str
    version: int
    created: bool
    own: Mapping[str, bytes]
    manifest: Mapping[str, Any]
    retain: int | None
    damage: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """What one build emitted for one root.

    Attributes:
        root: the repository that it is a candidate for.
        path: the candidate's own root.
        models: the directories that the build may publish.
        emitted: what is in it, by model name.
    """

    root: Path
    path: Path
    models: Sequence[str]
    emitted: dict[str, Emitted] = field(default_factory=dict)

    def add(self, version: Version, *, retain: int | None) -> RepositoryEntry:
        """Put a model into the candidate as it shall be: with a new version, unless the newest one is the same.

        Of this tool's versions ``retain`` are kept, all where it is None; foreign versions, and those that an ensemble
        or the configuration names, are never removed.

        Raises:
            StageError: the model directory exists and was not written by this tool.
        """
        with files.disk_errors(self.path, f"candidate[{version.model_name}]"):
            return self._add(version, retain)

    def _add(self, version: Version, retain: int | None) -> RepositoryEntry:
        name, live = version.model_name, self.root / version.model_name
        refuse_foreign(self.root, name)
        existing = version_numbers(live)
        newest = existing[-1] if existing else 0
        digests = version.digests()
        standing = manifests.read_manifest(self.root, name, newest)
        damage = manifests.corruption(live / str(newest), standing)
        same = standing is not None and _is_same(version, digests, standing) and not damage
        if same and standing is not None and standing["files"] != digests:  # the files that stand there stay
            digests = standing["files"]
            kept = {key: standing[key] for key in ("sha256", "size_bytes", "properties")}
            version = replace(version, manifest={**version.manifest, **kept})
        number = newest if same else newest + 1
        numbers = existing if same else [*existing, number]
        others = pins.standing(self.root, without=self.models).get(name, set())
        own = pins.serving(version.model_files, numbers, others)
        pinned = pins.standing(self.root).get(name, set())
        doomed = retired(self.root, name, numbers, retain, {*pinned, *pins.named(version.model_files.get(CONFIG))})
        self._write(version, None if same else number, own, doomed)
        record = _record(version, number, digests)
        self._keep_records(name, record, version.golden, numbers)
        self.emitted[name] = Emitted(
            model_name=name,
            version=number,
            created=not same,
            own=version.model_files,
            manifest=record,
            retain=retain,
            damage=damage,
        )
        return RepositoryEntry(root=self.path, model_name=name, version=number, created=not same)

    def _write(self, version: Version, number: int | None, own: Mapping[str, bytes], doomed: Sequence[int]) -> None:
        directory = self.path / version.model_name
        files.remove_tree(directory)
        swap.assemble(directory, standing=self.root / version.model_name, without=doomed, own=own, added={})
        if number is None:
            return
        for name, source in version.parts.items():
            target = directory / str(number) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            swap.copy_tree(source, target, shutil.copyfile)

    def _keep_records(self, name: str, record: Mapping[str, Any], golden: Path, numbers: Sequence[int]) -> None:
        """Give the candidate the manifests and golden samples of its versions."""
        for number in numbers:
            mine = number == record["version"]
            manifest = record if mine else manifests.read_manifest(self.root, name, number)
            if manifest is None:
                continue
            place = state_dir(self.path) / "manifests" / name / f"{number}.json"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(manifests.text(manifest))
            source = golden if mine else manifests.golden_path(self.root, manifest)
            target = manifests.golden_path(self.path, manifest)
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_file() and not target.exists():
                shutil.copyfile(source, target)


def refuse_foreign(root: Path, model_name: str) -> None:
    """Leave alone what others wrote: a StageError where the model directory exists and is not of this tool."""
    live = root / model_name
    if live.exists() and not manifests.has_records(root, model_name):
        raise StageError(
            f"repository[{model_name}]: the model directory exists and was not written by this tool",
            where=str(live),
            hint=f"move it away, choose another `name`, or restore {state_dir(root)} if it was lost",
        )


def retired(root: Path, model_name: str, numbers: Sequence[int], retain: int | None, kept: set[int]) -> list[int]:
    """Versions that ``retain`` removes: the oldest of this tool's, unchanged ones, but the newest and ``kept``."""
    if retain is None:
        return []
    ours = [
        number
        for number in numbers[:-1]
        if (manifest := manifests.read_manifest(root, model_name, number)) is not None
        and not manifests.corruption(root / model_name / str(number), manifest)
    ]
    return [number for number in ours[: max(0, len(ours) + 1 - retain)] if number not in kept]


def _is_same(version: Version, digests: Mapping[str, str], manifest: Mapping[str, Any]) -> bool:
    recorded = manifest.get("properties")
    if version.identity and isinstance(recorded, dict) and recorded.get("identity") == version.identity:
        return True
    return bool(manifest.get("files") == digests)


def _record(version: Version, number: int, digests: Mapping[str, str]) -> dict[str, Any]:
    own = {name: files.sha256_bytes(data) for name, data in version.model_files.items()}
    return {
        "size_bytes": files.size_bytes(version.artifact),
        **version.manifest,
        "model_name": version.model_name,
        "version": number,
        "files": dict(digests),
        **({"model_files": own} if own else {}),
        **({"config_sha256": own[CONFIG]} if CONFIG in own else {}),
        "golden_sha256": files.sha256_file(version.golden),
    }


# ---- from a build's first emission to its last publication ----------------------------------------------------------


@contextlib.contextmanager
def opened(
    root: Path, models: Sequence[str], *, run_id: str, waiting: Waiting = lambda holder: None
) -> Iterator[Candidate]:
    """A candidate for these models of a root; nobody else builds them until the block is left, and then it is gone.

    What a death left behind is mended first: candidates whose builds are dead are removed, manifests are those of the
    files that stand.

    Raises:
        MissingError: disk full, not writable, or another build holds a model for too long; ``waiting`` is told who.
    """
    state = state_dir(root)
    path = state / "candidates" / run_id
    with contextlib.ExitStack() as stack:
        for model in sorted(models):  # in one order, so that two builds never wait for each other
            stack.enter_context(files.locked(state / "locks" / model, LOCK_TIMEOUT_S, waiting))
        with files.disk_errors(root, "candidate"), changing(root, waiting):
            clear(root)
            for model in models:
                manifests.settle(root, model)
            stack.enter_context(_alive(path))
            path.mkdir(parents=True)
        yield Candidate(root, path, models)


@contextlib.contextmanager
def _alive(path: Path) -> Iterator[None]:
    """Hold a candidate's lock file; on leaving, the candidate goes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _lock_file(path).open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # whoever comes next clears the rest
                _remove(path)


def clear(root: Path) -> int:
    """Mend what deaths left of a root's state: staging, and candidates without a build. Returns the bytes freed.

    The caller holds the global lock.
    """
    swap.recover(root)
    folder, freed = state_dir(root) / "candidates", 0
    names = {item.name.partition(".")[0] for item in folder.iterdir()} if folder.is_dir() else set()
    for name in sorted(names):
        with _lock_file(folder / name).open("a") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            freed += files.size_bytes(folder / name) if (folder / name).is_dir() else 0
            _remove(folder / name)
    return freed


def collect(root: Path) -> int:
    """Remove the candidates of dead builds; returns the bytes freed, hard links to standing versions included."""
    if not (state_dir(root) / "candidates").is_dir():
        return 0
    with files.disk_errors(root, "cache gc"), changing(root):
        return clear(root)


def is_alive(root: Path, run_id: str) -> bool:
    """Whether a build's candidate is still there."""
    return _lock_file(state_dir(root) / "candidates" / run_id).exists()


def _lock_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")


def _remove(path: Path) -> None:
    files.remove_tree(path)
    files.remove_tree(state_dir(path))
    _lock_file(path).unlink(missing_ok=True)
