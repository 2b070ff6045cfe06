"""What one key cannot know of another: rules that span the sections of a valid configuration."""

from __future__ import annotations

import keyword
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.base import model_config
from pipeline.base.errors import ConfigError
from pipeline.base.triton_facts import NOT_FOR_ENGINES
from pipeline.base.values import NUMPY_DTYPES
from pipeline.config import deployment_checks, ensemble_checks, files_named, image_checks
from pipeline.config.document import Document, Key, dotted, shown
from pipeline.config.explain import nearest
from pipeline.config.inheritance import chain, inherited
from pipeline.config.subject import NO_BATCH, Found, Subject
from pipeline.formats.table import FORMATS, of_source
from pipeline.machine.target import limits
from pipeline.precision.table import PRECISIONS
from pipeline.schema import Config
from pipeline.schema.model import Input
from pipeline.sources import table as sources

MAX_TENSOR_BYTES = 2 * 2**30  # protobuf's limit on one message: no gRPC request can hold a larger tensor
MAX_NAME_LENGTH = 128  # half of what a file name may have; logs and staging folders add to it

_OWNED = {
    "name": "it is <name>_<variant>",
    **dict.fromkeys(("platform", "backend", "runtime"), "it follows from the variant's format"),
    "default_model_filename": "the pipeline names the file",
    "ensemble_scheduling": "a variant is one model, not an ensemble",
}


def add_problems(config: Config, resolve: Callable[[str], Path], document: Document, broken: frozenset[str]) -> None:
    """Run every check whose sections are sound, and report to the document what they find.

    Sections in ``broken`` have problems of their own, and ``config`` has a stand-in for each of them.
    """
    known = {key for key, _ in document.problems}
    for check, sections in _CHECKS:
        if broken.intersection(sections):
            continue
        for key, message in check(Subject(config, document.value, resolve)):
            if not any(key[:depth] in known for depth in range(1, len(key) + 1)):
                document.report(key, message)


def _parents(subject: Subject) -> Found:
    variants = subject.variants
    for name, variant in variants.items():
        key: Key = ("variants", name, "from")
        names = chain(variants, name)
        if len(names) == 2 and names[1] not in variants:
            yield key, f"no variant is called `{names[1]}`; {nearest(names[1], variants)}"
        elif name == names[-1] == min(names) and len(names) > 1:  # once per circle
            yield key, f"a circle: {' -> '.join(names)}; one of them needs a `format` of its own, and no `from`"
        elif len(names) > 1 and len(set(names)) == len(names) and names[-1] in variants:
            made, own = inherited(variants, names[1], "format"), variant.get("format")
            row = FORMATS.get(str(own))
            if row is not None and str(made) in FORMATS and made not in (own, row.built_from):
                yield ("variants", name, "format"), row.misfit.format(own=own, format=made, parent=names[1])


def _precisions(subject: Subject) -> Found:
    variants, formats = subject.variants, subject.formats
    for name, own in variants.items():
        names = chain(variants, name)
        if len(set(names)) < len(names) or names[-1] not in variants:
            continue
        key: Key = ("variants", name, "precision" if "precision" in own else "from")
        made_as = formats[name]
        precision = inherited(variants, name, "precision") or "fp32"
        parent = (inherited(variants, names[1], "precision") if names[1:] else None) or "fp32"
        if precision != "fp32" and str(made_as) in FORMATS and not FORMATS[str(made_as)].consumer:
            yield key, f"expected fp32, the only precision of {made_as}; found {precision}"
        elif refusal := _refusal(precision, made_as):
            yield key, refusal
        elif parent not in ("fp32", precision):
            yield key, f"expected {parent}, the precision of `{names[1]}`, or an fp32 variant under `from`"
        yield from _precision_keys(name, own, precision, made_as)


def _precision_keys(name: str, own: Mapping[str, Any], precision: str, made_as: str | None) -> Found:
    """Keys that say how something is done which this variant does not do."""
    reduced = [known for known, row in PRECISIONS.items() if row.module]
    calibrated = [known for known in reduced if PRECISIONS[known].quantised]
    owners = (
        ("calibration", precision in calibrated, f"precision: {_either(calibrated)}"),
        ("keep_fp32", precision in reduced, f"precision: {_either(reduced)}"),
        ("repair", precision in reduced, f"precision: {_either(reduced)}"),
        ("engine", _is_engine(made_as), "format: tensorrt"),
    )
    for key, applies, owner in owners:
        if own.get(key) is not None and not applies:
            yield ("variants", name, key), f"belongs to `{owner}`"


def _refusal(precision: str, made_as: str | None) -> str:
    """Why what runs a format cannot compute in a precision; empty where it can, or one of them is none."""
    row, made = PRECISIONS.get(str(precision)), FORMATS.get(str(made_as))
    return row.refusals.get(made.consumer, "") if row is not None and made is not None else ""


def _either(names: Sequence[str]) -> str:
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _possible_formats(subject: Subject) -> Found:
    """What is exported can be made of the source; the schema has seen to it that what is built has a parent."""
    origin = sources.of(subject.config.source)
    for name, variant in subject.config.variants.items():
        if variant.from_ is not None or variant.format is None:
            continue
        row = FORMATS[variant.format]
        if origin.kind in row.exports:
            for key, message in row.exports[origin.kind].problems(variant):
                yield ("variants", name, key), message
        else:
            formats = " or ".join(of_source(origin.kind))
            message = row.refusal.format(source=origin.words, maker=subject.maker, formats=formats)
            yield ("variants", name, "format"), message


def _torchscript_names(subject: Subject) -> Found:
    variants = subject.config.variants.values()
    made = any(variant.format == "torchscript" and variant.from_ is None for variant in variants)
    for name in subject.config.inputs if made and subject.maker != "torchscript" else ():
        if not name.isidentifier() or keyword.iskeyword(name):
            message = f"a torchscript variant's inputs are arguments of `forward`, and {name!r} cannot be one"
            yield ("inputs", name), message


def _sample_origin(subject: Subject) -> Found:
    if isinstance(subject.config.samples.from_, str) and subject.config.source.training is None:
        message = (
            f"`data.test` is the held-out part of source.train.data, but the source is `{subject.maker}`: "
            "name the samples' own data, e.g. {arrays: samples.npz}"
        )
        yield ("samples", "from"), message


def _shapes(subject: Subject) -> Found:
    for key, spec in subject.tensors:
        known = [size for size in spec.shape if isinstance(size, int)]
        size_bytes = math.prod(known) * np.dtype(NUMPY_DTYPES[spec.dtype]).itemsize
        if size_bytes > MAX_TENSOR_BYTES:
            most = f"expected at most {MAX_TENSOR_BYTES // 2**30} GiB"
            yield (*key, "shape"), f"one sample takes {size_bytes / 2**30:.1f} GiB; {most}"
        if isinstance(spec, Input) and spec.layout is not None and len(spec.shape) != 4:
            yield (*key, "layout"), f"{spec.layout} names four dimensions; the shape has {len(spec.shape)}"


def _batch(subject: Subject) -> Found:
    firsts = {key: spec.shape[0] if spec.shape else None for key, spec in subject.tensors}
    (first_key, letter), *others = firsts.items()
    if not isinstance(letter, str) or all(first != letter for _, first in others):
        return
    message = (
        f"expected {letter} as the first dimension: {dotted(first_key)} and others start with it, "
        "so it is the batch, which every input and output has; another size needs another letter"
    )
    yield from (((*key, "shape"), message) for key, first in others if first != letter)


def _keras_batch(subject: Subject) -> Found:
    keras = subject.config.source.keras
    if keras is not None and keras.train is not None and subject.batch is None:
        yield ("source", "keras", "train"), "Keras trains on batches: every input and output shape starts with a letter"


def _batch_limit(subject: Subject) -> Found:
    given: dict[Key, Any] = {("triton", "max_batch_size"): subject.config.triton.max_batch_size}
    for name, variant in subject.config.variants.items():
        given["variants", name, "triton", "max_batch_size"] = variant.triton.get("max_batch_size")
    for key, limit in given.items():
        if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or not 0 <= limit <= 65_536):
            yield key, f"expected an integer >= 0 and <= 65536; found {shown(limit)}"
        elif limit and subject.batch is None:
            yield key, f"expected 0: {NO_BATCH}"


def _labels(subject: Subject) -> Found:
    for name, spec in subject.config.outputs.items():
        if isinstance(spec.labels, str) or spec.labels is None:
            continue  # files are read with the other files; `digits` and `source` are known when the model is
        size = spec.shape[-1] if spec.shape else None
        if isinstance(size, int) and size != len(spec.labels):
            yield ("outputs", name, "labels"), f"{len(spec.labels)} labels for a last dimension of {size}"


def _target(subject: Subject) -> Found:
    try:
        target = limits(subject.config.triton.target)
    except ConfigError as error:
        yield ("triton", "target"), "; ".join(text for text in (error.what, error.found, error.hint) if text)
        return
    newest = f"the newest that Triton {target.release} (ONNX Runtime {target.onnxruntime}) loads"
    for name, variant in subject.config.variants.items():
        if variant.opset is not None and variant.opset > target.max_opset:
            yield ("variants", name, "opset"), f"expected at most {target.max_opset}, {newest}; found {variant.opset}"


def _triton_fields(subject: Subject) -> Found:
    common = _own_fields(subject.raw)
    yield from _fields(subject, common, lambda path: ("triton", *path))
    for name, variant in subject.variants.items():
        prefix: Key = ("variants", name, "triton")
        own = _own_fields(variant)
        if isinstance(variant.get("triton"), dict) and "target" in variant["triton"]:
            yield (*prefix, "target"), "the target is the same for all variants: set it in the common `triton`"

        def located(path: Key, own: Mapping[str, Any] = own, prefix: Key = prefix) -> Key:
            return (*prefix, *path) if path[0] in own else ("triton", *path)

        yield from _fields(subject, {**common, **own}, located)


def _engine_instances(subject: Subject) -> Found:
    for name, made_as in subject.formats.items():
        groups = _own_fields(subject.variants[name]).get("instance_group") if _is_engine(made_as) else None
        for index, group in enumerate(groups if isinstance(groups, list) else ()):
            if isinstance(group, dict) and group.get("kind") in NOT_FOR_ENGINES:
                key: Key = ("variants", name, "triton", "instance_group", index, "kind")
                yield key, f"an engine runs on a GPU: expected KIND_GPU; found {group['kind']}"


def _is_engine(model_format: str | None) -> bool:
    row = FORMATS.get(str(model_format))
    return row is not None and row.engine


def _own_fields(section: Mapping[str, Any]) -> dict[str, Any]:
    """The ModelConfig fields under ``triton``, as written."""
    fields = section.get("triton")
    rows = fields.items() if isinstance(fields, dict) else ()
    return {name: value for name, value in rows if name not in ("max_batch_size", "target")}


def _fields(subject: Subject, fields: Mapping[str, Any], located: Callable[[Key], Key]) -> Found:
    for name, reason in _OWNED.items():
        if fields.get(name) is not None:
            yield located((name,)), f"not to be set here: {reason}"
    for path, message in (*model_config.unknown_fields(fields), *model_config.wrong_values(fields)):
        yield located(path), message
    for role in ("input", "output"):
        entries, tensors = fields.get(role), subject.raw.get(f"{role}s")
        for index, entry in enumerate(entries if isinstance(entries, list) else ()):
            if isinstance(entry, dict) and isinstance(tensors, dict):
                yield from _refinement(entry, list(tensors), (role, index), located)


def _refinement(entry: Mapping[str, Any], names: list[str], path: Key, located: Callable[[Key], Key]) -> Found:
    """An entry of ``input`` or ``output`` adds to a tensor of the YAML, it makes none."""
    name = entry.get("name")
    if name is None:
        yield located(path), f"expected `name`, one of {', '.join(names)}"
    elif name not in names:
        yield located((*path, "name")), f"the model has no {path[0]} {shown(name)}; {nearest(str(name), names)}"
    if "data_type" in entry:
        yield located((*path, "data_type")), f"not to be set here: it follows from `{path[0]}s`"
    if "dims" in entry and "reshape" not in entry:
        message = f"not to be set here, but together with `reshape`: the shape is that in `{path[0]}s`"
        yield located((*path, "dims")), message


def _model_names(subject: Subject) -> Found:
    for variant in subject.config.variants:
        name = f"{subject.config.name}_{variant}"
        if len(name) > MAX_NAME_LENGTH:
            message = f"the model name {name} has {len(name)} characters; expected at most {MAX_NAME_LENGTH}"
            yield ("variants", variant), message


_CHECKS: tuple[tuple[Callable[[Subject], Found], tuple[str, ...]], ...] = (
    (_parents, ()),
    (_precisions, ("variants",)),
    (_possible_formats, ("source", "variants")),
    (_torchscript_names, ("source", "inputs", "variants")),
    (_sample_origin, ("source", "samples")),
    (_shapes, ("inputs", "outputs")),
    (_batch, ("inputs", "outputs")),
    (_batch_limit, ("inputs", "outputs", "triton", "variants")),
    (_labels, ("outputs",)),
    (image_checks.preprocess, ("inputs", "outputs", "preprocess", "postprocess")),
    (image_checks.said_twice, ("source", "samples", "variants", "preprocess")),
    (image_checks.channels, ("inputs", "source", "samples", "variants")),
    (ensemble_checks.sections, ("preprocess", "postprocess", "ensemble")),
    (ensemble_checks.answering, ("inputs", "outputs", "variants", "triton", "preprocess", "postprocess", "ensemble")),
    (ensemble_checks.names, ("name", "variants", "preprocess", "postprocess")),
    *deployment_checks.each(),
    (deployment_checks.programs, ("variants", "preprocess", "postprocess", "ensemble")),
    (_keras_batch, ("source", "inputs", "outputs")),
    (deployment_checks.saved_models, ("variants", "tfserving", "triton")),
    (_target, ("triton", "variants")),
    (_triton_fields, ()),
    (_engine_instances, ()),
    (_model_names, ("name", "variants")),
    (files_named.source_files, ("source",)),
    *((partial(files_named.data_files, section=section), (section,)) for section in ("source", "samples", "variants")),
    (files_named.label_files, ("outputs",)),
)
"""Each check with the sections of the validated configuration that it reads."""
