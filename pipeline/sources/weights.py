"""A module's weights as ``weights.safetensors``: no pickle, and the same bytes for the same weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pipeline.base import files
from pipeline.base.errors import StageError

FILE_NAME = "weights.safetensors"


def save(module: torch.nn.Module, directory: Path) -> None:
    """Write parameters and buffers; tensors that are one (tied weights) are written once, under their first name.

    Raises:
        StageError: the state dict holds something that is not a plain tensor.
    """
    path = directory / FILE_NAME
    with files.disk_errors(path, "source: saving the weights"):
        try:
            kept, tied = _distinct(module.state_dict())
            save_file(
                kept, str(path), metadata=tied or None
            )  # no tensors and {} give a file that safetensors 0.8 cannot read
        except (SafetensorError, ValueError, RuntimeError, AttributeError, TypeError) as error:
            raise StageError(
                "source: the model's weights cannot be saved",
                found=f"{type(error).__name__}: {error}",
                hint="state_dict() must hold plain tensors only",
            ) from error
    path.chmod(0o644)


def _distinct(state: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors to write, by the first of their names, and the other names of each with that one.

    A part of a larger buffer is written alone: safetensors refuses what shares memory with another.
    """
    first: dict[tuple[Any, ...], str] = {}
    kept, tied = dict[str, torch.Tensor](), dict[str, str]()
    for name in sorted(state):
        tensor = state[name]
        if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided or tensor.is_meta:
            raise TypeError(f"{name} is {_kind(tensor)}")
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, name if not tensor.numel() else "")
        if place in first:
            tied[name] = first[place]
        else:
            first[place] = name
            whole = tensor.untyped_storage().nbytes() == tensor.nbytes
            kept[name] = tensor.contiguous() if whole else tensor.clone(memory_format=torch.contiguous_format)
    return kept, tied


def _kind(value: Any) -> str:
    """Of what is no plain tensor, such as the extra state of a module."""
    return f"a {value.layout} tensor on {value.device}" if isinstance(value, torch.Tensor) else type(value).__name__


def load(module: torch.nn.Module, directory: Path) -> None:
    """Load what ``save`` wrote into a module; a StageError where the one built now has other weights."""
    path = directory / FILE_NAME
    try:
        with safe_open(path, "pt") as stored:
            state = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - it is no mapping
            tied = stored.metadata() or {}
        module.load_state_dict(state | {name: state[kept] for name, kept in tied.items()})
    except (SafetensorError, RuntimeError, OSError) as error:
        what = "source: the saved weights do not fit the model"
        hint = "does the model's constructor build another architecture on every call?"
        raise StageError(what, found=str(error), where=str(path), hint=hint) from error
