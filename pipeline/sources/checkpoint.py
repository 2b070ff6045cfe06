"""Trained weights from a .pt, .pth or .safetensors file, checked key by key against the architecture."""

from __future__ import annotations

import contextlib
import pickle
import re
import shutil
import sys
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from pipeline.base import files
from pipeline.base.errors import ConfigError, StageError, first_line, listed
from pipeline.base.step import Outcome, Task
from pipeline.base.values import Progress, Signature, SourceModel
from pipeline.data.user_code import Resolve
from pipeline.formats import opening
from pipeline.schema.model import Checkpoint, Source
from pipeline.sources import determinism, library, weights

State = dict[str, torch.Tensor]

PICKLED = "module.pt"
"""A whole module, where the YAML has no `model`."""

_MOST_LISTED = 10
_PREFIXES = ("module.", "_orig_mod.")  # torch.nn.DataParallel, torch.compile
_PICKLE_RISK = (
    "unpickling runs whatever code the file holds; if you trust where it comes from, set `allow_pickle: true`, "
    "else ask for a state_dict (torch.save(model.state_dict(), path)) or safetensors"
)


def make(task: Task, progress: Progress) -> Outcome:
    """The step: load the weights into the architecture, or keep the whole module."""
    settings, notes = opening.section(task).checkpoint, list[str]()
    assert settings is not None
    progress("loading the checkpoint", None)
    with files.disk_errors(task.out_dir, "source"):
        _prepare(settings, opening.resolver(task), task.out_dir, notes)
    return Outcome(notes=tuple(notes), values={"kind": "torch", "labels": [], "accuracy": None})


def _prepare(settings: Checkpoint, resolve: Resolve, out_dir: Path, notes: list[str]) -> None:
    path = resolve(settings.file)
    content = read(path, settings)
    if settings.model is None:
        keep_module(content, path, out_dir / PICKLED)
        return
    state = state_of(content, path)
    with determinism.reproducible(determinism.INITIAL_SEED, notes):
        module = library.build(settings.model, resolve).module
    notes += apply(module, state, settings)
    weights.save(module, out_dir)
    if settings.model.library == "transformers":
        library.keep_config(module, out_dir)


def opened(source: Source, *, signature: Signature, resolve: Resolve, directory: Path) -> SourceModel:
    """The architecture with the weights that the step left, or the whole module."""
    settings = source.checkpoint
    assert settings is not None
    if settings.model is not None:
        return library.opened(source, signature=signature, resolve=resolve, directory=directory)
    return library.as_source(open_module(directory / PICKLED, resolve(settings.file).parent), signature)


def read(path: Path, checkpoint: Checkpoint) -> Any:
    """Read a checkpoint's content: a state dict, or a module where the file is a pickled one and that is allowed.

    Raises:
        ConfigError: no such file.
        StageError: damaged, of another kind, or a pickle without consent.
    """
    if not path.is_file():
        raise ConfigError("source: no such checkpoint", found=checkpoint.file, where=str(path))
    if path.suffix == ".safetensors":
        try:
            return _nested(load_file(str(path)), checkpoint, path)
        except (SafetensorError, OSError, ValueError) as error:
            raise _damaged(path, error) from error
    if _is_torchscript(path):
        hint = f"use it as it is: source: {{torchscript: {{file: {checkpoint.file}}}}}"
        raise StageError("source: the checkpoint is a TorchScript archive", where=str(path), hint=hint)
    try:
        with _importable(path.parent), _torch_warnings():
            content = torch.load(path, map_location="cpu", weights_only=not checkpoint.allow_pickle)
    except pickle.UnpicklingError as error:
        if checkpoint.allow_pickle or not zipfile.is_zipfile(path):
            raise _damaged(path, error) from error
        raise StageError(
            "source: the checkpoint holds more than tensors", found=_refused(error), where=str(path), hint=_PICKLE_RISK
        ) from error
    except (AttributeError, ImportError) as error:
        raise _no_class(path, error) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, IndexError, TypeError, AssertionError) as error:
        raise _damaged(path, error) from error
    return _nested(content, checkpoint, path)


def apply(module: torch.nn.Module, state: State, checkpoint: Checkpoint) -> list[str]:
    """Load a state dict into a module; wrappers' prefixes are removed where the module has none.

    ``strict`` refuses missing and unexpected keys; shapes must fit either way.

    Returns:
        What a person should know: a prefix removed, keys left out, dtypes converted.

    Raises:
        StageError: the keys or shapes do not fit; each kind is counted and its first ten listed.
    """
    expected = module.state_dict()
    state, notes = _without_prefixes(state, expected)
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    shapes = [
        f"{name}: {list(state[name].shape)}, the model has {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and isinstance(tensor, torch.Tensor) and state[name].shape != tensor.shape
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
    differences = [f"{len(names)} {kind}:\n  " + listed(names, _MOST_LISTED, "\n  ") for kind, names in kinds if names]
    what = hint = ""
    if shapes or (checkpoint.strict and differences):
        lenient = "; `strict: false` accepts missing and unexpected keys, which keep their initial values"
        what, hint = "source: the checkpoint does not fit the model", "check `model.args`" + ("" if shapes else lenient)
    elif len(missing) == len(expected):
        what, hint = "source: no key of the checkpoint is the model's", "check `model` and `key`"
    if what:
        raise StageError(what, found="\n".join(differences), where=checkpoint.file, hint=hint)
    notes += [text.replace("\n", " ") for text in differences]
    known = {name: tensor for name, tensor in state.items() if name in expected}
    if converted := {str(tensor.dtype) for name, tensor in known.items() if tensor.dtype != expected[name].dtype}:
        notes.append(f"weights of {', '.join(sorted(converted))} were converted to the model's dtypes")
    module.load_state_dict(known, strict=False)
    return notes


def state_of(content: Any, path: Path) -> State:
    """The state dict of what ``read`` returned; a StageError where that is neither a state dict nor a module."""
    if isinstance(content, torch.nn.Module):
        return dict(content.state_dict())
    if not isinstance(content, Mapping):
        raise StageError("source: the checkpoint holds no state dict", found=type(content).__name__, where=str(path))
    if content and all(isinstance(value, torch.Tensor) for value in content.values()):
        return {str(name): tensor for name, tensor in content.items()}
    what = "source: the checkpoint is no state dict itself"
    hint = _suggestion(content) or "`key` names where the state dict sits; dots nest"
    raise StageError(what, found=f"keys {_keys(content)}", where=str(path), hint=hint)


def keep_module(content: Any, path: Path, target: Path) -> None:
    """Keep a whole pickled module as it is; where the file holds something else, an architecture is needed."""
    if not isinstance(content, torch.nn.Module):
        what = "source: the checkpoint holds no module"
        raise StageError(what, found=type(content).__name__, where=str(path), hint="give its architecture as `model`")
    shutil.copyfile(path, target)


def open_module(path: Path, beside: Path) -> torch.nn.Module:
    """Unpickle a kept module, whose class may be importable from the folder ``beside`` the original file."""
    try:
        with _importable(beside), _torch_warnings():
            module: torch.nn.Module = torch.load(path, map_location="cpu", weights_only=False)
    except (AttributeError, ImportError) as error:
        raise _no_class(path, error) from error
    return module


def _no_class(path: Path, error: BaseException) -> StageError:
    what = "source: the pickled module's class cannot be found"
    hint = "give its class as `model: {callable: file.py:Class}`"
    return StageError(what, found=str(error), where=str(path), hint=hint)


def _nested(content: Any, checkpoint: Checkpoint, path: Path) -> Any:
    """Follow ``key``: dots nest, and a key that itself holds dots is found too."""
    rest = checkpoint.key
    while rest:
        if not isinstance(content, Mapping):
            raise StageError(
                "source: `key` leads nowhere", found=f"{rest!r} in a {type(content).__name__}", where=str(path)
            )
        names = [name for name in content if isinstance(name, str) and (rest == name or rest.startswith(f"{name}."))]
        if not names:
            what = f"source: the checkpoint has no key {rest!r}"
            raise StageError(what, found=f"keys {_keys(content)}", where=str(path), hint=_suggestion(content))
        name = max(names, key=len)
        content, rest = content[name], rest[len(name) + 1 :]
    return content


def _suggestion(content: Mapping[Any, Any], prefix: str = "", depth: int = 3) -> str:
    """The first key whose value looks like a state dict, as a ready line for the YAML."""
    for name, value in content.items():
        if isinstance(value, Mapping) and value and isinstance(name, str):
            if all(isinstance(item, torch.Tensor) for item in value.values()):
                return f"write key: {prefix}{name}"
            if depth > 1 and (deeper := _suggestion(value, f"{prefix}{name}.", depth - 1)):
                return deeper
    return ""


def _keys(content: Mapping[Any, Any]) -> str:
    return listed([str(name) for name in content], _MOST_LISTED)


def _without_prefixes(state: State, expected: Mapping[str, Any]) -> tuple[State, list[str]]:
    notes = []
    while True:
        for prefix in _PREFIXES:
            ours = any(name.startswith(prefix) for name in expected)
            if not ours and all(name.startswith(prefix) for name in state):
                state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
                notes.append(f"the prefix {prefix!r} was removed from every key")
                break
        else:
            return state, notes


def _refused(error: pickle.UnpicklingError) -> str:
    """What torch's safe unpickler would not load: the name in the middle of its long advice."""
    named = re.search(r"GLOBAL (\S+)", str(error))
    return f"it needs {named[1]}" if named else first_line(error)[:300]


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def _damaged(path: Path, error: BaseException) -> StageError:
    what = "source: the checkpoint cannot be read"
    hint = "is the file whole? compare its size and checksum with where it came from"
    return StageError(what, found=f"{type(error).__name__}: {first_line(error)[:300]}", where=str(path), hint=hint)


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let a pickled module's class be imported from the checkpoint's folder."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


@contextlib.contextmanager
def _torch_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        # An old file read through torch's deprecated TypedStorage is still read right.
        warnings.filterwarnings("ignore", message="TypedStorage is deprecated", category=UserWarning)
        # Pickled source that differs from the installed class: torch warns and loads.
        warnings.filterwarnings("ignore", category=torch.serialization.SourceChangeWarning)
        yield
