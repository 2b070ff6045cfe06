"""What Triton is given: a variant's file with its configuration, and the three models that make an ensemble of one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pipeline.base import files
from pipeline.base.errors import MissingError, StageError
from pipeline.base.step import Made, Step, tool_versions
from pipeline.formats.table import BACKENDS
from pipeline.images import postprocessing, preprocessing
from pipeline.proof import record
from pipeline.repository import pins
from pipeline.repository.versions import Version
from pipeline.servers.planned import DeploymentPlan, Row, Variant
from pipeline.servers.triton import config_pbtxt, pillow
from pipeline.servers.triton import ensemble as configs
from pipeline.servers.work import Emission, Given, Making

PYTHON_MODELS = Path(configs.__file__).parent / "python_models"
_SUFFIXES = {b"\x89P": ".png", b"\xff\xd8": ".jpg", b"RI": ".webp"}


def variant(given: Given[Variant], making: Making) -> Iterator[Emission]:
    """The variant itself: its file, or its engines with what is told of each."""
    row, artifact = given.row, making.artifact
    engines = [one.file_name for one in row.engine.spec.each] if row.engine else []
    file_name, *others = engines or [BACKENDS[row.kind].file_name]
    others += [f"{name}.json" for name in engines]
    version = Version(
        model_name=row.identifier,
        file_name=file_name,
        artifact=artifact.path,
        beside={name: artifact.path.with_name(name) for name in others},
        identity=artifact.properties.get("identity", ""),
        model_files=described(given).files,
        golden=given.golden_path,
        manifest=making.manifest,
    )
    yield Emission(version=version, artifact=artifact, loose=tuple(engines))


def described(given: Given[Row]) -> config_pbtxt.ModelFiles:
    """The variant's config.pbtxt and the files beside it."""
    row, engine = given.row.variant, given.row.variant.engine
    return config_pbtxt.describe(
        model_name=row.identifier,
        kind=row.kind,
        signature=given.signature,
        max_batch_size=row.max_batch_size,
        fields=row.fields,
        warmup=given.golden.samples[0],
        engines=engine.file_names if engine else None,
        profiles=len(engine.spec.profiles) if engine else 1,
    )


# ---- the ensemble -------------------------------------------------------------------------------------------------


def ensemble(given: Given[DeploymentPlan], making: Making) -> Iterator[Emission]:
    """Preprocessing, postprocessing, and the ensemble, which names the versions of what it asks."""
    vendored, notes = _pillow(given, making.prepared)
    contents = _contents(given, making.folder, vendored)
    asked: Mapping[str, int] = {}
    for name in given.row.published:
        if name == given.row.model:
            asked = _asked(given, making.root)
            wiring = {
                "takes": "image files",
                "steps": list(given.row.members),
                "scores": given.labelling[0],
                "gives": "labels as JSON text",
                "versions": dict(asked),
            }
            contents[name] |= _written(making.folder / name, {"wiring.json": json.dumps(wiring, indent=2)})
        version = _version(given, making, name, contents[name], models(given, asked)[name])
        yield Emission(version=version, artifact=None, notes=tuple(notes))
        notes.clear()  # once


def models(given: Given[DeploymentPlan], versions: Mapping[str, int]) -> dict[str, config_pbtxt.ModelFiles]:
    """The configurations of the ensemble's own models, given the versions of what it asks."""
    (scores, _), answering = given.labelling, described(given).config
    return configs.models(given.row.model, steps=given.row.members, versions=versions, variant=answering, scores=scores)


def known(given: Given[DeploymentPlan]) -> record.ImagesRecord:
    """What is right of an ensemble's answers, besides the golden samples."""
    (scores, after), before = given.labelling, given.signature.image
    assert before is not None
    return record.ImagesRecord(
        answering=given.row.variant.identifier,
        scores=scores,
        before=before,
        after=after,
        tolerance=given.row.variant.tolerance,
    )


def _pillow(
    given: Given[DeploymentPlan], prepared: Sequence[tuple[Step, Made | MissingError]]
) -> tuple[dict[str, Path], list[str]]:
    """Pillow's folders by their places in the version directory, and what a person should know of them."""
    found: dict[str, Path] = {}
    notes, limits = [], given.limits
    here, container = tool_versions(("pillow",))["pillow"], f"Triton {limits.release}'s container"
    for step, made in prepared:
        python = step.arguments["python"]
        if isinstance(made, MissingError):
            where = f"{container}, of Python {python}," if python == limits.python else "this Python"
            notes.append(f"{where} needs `pip install 'pillow<={here}'`: {made.found}")
            continue
        found[f"vendor/{pillow.folder_name(python, step.arguments['machine'])}"] = made.directory / "files"
        if (version := made.values["version"]) != here:
            notes.append(
                f"{container}, of Python {python}, gets Pillow {version}, the newest for it; the golden "
                f"samples were made with {here}, and versions differ in resizing by a few of 255: for the same "
                f"in both, `pip install pillow=={version}` here"
            )
    if limits.python is None:
        notes.append(
            f"the Python of {container} is not known here; where it is not {prepared[0][0].arguments['python']}, it "
            f"needs `pip install 'pillow<={here}'`"
        )
    return found, notes


def _asked(given: Given[DeploymentPlan], root: Path) -> dict[str, int]:
    """The version of each member that the ensemble will reach: the newest one that is served in the candidate.

    Raises:
        StageError: a member's version_policy serves none.
    """
    found = {name: pins.reached_version(root / name) for name in given.row.members}
    if lacking := [name for name, number in found.items() if number is None]:
        raise StageError(
            f"ensemble[{given.row.model}]: {lacking[0]} serves no version that it could ask",
            found="its version_policy names none of the versions there are",
            where=given.where("triton", "version_policy"),
            hint="name one that exists, or leave `version_policy` out",
        )
    return {name: number for name, number in found.items() if number is not None}


def _contents(given: Given[DeploymentPlan], folder: Path, vendored: Mapping[str, Path]) -> dict[str, dict[str, Path]]:
    """What each model's version directory holds, by path there; texts are written below ``folder``."""
    (_, after), before = given.labelling, given.signature.image
    assert before is not None
    # Not in config.pbtxt, which all versions share. And an ensemble's directory may not be empty: git, S3 and OCI
    # registries would lose it, so it has its wiring, which is added when the versions of its members are known.
    texts = {
        given.row.members[0]: {"settings.json": before.to_json(), "vendor/pillow.txt": _wanted()},
        given.row.members[2]: {"settings.json": after.to_json()},
        given.row.model: {},
    }
    contents = {name: _written(folder / name, own) for name, own in texts.items()}
    for name, module in ((given.row.members[0], preprocessing), (given.row.members[2], postprocessing)):
        code = Path(str(module.__file__))
        model = PYTHON_MODELS / name.rpartition("_")[2] / "model.py"
        contents[name] |= {"model.py": model, code.name: code}
    contents[given.row.members[0]] |= vendored
    if image := given.golden.samples[0].image:
        example = folder / f"example{_SUFFIXES.get(image[:2], '')}"
        example.write_bytes(image)
        contents[given.row.model][example.name] = example
    return contents


def _wanted() -> str:
    return f"'pillow<={tool_versions(('pillow',))['pillow']}'"


def _written(folder: Path, texts: Mapping[str, str]) -> dict[str, Path]:
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{text}\n", encoding="utf-8")
    return {name: folder / name for name in texts}


def _version(
    given: Given[DeploymentPlan], making: Making, name: str, content: Mapping[str, Path], model: config_pbtxt.ModelFiles
) -> Version:
    main = "model.py" if "model.py" in content else "wiring.json"
    limits = given.limits
    return Version(
        model_name=name,
        file_name=main,
        artifact=content[main],
        beside={path: source for path, source in content.items() if path != main},
        model_files=model.files,
        golden=given.golden_path,
        manifest={
            **making.origin,
            "ensemble": {
                "variant": given.row.variant.key,
                "steps": list(given.row.members),
                "scores": given.labelling[0],
            },
            "target": {"release": limits.release, "python": limits.python},
            "sha256": files.sha256_file(content[main]),
            "size_bytes": sum(files.size_bytes(source) for source in content.values()),
            "tool_versions": tool_versions(("pillow", "numpy")),
            **({"serving": record.of_images(known(given))} if name == given.row.model else {}),
        },
    )
