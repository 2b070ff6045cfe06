"""TorchServe's way back: an existing ``.mar`` becomes a YAML of this pipeline and the files that it names.

What is made::

    NAME/NAME.yaml       the configuration
    NAME/labels.txt      from index_to_name.json
    NAME/archive/…       the archive's files, unchanged: those the YAML names, and the others for reading
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pipeline.base import files
from pipeline.base.errors import ConfigError, MissingError, Problem
from pipeline.base.printing import printable
from pipeline.base.values import NUMPY_DTYPES
from pipeline.config import load as loading
from pipeline.importing import archive as archives
from pipeline.importing import manifest as manifests
from pipeline.importing import model, serving, tensors, writing
from pipeline.importing.manifest import Manifest
from pipeline.importing.model import Found
from pipeline.importing.tensors import Tensor

ARCHIVE, LABELS = "archive", "labels.txt"
Outcome = Literal["carried", "kept", "not carried", "to do"]
_NO_FOLDER, _TAKEN = "import-mar: no folder can be made there", "import-mar: the folder exists already"


@dataclass(frozen=True, slots=True)
class Line:
    """One thing of the archive, and what became of it: ``kept`` files lie there for reading, unused."""

    outcome: Outcome
    what: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What an import made.

    Attributes:
        problems: why the YAML does not load as it stands; empty when it does.
        sample_key: the key that ``--set`` gives golden samples by, where the YAML has none.
    """

    config: Path
    lines: tuple[Line, ...]
    problems: tuple[Problem, ...]
    sample_key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Draft:
    """The YAML's contents before they are text."""

    manifest: Manifest
    found: Found
    labels: tuple[str, ...]
    image: bool
    triton: dict[str, Any]
    samples: str
    origin: str


def import_mar(
    path: Path,
    out: Path | None,
    *,
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
    samples: Path | None = None,
) -> Imported:
    """Read an archive and write ``out``, whole or not at all. Nothing of the archive is run.

    Args:
        path: a ``.mar``, or the ``.tar.gz`` of ``--archive-format tgz``.
        out: a folder that does not exist yet; by default one named as the model, in the working directory.
        inputs: ``NAME:DTYPE:SHAPE`` each, for what the archive does not tell.
        outputs: likewise.
        samples: a folder of images, or an .npz or .npy, for golden samples.

    Raises:
        ConfigError: the archive, an argument or ``out`` is refused; nothing was written then.
        MissingError: the disk is full, or nothing can be written beside ``out``.
    """
    told = [tensors.given(text, "--input") for text in inputs], [tensors.given(text, "--output") for text in outputs]
    if samples is not None and not os.path.exists(samples):  # noqa: PTH110 - Path.exists raises for a name too long
        raise ConfigError("import-mar: no such samples", where=str(samples), hint="name others with --samples")
    parent = _parent(out)
    with files.disk_errors(parent, "import-mar"), _scratch(parent) as scratch:
        staged, unpacked = scratch / "staged", scratch / "staged" / ARCHIVE
        unpacked.mkdir(parents=True)
        names = archives.unpack(path, unpacked)
        manifest = manifests.read(unpacked, names, path)
        target = out or Path(manifest.name)
        _free(target)
        found = _completed(model.find(unpacked, manifest, path), told)
        named = samples and not samples.is_absolute() and os.path.relpath(samples, target)  # as seen from the YAML
        draft, lines = _draft(unpacked, manifest, found, str(named or samples or ""), path)
        text, todo = _text(draft)
        config = staged / f"{manifest.name}.yaml"
        config.write_text(text, encoding="utf-8")
        if draft.labels:
            (staged / LABELS).write_text("\n".join(draft.labels) + "\n", encoding="utf-8")
        files.fsync_tree(staged)
        _publish(staged, target)
    done = target / config.name
    return Imported(
        config=done,
        lines=(*lines, *_kept(names, draft), *todo),
        problems=_problems(done),
        sample_key="" if draft.samples else f"samples.from.{'images' if draft.image else 'arrays'}",
    )


def _parent(out: Path | None) -> Path:
    """The folder that ``out``, which is not there yet, will be in."""
    try:
        parent = (out.absolute() if out else Path.cwd() / "x").parent
        if not parent.is_dir():
            hint = "make it, or name another with --out"
            raise ConfigError("import-mar: no such folder", where=str(parent), hint=hint)
        _free(out)
    except OSError as error:  # a name too long
        raise ConfigError(_NO_FOLDER, found=str(error), where=str(out), hint="name another with --out") from error
    return parent


@contextlib.contextmanager
def _scratch(parent: Path) -> Iterator[Path]:
    try:
        made = tempfile.TemporaryDirectory(dir=parent, prefix=".import-")
    except FileNotFoundError as error:  # what /proc says, where nobody can make one
        raise MissingError(_NO_FOLDER, found=str(error), where=str(parent), hint="name another with --out") from error
    with made as name:
        yield Path(name)


def _free(out: Path | None) -> None:
    if out is not None and (out.exists() or out.is_symlink()):
        raise ConfigError(_TAKEN, where=str(out), hint="name another with --out, or remove it")


def _publish(staged: Path, target: Path) -> None:
    """Rename into place; a folder that appeared meanwhile is an error, unless it is empty."""
    try:
        staged.rename(target.absolute())
    except OSError as error:
        if not target.exists():
            raise
        raise ConfigError(_TAKEN, where=str(target)) from error
    files.fsync_directory(target.absolute().parent)


def _completed(found: Found, told: tuple[list[Tensor], list[Tensor]]) -> Found:
    by_position = found.kind != "onnx"
    return replace(
        found,
        inputs=tensors.merged(found.inputs, told[0], "--input", by_position=by_position),
        outputs=tensors.merged(found.outputs, told[1], "--output", by_position=by_position),
    )


def _draft(folder: Path, manifest: Manifest, found: Found, samples: str, archive: Path) -> tuple[_Draft, list[Line]]:
    """What goes into the YAML, and the lines that say so."""
    lines = [Line("carried", "model", f"{found.kind}, {found.callable or found.file}")]
    lines += [Line("carried", "model", note) for note in found.notes]
    labels, wrong = serving.labels(folder)
    if is_image := manifest.handler == serving.IMAGE_CLASSIFIER:
        found = _as_image(found, labels)
    labels, refused = _fitting(labels, found)
    if wrong or refused:
        lines.append(Line("not carried", "labels", f"index_to_name.json: {wrong or refused}"))
    elif labels:
        lines.append(Line("carried", "labels", f"{len(labels)}, {labels[0]} to {labels[-1]}"))
    image = is_image and _takes_images(found)
    lines.append(_handler(manifest, image, is_image))
    triton, carried, left = serving.triton(folder, manifest, batched=_batched(found))
    lines += [Line("carried", "serving", text) for text in carried]
    lines += [Line("not carried", "serving", text) for text in left]
    if manifest.version:
        detail = f"{manifest.version}: the repository counts its own versions"
        lines.append(Line("not carried", "version", detail))
    draft = _Draft(
        manifest=manifest, found=found, labels=labels, image=image, triton=triton, samples=samples, origin=archive.name
    )
    return draft, lines


def _as_image(found: Found, labels: tuple[str, ...]) -> Found:
    """What the image_classifier handler feeds, and what it makes of the one output, where the files do not tell."""
    inputs = found.inputs or (Tensor(name="image"),)
    if len(inputs) == 1 and not inputs[0].known:
        inputs = (Tensor(name=inputs[0].name, dtype="float32", shape=serving.IMAGE_SHAPE),)
    outputs = found.outputs or (Tensor(name="output"),)
    if len(outputs) == 1 and not outputs[0].known and labels:
        outputs = (Tensor(name=outputs[0].name, dtype="float32", shape=(tensors.BATCH, len(labels))),)
    return replace(found, inputs=inputs, outputs=outputs)


def _fitting(labels: tuple[str, ...], found: Found) -> tuple[tuple[str, ...], str]:
    """The labels, if they are those of the one output."""
    if not labels:
        return (), ""
    if len(found.outputs) != 1:
        return (), f"{len(found.outputs) or 'no known'} outputs; it is not told which of them they belong to"
    size = found.outputs[0].shape[-1] if found.outputs[0].shape else None
    if isinstance(size, int) and size != len(labels):
        return (), f"{len(labels)} labels for a last dimension of {size}"
    return labels, ""


def _takes_images(found: Found) -> bool:
    """Whether what image_classifier makes fits the model: one input of such images, one output of scores."""
    if not (len(found.inputs) == len(found.outputs) == 1 and found.inputs[0].known and _batched(found)):
        return False
    (image,), (scores,) = found.inputs, found.outputs
    pairs = list(zip(image.shape or (), serving.IMAGE_SHAPE, strict=False))
    fits = len(image.shape or ()) == len(pairs) == 4 and all(isinstance(dim, str) or dim == size for dim, size in pairs)
    return fits and image.dtype.startswith("float") and (scores.shape is None or len(scores.shape) == 2)


def _batched(found: Found) -> bool:
    """Whether every shape that is known starts with the batch's letter, and one is known."""
    shapes = [tensor.shape for tensor in (*found.inputs, *found.outputs) if tensor.shape is not None]
    firsts = {shape[0] if shape else 0 for shape in shapes}
    return len(firsts) == 1 and isinstance(firsts.pop(), str)


def _handler(manifest: Manifest, image: bool, is_image: bool) -> Line:
    name = manifest.handler
    if image:
        detail = f"{name}: preprocess (resize 256, crop 224, ImageNet mean and std), postprocess (softmax, top 5)"
        return Line("carried", "handler", detail)
    if is_image:
        return Line("not carried", "handler", f"{name}: the model takes no 3x224x224 images")
    if manifest.handler_file:
        detail = f"{ARCHIVE}/{manifest.handler_file} was not run; say what it does as `preprocess` and `postprocess`"
        return Line("not carried", "handler", detail)
    if name == "base_handler":
        return Line("carried", "handler", "base_handler, which adds nothing to the model")
    return Line("not carried", "handler", f"{name}: what TorchServe's own handler does")


def _kept(names: Sequence[str], draft: _Draft) -> list[Line]:
    manifest = draft.manifest
    used = {draft.found.file, manifest.serialized_file, manifest.handler_file, manifests.MANIFEST, manifest.config_file}
    used |= {manifest.model_file} if draft.found.callable else set()
    used |= {"index_to_name.json"} if draft.labels else set()
    details = {manifest.requirements_file: "nothing of it was installed"}
    return [
        Line("kept", f"{ARCHIVE}/{name}", details.get(name, "an extra file"))
        for name in names
        if name in details or name not in used
    ]


def _text(draft: _Draft) -> tuple[str, list[Line]]:
    """The YAML, and what is left to do."""
    found, todo = draft.found, []
    about = f"Imported from {draft.origin} by `import-mar`; the archive's files lie in {ARCHIVE}/."
    source: dict[str, Any] = {"file": f"{ARCHIVE}/{found.file}"}
    if found.callable:
        source["model"] = {"callable": f"{ARCHIVE}/{found.callable}"}
    lines = [f"# {printable(about)}", f"name: {writing.scalar(draft.manifest.name)}"]
    lines += writing.block("source", {found.kind: source}, [found.todo] if found.todo else [])
    if found.todo:
        todo.append(Line("to do", "source", found.todo))
    for section, flag, specs in (("inputs", "--input", found.inputs), ("outputs", "--output", found.outputs)):
        unknown = [tensor.name for tensor in specs if not tensor.known]
        also = f", labels: {LABELS}" if section == "outputs" and draft.labels else ""
        missing = [f"{name}: {{dtype: …, shape: [N, …]{also}}}" for name in (unknown if specs else ["NAME"])]
        rows = {tensor.name: _tensor(tensor, section, draft) for tensor in specs if tensor.known}
        lines += writing.block(section, rows, missing)
        if missing:
            names = ", ".join(unknown) or "all"
            detail = f"{names}: dtype and shape are not in the archive; give {flag} NAME:DTYPE:SHAPE, or edit the YAML"
            todo.append(Line("to do", section, detail))
    kind = "images" if draft.image else "arrays"
    if draft.samples:
        kind = "arrays" if Path(draft.samples).suffix in (".npz", ".npy") else "images"
        lines += ["samples:", f"  from: {writing.flow({kind: draft.samples})}"]
    else:
        example = "PHOTOS/" if kind == "images" else "samples.npz"
        lines.append(f"# samples: {{from: {{{kind}: {example}}}}}    # real inputs; a path relative to this file")
        detail = "an archive holds no data: name real inputs under `samples` (or import again with --samples)"
        todo.append(Line("to do", "samples", detail))
    formats = ("onnx",) if found.kind == "onnx" else ("torchscript", "onnx")
    lines += writing.block("variants", {name: {"format": name} for name in formats})
    if draft.image:
        lines.append(f"preprocess: {writing.flow(serving.PREPROCESS)}")
        lines.append(f"postprocess: {writing.flow(serving.POSTPROCESS)}")
    if draft.triton:
        lines += writing.block("triton", draft.triton)
    return "\n".join(lines) + "\n", todo


def _tensor(tensor: Tensor, section: str, draft: _Draft) -> dict[str, Any]:
    assert tensor.dtype in NUMPY_DTYPES
    row: dict[str, Any] = {"dtype": tensor.dtype, "shape": list(tensor.shape or ())}
    if section == "inputs" and draft.image:
        row["layout"] = "NCHW"
    if section == "outputs" and draft.labels:
        row["labels"] = LABELS
    return row


def _problems(config: Path) -> tuple[Problem, ...]:
    """What the pipeline's own reader says against the YAML."""
    try:
        loading.load(config)
    except ConfigError as error:
        return error.problems or (Problem(where=str(config), key="", message=str(error)),)
    return ()
