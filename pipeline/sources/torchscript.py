"""A TorchScript file used as it is: copied, loaded once, its arguments counted."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from pipeline.base import files, signatures
from pipeline.base.errors import ConfigError, StageError, first_line
from pipeline.base.step import Outcome, Task
from pipeline.base.values import Progress, Signature, SourceModel
from pipeline.capture.quiet import no_deprecation_warnings
from pipeline.capture.torch_module import NamedModule, TorchRuntime
from pipeline.data.user_code import Resolve
from pipeline.formats import opening
from pipeline.schema.model import Source

FILE_NAME = "model.pt"


def make(task: Task, progress: Progress) -> Outcome:
    """The step; see ``prepare``."""
    given, signature = opening.section(task).torchscript, signatures.from_json(task.arguments["signature"])
    assert given is not None
    with files.disk_errors(task.out_dir, "source"):
        prepare(opening.resolver(task)(given.file), signature, task.out_dir)
    return Outcome(values={"kind": "torchscript", "labels": [], "accuracy": None})


def opened(source: Source, *, signature: Signature, resolve: Resolve, directory: Path) -> SourceModel:
    """The copy that the step left."""
    path = directory / FILE_NAME
    module = load(path)
    runtime = TorchRuntime(NamedModule(module, signature), signature)
    return SourceModel(kind="torchscript", module=module, path=path, runtime=runtime, notes=lambda: runtime.notes)


def prepare(path: Path, signature: Signature, out_dir: Path) -> None:
    """Check a file of ``torch.jit.save`` and copy it into ``out_dir``.

    Raises:
        ConfigError: no such file.
        StageError: not a TorchScript file, or its forward takes another number of tensors than ``inputs`` has.
    """
    if not path.is_file():
        raise ConfigError("source: no such file", where=str(path))
    arguments = load(path)._c._get_method("forward").schema.arguments[1:]
    names, wanted = [item.name for item in arguments], [spec.name for spec in signature.inputs]
    required = sum(not item.has_default_value() for item in arguments)
    if not required <= len(wanted) <= len(names):
        what = "source: the TorchScript file's forward takes other inputs than the YAML's"
        found = f"forward({', '.join(names)}), {required} of them required; `inputs` names {', '.join(wanted)}"
        raise StageError(what, found=found, where=str(path), hint="name one input per argument")
    with files.disk_errors(out_dir, "source: copying the TorchScript file"):
        shutil.copyfile(path, out_dir / FILE_NAME)


def load(path: Path) -> Any:
    """Open a TorchScript file on the CPU, in eval mode."""
    try:
        with no_deprecation_warnings():
            return torch.jit.load(str(path), map_location="cpu").eval()
    except (RuntimeError, ValueError, OSError) as error:
        what = "source: not a readable TorchScript file"
        hint = "expected a file of torch.jit.save; for a state_dict use source: {checkpoint: …}"
        raise StageError(what, found=first_line(error)[:300], where=str(path), hint=hint) from error
