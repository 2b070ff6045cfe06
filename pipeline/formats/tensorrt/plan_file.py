"""What can be told about an engine's file without its library: that it is whole, and the one that was built."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.base.files import sha256_file
from pipeline.machine.tensorrt_flavours import FlavourName

# Layout of a TensorRT-RTX engine, undocumented, true of all engines read (1.7.1): a header of 64 bytes that starts
# with the magic and holds the length of the whole file. That of classic TensorRT was not measured: it may have the same
# magic, which so proves no flavour.
_MAGIC = b"vtrt"
HEADER_BYTES = 64
"""No engine is as short as its header."""
_LENGTH = slice(16, 24)  # unsigned, little-endian


def unlike_sidecar(path: Path, flavour: FlavourName) -> str:
    """What is wrong with an engine's file by the sidecar beside it; without one, by the file alone."""
    sidecar = path.with_name(f"{path.name}.json")
    try:
        sha256 = str(json.loads(sidecar.read_text())["plan_sha256"]) if sidecar.exists() else ""
    except (ValueError, TypeError, KeyError):
        return f"its sidecar {sidecar.name} cannot be read"
    return problem(path, flavour, sha256=sha256)


def problem(path: Path, flavour: FlavourName | None, *, sha256: str = "") -> str:
    """What is wrong with an engine's file; empty when nothing is.

    Args:
        path: the engine.
        flavour: what built it; where that is not known, a file that begins as TensorRT-RTX's do is held for one.
        sha256: what its sidecar says; not compared when empty.
    """
    size = path.stat().st_size
    if size == 0:
        return "the file is empty"
    with path.open("rb") as stream:
        header = stream.read(HEADER_BYTES)
    if flavour == "tensorrt_rtx" or (flavour is None and header.startswith(_MAGIC)):
        if len(header) < HEADER_BYTES or not header.startswith(_MAGIC):
            return "the file does not begin as a TensorRT-RTX engine does"
        if (length := int.from_bytes(header[_LENGTH], "little")) != size:
            return f"its header says {length} bytes; the file has {size}"
    if sha256 and (found := sha256_file(path)) != sha256:
        return f"its SHA-256 is {found[:12]}…; its sidecar says {sha256[:12]}…"
    return ""
