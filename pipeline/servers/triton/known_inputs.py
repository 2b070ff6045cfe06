"""An input that a served model is known to answer; zeros where there is none."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.base import files
from pipeline.base.errors import ConfigError
from pipeline.base.values import Tensors
from pipeline.servers.triton import probe
from pipeline.servers.triton.probe import InputSpec

Known = Callable[[str, int], Tensors | None]
"""Inputs of a golden sample of a model's version, or None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownInput:
    """What to ask a version for.

    Attributes:
        inputs: names, types and full shapes.
        data: each one's bytes.
        origin: ``warmup data``, ``example file``, ``golden sample`` or ``zeros``.
    """

    inputs: Sequence[InputSpec]
    data: Sequence[bytes]
    origin: str

    @property
    def good(self) -> bool:
        """Whether the model answered it once, so that an error says something about the model."""
        return self.origin != "zeros"


def known_input(
    repository: Path, model: str, version: str, specs: Sequence[InputSpec], config: Mapping[str, Any], known: Known
) -> KnownInput:
    """The best input there is for a version.

    Args:
        repository: root of the model repository.
        model: its name.
        version: its number.
        specs: its inputs as the server describes them, 1 for dynamic dimensions.
        config: the configuration in force, as the server's JSON.
        known: see ``Known``.
    """
    return (
        _warmup(repository / model / "warmup", specs, config)
        or _golden(specs, known(model, int(version)))
        or _example(repository / model / version, specs)
        or KnownInput(inputs=specs, data=probe.zeros(specs), origin="zeros")
    )


def _warmup(folder: Path, specs: Sequence[InputSpec], config: Mapping[str, Any]) -> KnownInput | None:
    """The first warmup sample whose every input is in a file: what the server itself ran before it was ready."""
    batch = (1,) if config.get("max_batch_size", 0) else ()
    for sample in config.get("model_warmup", ()):
        inputs, data = [], []
        for spec in specs:
            item = sample.get("inputs", {}).get(spec.name, {})
            content = _content(folder, item.get("input_data_file", ""))
            if content is None:
                break
            inputs.append(replace(spec, shape=(*batch, *(int(size) for size in item["dims"]))))
            data.append(content)
        else:
            return KnownInput(inputs=inputs, data=data, origin="warmup data")
    return None


def _example(folder: Path, specs: Sequence[InputSpec]) -> KnownInput | None:
    """The file that an ensemble of this tool brings along, for a model of one text."""
    if len(specs) != 1 or specs[0].datatype != "BYTES" or specs[0].elements != 1:
        return None
    for file in sorted(folder.glob("example.*")):
        content = file.read_bytes()
        return KnownInput(inputs=specs, data=[_wire_bytes(content)], origin="example file")
    return None


def _wire_bytes(content: bytes) -> bytes:
    """One text as a request carries it: behind its length (Triton's binary data extension)."""
    return struct.pack("<I", len(content)) + content


def _content(folder: Path, name: str) -> bytes | None:
    try:
        return files.inside(folder, name).read_bytes() if name else None
    except (OSError, ConfigError):
        return None


def _golden(specs: Sequence[InputSpec], tensors: Tensors | None) -> KnownInput | None:
    if tensors is None or set(tensors) != {spec.name for spec in specs}:
        return None
    inputs, data = [], []
    for spec in specs:
        array = tensors[spec.name]
        if (spec.datatype == "BYTES") != (array.dtype.kind == "O"):
            return None
        # a configuration may show clients another shape than the model's own, of as many elements
        shape = array.shape if len(array.shape) == len(spec.shape) else spec.shape
        given = replace(spec, shape=tuple(int(size) for size in shape))
        if (given.datatype == "BYTES") != (array.dtype == np.object_):
            return None
        if given.datatype == "BYTES":
            content = b"".join(_wire_bytes(item) for item in array.reshape(-1))
        else:
            content = array.tobytes()
            if len(probe.zeros([given])[0]) != len(content):
                return None
        inputs.append(given)
        data.append(content)
    return KnownInput(inputs=inputs, data=data, origin="golden sample")
