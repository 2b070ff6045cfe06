"""The ensemble of a build: from a variant that was emitted to three more models in the candidate."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import __version__
from pipeline.base import files
from pipeline.base.errors import MissingError, StageError
from pipeline.base.step import tool_versions
from pipeline.base.values import RepositoryEntry
from pipeline.build.run import Run
from pipeline.images import postprocessing, preprocessing
from pipeline.plan import EnsemblePlan
from pipeline.proof import record
from pipeline.repository import pins
from pipeline.repository.versions import Version
from pipeline.servers.triton import config_pbtxt, pillow
from pipeline.servers.triton import ensemble as configs

PYTHON_MODELS = Path(configs.__file__).parent / "python_models"
_SUFFIXES = {b"\x89P": ".png", b"\xff\xd8": ".jpg", b"RI": ".webp"}


def emit(run: Run) -> None:
    """Put the ensemble, where there is one, into the candidate; its failure is kept to its row."""
    plan = run.plan.ensemble
    if plan is None:
        return
    with run.guarded(plan, "build"):
        variant = run.results[plan.variant.key]
        if variant.skipped:
            run.update(plan, skipped=f"{variant.identifier}, which answers in it, was not made: {variant.skipped}")
            return
        if variant.entry is None:
            raise StageError(
                f"ensemble[{plan.name}]: the variant that answers in it was not made",
                found=variant.identifier,
                where=run.plan.loaded.where("variants", plan.variant.key),
                hint="mend that one, or name another: ensemble: {from: …}",
            )
        _emit(run, plan, _pillow(run, plan))


def model_files(run: Run, plan: EnsemblePlan, name: str, versions: Mapping[str, int]) -> config_pbtxt.ModelFiles:
    """The configuration of the preprocessing model, the postprocessing model or the ensemble.

    Args:
        run: the books.
        plan: the ensemble's.
        name: which of its models.
        versions: the members' that the ensemble asks.
    """
    before, _, after = plan.models
    (output, _), variant = run.scores, run.model_files(plan.variant).config
    limit = plan.variant.max_batch_size
    if name == before:
        return configs.preprocess(before, variant=variant, max_batch_size=limit)
    if name == after:
        return configs.postprocess(after, variant=variant, scores=output, max_batch_size=limit)
    return configs.ensemble(
        plan.name, steps=plan.models, versions=versions, variant=variant, scores=output, max_batch_size=limit
    )


def _pillow(run: Run, plan: EnsemblePlan) -> dict[str, Path]:
    """Pillow's folders by their places in the version directory; what is lacking is noted on the ensemble's row."""
    found, limits = {}, run.plan.limits
    here, container = tool_versions(("pillow",))["pillow"], f"Triton {limits.release}'s container"
    for one in plan.pillow:
        with run.stage(one.step.name, plan.name) as stage:
            try:
                made = run.step(one.step, stage)
            except MissingError as error:
                stage.result = "not to be had here"
                where = f"{container}, of Python {one.python}," if one.python == limits.python else "this Python"
                run.note(plan, f"{where} needs `pip install 'pillow<={here}'`: {error.found}")
                continue
            found[f"vendor/{pillow.folder_name(one.python, one.machine)}"] = made.directory / "files"
            version = made.values["version"]
            stage.result = f"Pillow {version} for Python {one.python}"
            if version != here:
                run.note(
                    plan,
                    f"{container}, of Python {one.python}, gets Pillow {version}, the newest for it; the golden "
                    f"samples were made with {here}, and versions differ in resizing by a few of 255: for the same "
                    f"in both, `pip install pillow=={version}` here",
                )
    if limits.python is None:
        run.note(
            plan,
            f"the Python of {container} is not known here; where it is not {plan.pillow[0].python}, it needs "
            f"`pip install 'pillow<={here}'`",
        )
    return found


def _emit(run: Run, plan: EnsemblePlan, vendored: Mapping[str, Path]) -> None:
    entries: dict[str, RepositoryEntry] = {}
    with run.stage(f"candidate[{plan.name}]", plan.name) as stage, tempfile.TemporaryDirectory() as folder:
        contents = _contents(run, plan, Path(folder), vendored)
        asked: Mapping[str, int] = {}
        for name in plan.published:  # the ensemble last: it names the versions of what it asks
            if name == plan.name:
                asked = _asked(run, plan)
                wiring = {**_wiring(run, plan), "versions": dict(asked)}
                contents[name] |= _written(Path(folder) / name, {"wiring.json": json.dumps(wiring, indent=2)})
            version = _version(run, plan, name, contents[name], model_files(run, plan, name, asked))
            entries[name] = run.emit(plan, version, stage)
        stage.cached = not any(entry.created for entry in entries.values())
        stage.result = " · ".join(f"{name} version {entry.version}" for name, entry in entries.items())
    run.update(plan, entry=entries[plan.name], cached=run.results[plan.variant.key].cached and stage.cached)


def _asked(run: Run, plan: EnsemblePlan) -> dict[str, int]:
    """The version of each member that the ensemble will reach: the newest one that is served in the candidate.

    Raises:
        StageError: a member's version_policy serves none.
    """
    root = run.candidates[plan.root].path
    found = {name: pins.reached_version(root / name) for name in plan.models}
    if lacking := [name for name, number in found.items() if number is None]:
        raise StageError(
            f"ensemble[{plan.name}]: {lacking[0]} serves no version that it could ask",
            found="its version_policy names none of the versions there are",
            where=run.plan.loaded.where("triton", "version_policy"),
            hint="name one that exists, or leave `version_policy` out",
        )
    return {name: number for name, number in found.items() if number is not None}


def _wiring(run: Run, plan: EnsemblePlan) -> dict[str, Any]:
    return {"takes": "image files", "steps": list(plan.models), "scores": run.scores[0], "gives": "labels as JSON text"}


def _contents(run: Run, plan: EnsemblePlan, folder: Path, vendored: Mapping[str, Path]) -> dict[str, dict[str, Path]]:
    """What each model's version directory holds, by path there; texts are written below ``folder``."""
    (_, after), before = run.scores, run.signature.image
    assert before is not None
    # Not in config.pbtxt, which all versions share. And an ensemble's directory may not be empty: git, S3 and OCI
    # registries would lose it, so it has its wiring, which is added when the versions of its members are known.
    texts = {
        plan.models[0]: {"settings.json": before.to_json(), "vendor/pillow.txt": _wanted()},
        plan.models[2]: {"settings.json": after.to_json()},
        plan.name: {},
    }
    contents = {name: _written(folder / name, own) for name, own in texts.items()}
    for name, module in ((plan.models[0], preprocessing), (plan.models[2], postprocessing)):
        code = Path(str(module.__file__))
        model = PYTHON_MODELS / name.rpartition("_")[2] / "model.py"
        contents[name] |= {"model.py": model, code.name: code}
    contents[plan.models[0]] |= vendored
    if image := run.golden.samples[0].image:
        example = folder / f"example{_SUFFIXES.get(image[:2], '')}"
        example.write_bytes(image)
        contents[plan.name][example.name] = example
    return contents


def _wanted() -> str:
    return f"'pillow<={tool_versions(('pillow',))['pillow']}'"


def _written(folder: Path, texts: Mapping[str, str]) -> dict[str, Path]:
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{text}\n", encoding="utf-8")
    return {name: folder / name for name in texts}


def _version(
    run: Run, plan: EnsemblePlan, name: str, content: Mapping[str, Path], model: config_pbtxt.ModelFiles
) -> Version:
    main = "model.py" if "model.py" in content else "wiring.json"
    limits = run.plan.limits
    return Version(
        model_name=name,
        file_name=main,
        artifact=content[main],
        beside={path: source for path, source in content.items() if path != main},
        model_files=model.files,
        golden=run.golden_path,
        manifest={
            "schema": 1,
            "tool": f"model-repository-pipeline {__version__}",
            "model": plan.name,
            "ensemble": {"variant": plan.variant.key, "steps": list(plan.models), "scores": run.scores[0]},
            "target": {"release": limits.release, "python": limits.python},
            "sha256": files.sha256_file(content[main]),
            "size_bytes": sum(files.size_bytes(source) for source in content.values()),
            "tool_versions": tool_versions(("pillow", "numpy")),
            **({"serving": record.of_images(known(run, plan))} if name == plan.name else {}),
        },
    )


def known(run: Run, plan: EnsemblePlan) -> record.ImagesRecord:
    """What is right of its answers, besides the golden samples."""
    (scores, after), before = run.scores, run.signature.image
    assert before is not None
    return record.ImagesRecord(
        answering=plan.variant.identifier, scores=scores, before=before, after=after, tolerance=plan.variant.tolerance
    )
