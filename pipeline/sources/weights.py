"""A module's weights as ``weights.safetensors``: no pickle, and the same bytes for the same weights."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model

from pipeline.base import files
from pipeline.base.errors import StageError

FILE_NAME = "weights.safetensors"


def save(module: torch.nn.Module, directory: Path) -> None:
    """Write parameters and buffers; tensors that share memory are written once.

    Raises:
        StageError: the state dict holds something that is not a tensor.
    """
    path = directory / FILE_NAME
    with files.disk_errors(path, "source: saving the weights"):
        try:
            save_model(module, str(path))
        except (SafetensorError, ValueError, RuntimeError, AttributeError) as error:
            raise StageError(
                "source: the model's weights cannot be saved",
                found=f"{type(error).__name__}: {error}",
                hint="state_dict() must hold plain tensors only",
            ) from error
    path.chmod(0o644)


def load(module: torch.nn.Module, directory: Path) -> None:
    """Load what ``save`` wrote into a module; a StageError where the one built now has other weights."""
    path = directory / FILE_NAME
    try:
        load_model(module, str(path), strict=True)
    except (SafetensorError, RuntimeError, OSError) as error:
        what = "source: the saved weights do not fit the model"
        hint = "does the model's constructor build another architecture on every call?"
        raise StageError(what, found=str(error), where=str(path), hint=hint) from error
