"""Archives made by hand, good ones and hostile ones."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.unit.lint.lint_repository import CODE, torchscript_bytes

MANIFEST = "MAR-INF/MANIFEST.json"
ONE_INPUT = CODE.replace("    ids: Tensor,\n    mask: Tensor)", "    x: Tensor)")
MODEL = torchscript_bytes(ONE_INPUT)


def manifest(**model: Any) -> bytes:
    """A manifest as torch-model-archiver 0.12.0 writes it; None leaves a key out."""
    keys = {
        "modelName": "tiny",
        "serializedFile": "model.pt",
        "handler": "base_handler",
        "modelVersion": "1.0",
        **model,
    }
    kept = {key: value for key, value in keys.items() if value is not None}
    return json.dumps({"runtime": "python", "model": kept, "archiverVersion": "0.12.0"}).encode()


def mar(path: Path, files: Mapping[str, bytes | str] | None = None, **model: Any) -> Path:
    """A zip archive of ``files`` (by default a TorchScript model) and a manifest."""
    content = {"model.pt": MODEL, **(files or {})}
    members = [(name, data) for name, data in content.items() if data is not None]
    return zipped(path, [*members, (MANIFEST, manifest(**model))])


def zipped(path: Path, members: Sequence[tuple[str | zipfile.ZipInfo, bytes | str]]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in members:
            archive.writestr(member, data)
    return path


def tarred(path: Path, members: Sequence[tuple[str | tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for member, data in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            if info.isreg():
                info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path
