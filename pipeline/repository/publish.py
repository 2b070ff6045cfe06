"""Publication: the models of a candidate that were proven, each put in place by one swap.

Members come before the ensemble that asks them, and keep what the ensemble that stands asks of them; when that has
moved too, ``narrow`` gives them the configuration they were built with. So a server, or anybody who reads the root at
any moment, finds every ensemble with the very versions of its members that it was proven with.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.base import files
from pipeline.base.errors import StageError
from pipeline.base.values import ProofLevel, RepositoryEntry
from pipeline.repository import manifest as manifests
from pipeline.repository import pins, swap
from pipeline.repository.candidate import Candidate, Emitted, refuse_foreign, retired
from pipeline.repository.versions import CONFIG, Waiting, changing, own_files, version_numbers


def put(
    candidate: Candidate, model_name: str, *, proof: ProofLevel, waiting: Waiting = lambda holder: None
) -> RepositoryEntry:
    """Publish one model of a candidate, proven as far as ``proof``.

    Whatever moment the process dies at, the model directory is as it was or holds the new version whole, and its
    manifest is that of the files that stand.

    Raises:
        StageError: the candidate, or the repository, was changed by others meanwhile.
        MissingError: disk full, not writable, or the lock is held for too long; ``waiting`` is told by whom.
    """
    emitted, root = candidate.emitted[model_name], candidate.root
    with files.disk_errors(root, f"repository[{model_name}]"):
        root.mkdir(parents=True, exist_ok=True)
        with changing(root, waiting):
            manifests.settle(root, model_name)
            _check(candidate, emitted)
            notes = _put(candidate, emitted, proof)
    return RepositoryEntry(
        root=root, model_name=model_name, version=emitted.version, created=emitted.created, notes=tuple(notes)
    )


def narrow(candidate: Candidate, model_name: str) -> None:
    """Give a published model its own configuration, now that no ensemble that stands asks for more.

    No version is removed yet: a server that polls may still be loading what the ensemble asked a moment ago, and
    Triton's Python stub never comes back from a folder that goes meanwhile (core 2.51). The next build removes it.
    """
    emitted, root = candidate.emitted[model_name], candidate.root
    with files.disk_errors(root, f"repository[{model_name}]"), changing(root):
        own = _own(root, emitted, version_numbers(root / model_name))
        if own != own_files(root / model_name):
            _swap(root, model_name, own=own, without=(), added={})


def _check(candidate: Candidate, emitted: Emitted) -> None:
    """Hold the candidate against what was written down of it, and the root against what the candidate was made for."""
    name = emitted.model_name
    refuse_foreign(candidate.root, name)
    damage = manifests.corruption(candidate.path / name / str(emitted.version), emitted.manifest)
    numbers = version_numbers(candidate.root / name)
    newest = numbers[-1] if numbers else 0
    if not damage and newest != emitted.version - emitted.created:
        damage = f"the newest version is {newest} now"
    if damage:
        what = f"repository[{name}]: it was changed while version {emitted.version} was being proven"
        hint = "nothing of it was published; build it again"
        raise StageError(what, found=damage, where=str(candidate.root / name), hint=hint)


def _put(candidate: Candidate, emitted: Emitted, proof: ProofLevel) -> list[str]:
    root, name = candidate.root, emitted.model_name
    own, doomed = _wanted(root, emitted)
    standing = manifests.read_manifest(root, name, emitted.version)
    manifest = manifests.with_level(emitted.manifest, proof, standing)
    with _golden(candidate, manifest):
        updated = own != own_files(root / name)
        if not (emitted.created or updated or doomed):
            if manifest != standing:
                manifests.write(root, manifest)
            _forget_removed(root, emitted)  # of what an earlier build removed and did not live to forget
            return []
        _pin_askers(root, name)
        own, doomed = _wanted(root, emitted)
        number = str(emitted.version)
        added = {number: candidate.path / name / number} if emitted.created else {}
        manifests.prepare(root, manifest, own.get(CONFIG))
        _swap(root, name, own=own, without=doomed, added=added, left=manifests.left_behind(manifest))
        manifests.finish(root, manifest)
        _forget_removed(root, emitted)
    notes = [f"{emitted.damage}; a new version replaces it"] if emitted.damage else []
    if updated and not emitted.created:
        notes.append(f"version {number} is unchanged; its configuration was updated")
    return [*notes, *(f"version {old} was removed (retain: {emitted.retain})" for old in doomed)]


@contextlib.contextmanager
def _golden(candidate: Candidate, manifest: Mapping[str, Any]) -> Iterator[None]:
    """Keep the golden samples for a manifest; where that does not come to count, they go with all that was prepared."""
    root, name = candidate.root, manifest["model_name"]
    golden = manifests.golden_path(root, manifest)
    fresh = not golden.is_file()
    if fresh:
        files.write_atomic(golden, manifests.golden_path(candidate.path, manifest).read_bytes())
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # then the next build does it
            swap.recover(root)
            manifests.settle(root, name)
            standing = manifests.read_manifest(root, name, manifest["version"])
            if fresh and (standing is None or standing.get("golden_sha256") != manifest["golden_sha256"]):
                golden.unlink()
        raise


def _forget_removed(root: Path, emitted: Emitted) -> None:
    for number in manifests.orphans(root, emitted.model_name) if emitted.retain is not None else ():
        manifests.forget(root, emitted.model_name, number)


def _wanted(root: Path, emitted: Emitted) -> tuple[dict[str, bytes], list[int]]:
    """The model's own files with what standing ensembles ask, and the versions that nothing keeps any more."""
    name = emitted.model_name
    pinned = pins.standing(root).get(name, set())
    numbers = sorted({*version_numbers(root / name), emitted.version})
    kept = pinned | set(pins.named(emitted.own.get(CONFIG)))
    doomed = retired(root, name, numbers, emitted.retain, kept)
    return _own(root, emitted, [number for number in numbers if number not in doomed]), doomed


def _own(root: Path, emitted: Emitted, numbers: Sequence[int]) -> dict[str, bytes]:
    return pins.serving(emitted.own, numbers, pins.standing(root).get(emitted.model_name, set()))


def _pin_askers(root: Path, member: str) -> None:
    """Make this tool's ensembles that ask for a member's newest version name the one they reach now."""
    for folder in sorted(root.iterdir()):
        message = pins.read_config(folder) if manifests.has_records(root, folder.name) else None
        if message is None or all(step.model_name != member for step in message.ensemble_scheduling.step):
            continue
        if (config := pins.pinned_now(root, folder)) is not None:
            _swap(root, folder.name, own={**own_files(folder), CONFIG: config}, without=(), added={})


def _swap(
    root: Path,
    model_name: str,
    *,
    own: Mapping[str, bytes],
    without: Collection[int],
    added: Mapping[str, Path],
    left: str = "",
) -> None:
    """One swap: what stands now but ``without``, ``own`` files, and ``added`` versions without what their use left."""
    staged = swap.staging(root, model_name)
    swap.assemble(staged, standing=root / model_name, without=without, own=own, added=added)
    for name in added if left else ():
        files.remove_tree(staged / name / left)
    files.fsync_tree(staged)
    swap.swap(root, model_name, staged)
