"""Check any Triton model repository offline, without a server and without changing a byte of it.

The rules are Triton's own, read in the source of release 24.10 and tried on a running server: what its core, its
onnxruntime and its pytorch backend refuse, what they take otherwise than a person would, and what fails later on
another machine. Nothing in a repository is executed or unpickled.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from pipeline.base import model_config
from pipeline.base.errors import ConfigError
from pipeline.lint import tree
from pipeline.lint.config import CONFIG_RULES
from pipeline.lint.engine import ENGINE_RULES
from pipeline.lint.ensemble import ENSEMBLE_RULES
from pipeline.lint.layout import ANY_RULES, CONFIGURED_RULES
from pipeline.lint.model import (
    CONFIG_NAME,
    MAX_TEXT_BYTES,
    Finding,
    Findings,
    Model,
    Place,
    children,
    printable,
    read_text,
    run,
    shown,
    unreadable,
    version_directories,
)
from pipeline.lint.onnx import ONNX_RULES
from pipeline.lint.scheduling import SCHEDULING_RULES
from pipeline.lint.tensors import TENSOR_RULES
from pipeline.lint.torchscript import TORCHSCRIPT_RULES
from pipeline.lint.warmup import WARMUP_RULES
from pipeline.machine import target as releases

__all__ = ["Finding", "lint"]

# Fields of later releases, which the message read here (2.51) does not have: field -> first release with it
# (git history of triton-inference-server/common, protobuf/model_config.proto).
_LATER_FIELDS = {"model_metrics": "24.11", "max_inflight_requests": "25.11"}

_CONFIGURED = (
    *CONFIGURED_RULES, *CONFIG_RULES, *SCHEDULING_RULES, *TENSOR_RULES, *WARMUP_RULES, *ENSEMBLE_RULES, *ONNX_RULES,
    *TORCHSCRIPT_RULES, *ENGINE_RULES,
)  # fmt: skip


def lint(root: Path, *, target: str = "24.10") -> list[Finding]:
    """Check what ``tritonserver --model-repository`` would be given, for one Triton release.

    The findings of all models are sorted by path, then errors before warnings, then rule.

    Raises:
        ConfigError: ``root`` is no readable directory with a model in it, or the target is unknown.
    """
    limits = releases.limits(target)
    findings: list[Finding] = []
    models: dict[str, Model] = {}
    for path in _directories(root, findings):
        try:
            versions = version_directories(path)
            texts = [item for item in (path / CONFIG_NAME, *children(path / "configs")) if item.suffix == ".pbtxt"]
        except OSError as problem:
            findings.append(unreadable(root, path, problem))
            continue
        configs = {item: _parse(root, item, target, findings) for item in texts}
        models[path.name] = Model(
            root=root, path=path, config=configs[path / CONFIG_NAME], versions=versions, target=limits, others=models
        )
    for model in models.values():
        findings.extend(_check(model))
    return sorted(set(findings), key=lambda item: (item.path, item.severity, item.rule, item.reason))


def _directories(root: Path, findings: list[Finding]) -> list[Path]:
    """The directories that Triton takes for models; what is wrong with links becomes findings."""
    hint = "give the directory that holds one folder per model"
    try:
        if not root.is_dir():
            found = "a file" if root.exists() else "nothing"
            raise ConfigError("there is no model repository", found=found, where=str(root), hint=hint)
        items = children(root)
    except OSError as problem:
        raise ConfigError("the repository cannot be read", found=str(problem), where=str(root)) from problem
    for item in items:
        findings.extend(tree.link(root, item) if item.is_symlink() else ())
    directories = [item for item in items if item.is_dir()]
    if not directories and not findings:
        raise ConfigError("the repository is empty", found="no directory in it", where=str(root), hint=hint)
    return directories


def _check(model: Model) -> Findings:
    found = list(run(tree.TREE_RULES, model))
    yield from found
    if any(item.rule == "stray-directory" for item in found):
        return  # it is no model, so what a model lacks is no news
    yield from run(ANY_RULES, model)
    if model.config is not None:
        yield from run(_CONFIGURED, model)


def _parse(root: Path, path: Path, target: str, found: list[Finding]) -> Any:
    """The configuration message of a text file, or None; what is wrong with the text is added to ``found``."""
    at = Place(shown(root, path))
    if not os.path.exists(path):  # noqa: PTH110 - Path.exists raises on a loop of links
        return None  # missing and dangling are rules of their own
    try:
        text = read_text(path)
    except OSError as problem:
        found.append(unreadable(root, path, problem))
        return None
    if text is None:
        reason = f"this is no plain file of at most {MAX_TEXT_BYTES >> 20} MiB, so it is not read."
        found.append(at.error("config-not-text", reason, "write the configuration as a text file"))
        return None
    templates = list(_templates(at, text))
    found.extend(templates)
    try:
        return model_config.parse_text(text, str(at))
    except ConfigError as problem:
        if not templates:
            found.append(_unparsed(problem, target))
        return None


def _templates(at: Place, text: str) -> Findings:
    for number, line in enumerate(text.split("\n"), 1):
        if match := re.search(r"\$\{[^}]*\}", line.partition("#")[0]):
            reason = f"the placeholder {printable(match[0])!r} was never filled in."
            fix = "replace it by its value"
            yield Place(f"{at}:{number}:{match.start() + 1}").error("unfilled-template", reason, fix)


def _unparsed(problem: ConfigError, target: str) -> Finding:
    at = Place(problem.where)
    later = next((name for name in _LATER_FIELDS if re.search(rf"\b{name}\b", problem.found)), None)
    if later is None:
        reason = f"Triton cannot read the configuration: {printable(problem.found)}."
        fix = "correct it there; fields are spelled as in Triton's model_config.proto"
        return at.error("config-parse", reason, fix)
    if target < _LATER_FIELDS[later]:
        reason = f"{later} exists from release {_LATER_FIELDS[later]} on; release {target} refuses the configuration."
        return at.error("field-unknown-to-release", reason, "remove the field, or choose a later target")
    reason = f"{later} is younger than the message definition used here (24.10), so this model is not checked further."
    return at.warning("config-not-checked", reason, f"to check the rest, remove {later} for the time of the check")
