"""What an archive says of itself: ``MAR-INF/MANIFEST.json`` and the model's own ``model-config.yaml``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.base.errors import ConfigError
from pipeline.config import document

MANIFEST = "MAR-INF/MANIFEST.json"
MAX_TEXT_BYTES = 4 << 20
DEFAULT_HANDLERS = (
    "base_handler", "text_classifier", "image_classifier", "object_detector", "image_segmenter",
    "dali_image_classifier", "vllm_handler", "trt_llm_handler",
)  # fmt: skip
"""Handlers that TorchServe brings itself (model_archiver 0.12.0, model_packaging_utils.model_handlers)."""

_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9_-]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """An archive's manifest; files are paths in the archive, empty where there is none.

    Attributes:
        name: the model's, made into one that the YAML can have.
        version: the model's, as written.
        handler: as written: a default handler's name, or a Python file with an optional ``:function``.
        handler_file: the file of a handler that is not TorchServe's own.
        serialized_file: weights, TorchScript or ONNX.
        model_file: Python source of an eager model.
    """

    name: str
    version: str
    handler: str
    handler_file: str
    serialized_file: str
    model_file: str
    requirements_file: str
    config_file: str


def read(folder: Path, names: Sequence[str], archive: Path) -> Manifest:
    """Read the manifest of an archive that was unpacked into ``folder``; where it names no model, its stem does.

    Raises:
        ConfigError: no manifest, not JSON of the known shape, or it names a file that is not there.
    """
    if MANIFEST not in names:
        raise _wrong(archive, f"it has no {MANIFEST}", "expected what torch-model-archiver writes")
    content = parsed_json(folder / MANIFEST)
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict):
        raise _wrong(archive, f"{MANIFEST} is no JSON with a `model`", "expected what torch-model-archiver writes")
    texts = {key: value for key, value in model.items() if isinstance(value, str)}
    name = texts.get("modelName") or archive.name.split(".")[0]
    handler = texts.get("handler", "")
    stem = handler.split(":")[0]

    def file(key: str) -> str:
        value = texts.get(key, "")
        if value and value not in names:
            raise _wrong(archive, f"{MANIFEST} names {key} {value!r}, which the archive does not hold", "pack it again")
        return value

    return Manifest(
        name=(_NOT_IN_A_NAME.sub("_", name).lstrip("_-") or "model")[:64],
        version=texts.get("modelVersion", ""),
        handler=handler,
        handler_file=next(
            (name for name in (stem, f"{stem}.py") if name in names and stem not in DEFAULT_HANDLERS), ""
        ),
        serialized_file=file("serializedFile"),
        model_file=file("modelFile"),
        requirements_file=file("requirementsFile"),
        config_file=file("configFile"),
    )


def parsed_json(path: Path) -> Any:
    """A small JSON file's content, or None where it is none; a key given twice makes it none."""
    if path.stat().st_size > MAX_TEXT_BYTES:
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once)
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        return None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a key given twice")
    return content


def model_config(path: Path) -> Mapping[str, Any] | None:
    """The top-level keys of a ``model-config.yaml``; None where it is no such file, or for a value that is unreadable.

    Read as the pipeline's own configurations are: nothing in it can run or grow. References to the environment stay
    unresolved.
    """
    if path.stat().st_size > MAX_TEXT_BYTES:
        return None
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None
    found = document.read(text, lambda line, column: f"{path.name}:{line}:{column}", environ={})
    if not isinstance(found.value, dict):
        return None
    unreadable = {key[0] for key, _ in found.problems if key}
    return {name: None if name in unreadable else value for name, value in found.value.items()}


def _wrong(archive: Path, found: str, hint: str) -> ConfigError:
    return ConfigError("import-mar: not a TorchServe archive", found=found, where=str(archive), hint=hint)
