"""From a variant's judged file to a version in the candidate of its root, with all that is known of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from pipeline import __version__
from pipeline.base import files
from pipeline.base.step import tool_versions
from pipeline.base.values import Artifact
from pipeline.build.run import Run
from pipeline.formats.table import BACKENDS
from pipeline.plan import Variant
from pipeline.proof import record
from pipeline.repository.versions import Version


def emit(run: Run) -> None:
    """Emit every variant that was made and that Triton serves, and note the others; a failure is kept to its row."""
    for variant in run.plan.variants:
        result = run.results[variant.key]
        if result.artifact is None or result.error:
            continue
        with run.guarded(variant, "build"):
            if variant.server == "triton":
                _emit(run, variant, result.artifact)
            elif variant.server == "tfserving":  # its deployment emits it
                run.note(variant, f"not in Triton's repository: {run.plan.limits.release} has no TensorFlow backend")


def _emit(run: Run, variant: Variant, artifact: Artifact) -> None:
    if variant.engine:
        file_name, *others = (one.file_name for one in variant.engine.spec.each)
        others += [f"{name}.json" for name in (file_name, *others)]
    else:
        file_name, others = BACKENDS[variant.kind].file_name, []
    with run.stage(f"candidate[{variant.identifier}]", variant.identifier) as stage:
        version = Version(
            model_name=variant.identifier,
            file_name=file_name,
            artifact=artifact.path,
            beside={name: artifact.path.with_name(name) for name in others},
            identity=artifact.properties.get("identity", ""),
            model_files=run.model_files(variant).files,
            golden=run.golden_path,
            manifest=manifest_of(run, variant, artifact),
        )
        entry = run.emit(variant, version, stage)
    if not entry.created and variant.engine:  # another build's engine, the same but for bytes that mean nothing
        emitted = [entry.version_dir / one.file_name for one in variant.engine.spec.each]
        sizes = sum(files.size_bytes(path) for path in emitted)
        artifact = replace(artifact, sha256=files.sha256_tree(emitted[0]), size_bytes=sizes)
    cached = run.results[variant.key].cached and not entry.created
    run.update(variant, entry=entry, artifact=artifact, cached=cached)


def manifest_of(run: Run, variant: Variant, artifact: Artifact) -> Mapping[str, Any]:
    """What is known of a version; nothing in it depends on when or where it was built."""
    result, plan = run.results[variant.key], run.plan
    made_by, config = plan.source, plan.loaded.config
    known = record.ModelRecord(
        signature=run.signature, max_batch_size=variant.max_batch_size, tolerance=variant.tolerance
    )
    rows = {
        "schema": 1,
        "tool": f"model-repository-pipeline {__version__}",
        "model": config.name,
        "variant": variant.key,
        "format": variant.format,
        "precision": variant.precision,
        "target": {"release": plan.limits.release, "onnxruntime": plan.limits.onnxruntime},
        "sha256": artifact.sha256,
        "properties": dict(artifact.properties),
        "tool_versions": dict(artifact.tool_versions),
        "source": {
            "settings": config.source.model_dump(mode="json", by_alias=True, exclude_none=True),
            "files": dict(made_by.inputs),
            "sha256": run.entries[made_by.name].digest,
            "tool_versions": tool_versions(made_by.tools),
        },
        "parity": asdict(result.parity) if result.parity else None,
        "accuracy": asdict(result.accuracy) if result.accuracy else None,
        "serving": record.of_model(known),
        "notes": list(artifact.notes),
    }
    masked: dict[str, Any] = json.loads(plan.loaded.masked(json.dumps(rows)))
    return masked
