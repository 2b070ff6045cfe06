"""Torch modules by name: torchvision, timm, transformers, or the user's own callable."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from pipeline.base import files
from pipeline.base.errors import ConfigError, MissingError, StageError, first_line
from pipeline.base.step import Outcome, Task
from pipeline.base.values import Progress, Signature, SourceModel
from pipeline.capture.torch_module import NamedModule, TorchRuntime
from pipeline.data import torchvision_compat, user_code
from pipeline.data.user_code import Resolve
from pipeline.formats import opening
from pipeline.schema.model import Model, Source
from pipeline.sources import determinism, weights

CONFIG_FILE = "config.json"
_REACH_TIMEOUT_S = 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A module and the class names its pretrained weights come with."""

    module: torch.nn.Module
    labels: tuple[str, ...] = ()


def make(task: Task, progress: Progress) -> Outcome:
    """The step: build the module and keep its weights; raises as ``build``."""
    model, notes = opening.section(task).model, list[str]()
    assert model is not None
    progress("building the model", None)
    with files.disk_errors(task.out_dir, "source"):
        with determinism.reproducible(determinism.INITIAL_SEED, notes):
            built = build(model, opening.resolver(task))
            weights.save(built.module, task.out_dir)
        if model.library == "transformers":
            keep_config(built.module, task.out_dir)
    if model.library is not None and model.weights is None:
        notes.append("no `weights`: the model has random ones")
    return Outcome(notes=tuple(notes), values={"kind": "torch", "labels": list(built.labels), "accuracy": None})


def opened(source: Source, *, signature: Signature, resolve: Resolve, directory: Path) -> SourceModel:
    """The same architecture with the weights that the step left."""
    assert source.built is not None
    with determinism.reproducible(determinism.INITIAL_SEED, []):
        module = rebuild(source.built, resolve, directory)
    weights.load(module, directory)
    return as_source(module, signature)


def as_source(module: torch.nn.Module, signature: Signature) -> SourceModel:
    """A torch module as what everything is made from and judged by."""
    module = module.eval()
    runtime = TorchRuntime(NamedModule(module, signature), signature)
    return SourceModel(kind="torch", module=module, path=None, runtime=runtime, notes=lambda: runtime.notes)


def build(model: Model, resolve: Resolve) -> Built:
    """Construct a module as the YAML says, with pretrained weights where it names them.

    Raises:
        ConfigError: unknown name or weights, or arguments the constructor refuses.
        MissingError: the library is not installed, or weights are neither in its local cache nor to be fetched.
        StageError: user code failed.
    """
    return _construct(model, resolve, None)


def rebuild(model: Model, resolve: Resolve, directory: Path) -> torch.nn.Module:
    """Construct the same architecture without fetching weights.

    A pretrained transformers model takes its configuration from what ``keep_config`` left in ``directory``.
    """
    return _construct(model, resolve, directory).module


def keep_config(module: Any, directory: Path) -> None:
    """Keep a transformers model's configuration, which came with its pretrained weights."""
    text = json.dumps(json.loads(module.config.to_json_string(use_diff=False)), sort_keys=True, indent=1)
    (directory / CONFIG_FILE).write_text(text)


def _construct(model: Model, resolve: Resolve, left: Path | None) -> Built:
    """``left``: the folder of what was built before, whose weights are not fetched again."""
    if model.callable is not None:
        return _from_callable(model.callable, model.args, resolve)
    if model.library == "torchvision":
        return _from_torchvision(model, pretrained=left is None)
    if model.library == "timm":
        return _from_timm(model, pretrained=left is None)
    return _from_transformers(model, resolve, left)


def _from_callable(reference: str, arguments: dict[str, Any], resolve: Resolve) -> Built:
    module = user_code.call(reference, resolve, arguments, f"source: {reference} failed")
    if not isinstance(module, torch.nn.Module):
        raise StageError(
            f"source: {reference} returned no module", found=type(module).__name__, hint="return a torch.nn.Module"
        )
    return Built(module=module)


def _from_torchvision(model: Model, *, pretrained: bool) -> Built:
    torchvision_compat.load()
    from torchvision import models

    assert model.name is not None
    _check_name("torchvision", model.name, models.list_models())
    weights, labels = None, ()
    if model.weights is not None:
        choices = models.get_model_weights(model.name)
        if model.weights not in choices.__members__:
            raise ConfigError(
                f"source: torchvision's {model.name} has no weights {model.weights!r}",
                found=f"it has {', '.join(choices.__members__) or 'none'}",
            )
        weights = choices[model.weights]
        labels = tuple(weights.meta.get("categories", ()))
    if weights is None or not pretrained:
        with _argument_errors(model):
            return Built(module=models.get_model(model.name, weights=None, **model.args), labels=labels)
    local = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    hint = f"put the file of {weights.url} at {local} (the folder is $TORCH_HOME/hub/checkpoints)"
    with _fetch_errors(model, hint), _argument_errors(model), torchvision_compat.fetching():
        return Built(module=models.get_model(model.name, weights=weights, **model.args), labels=labels)


def _from_timm(model: Model, *, pretrained: bool) -> Built:
    timm = _library("timm")
    assert model.name is not None
    _check_name("timm", model.name.partition(".")[0], timm.list_models())
    if model.weights not in (None, "DEFAULT"):
        raise ConfigError(
            f"source: timm has no weights {model.weights!r}",
            hint="write DEFAULT, or a tag in the name: resnet50.a1_in1k",
        )
    if model.weights is None or not pretrained:
        with _argument_errors(model):
            return Built(module=timm.create_model(model.name, pretrained=False, **model.args))
    hint = _hub_hint("model.safetensors", str(timm.get_pretrained_cfg(model.name).hf_hub_id))
    with _fetch_errors(model, hint), _argument_errors(model), torchvision_compat.fetching(), _bounded_hub():
        return Built(module=timm.create_model(model.name, pretrained=True, **model.args))


def _from_transformers(model: Model, resolve: Resolve, left: Path | None) -> Built:
    """A model type (``bert``) or class (``BertModel``) with ``args`` as its configuration.

    With weights, ``name`` is a name on the hub or a local folder.
    """
    transformers = _library("transformers")
    assert model.name is not None
    if model.weights not in (None, "DEFAULT"):
        raise ConfigError(
            f"source: transformers has no weights {model.weights!r}", hint="write DEFAULT; `name` says which"
        )
    if model.weights is None:
        with _argument_errors(model):
            return Built(module=_transformers_random(transformers, model))
    if left is not None:
        config = transformers.AutoConfig.from_pretrained(str(left))
        return Built(module=_transformers_class(transformers, config)(config), labels=_id_labels(config))
    local = resolve(model.name)
    name = str(local) if local.is_dir() else model.name
    hint = _hub_hint("config.json and model.safetensors", model.name)
    with _fetch_errors(model, hint), _argument_errors(model), _bounded_hub():
        config = transformers.AutoConfig.from_pretrained(name, **model.args)
        module = _transformers_class(transformers, config).from_pretrained(name, config=config, dtype=torch.float32)
    return Built(module=module, labels=_id_labels(config))


def _transformers_random(transformers: ModuleType, model: Model) -> torch.nn.Module:
    assert model.name is not None
    known = list(transformers.CONFIG_MAPPING)
    if model.name in known:
        config = transformers.AutoConfig.for_model(model.name, **model.args)
        mapping = transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
        auto = transformers.AutoModelForSequenceClassification if type(config) in mapping else transformers.AutoModel
        return auto.from_config(config)
    kind: Any = getattr(transformers, model.name, None) if model.name.isidentifier() else None
    if not hasattr(kind, "config_class"):
        classes = [name for name in dir(transformers) if name.endswith(("Model", "Classification"))]
        _check_name("transformers", model.name, [*known, *classes])
    return kind(kind.config_class(**model.args))


def _transformers_class(transformers: ModuleType, config: Any) -> Any:
    """The class the weights were saved from, which says which head they have."""
    named = getattr(transformers, (config.architectures or [""])[0], None)
    return named or transformers.AutoModel._model_mapping[type(config)]


def _id_labels(config: Any) -> tuple[str, ...]:
    names = config.id2label or {}
    return tuple(str(names[index]) for index in sorted(names)) if "LABEL_0" not in names.values() else ()


def _library(name: str) -> ModuleType:
    if importlib.util.find_spec("torchvision") is not None:
        torchvision_compat.load()  # timm imports it, and transformers for its image models
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingError(
            f"{name} is not installed", found=str(error), hint=f"pip install 'model-repository-pipeline[{name}]'"
        ) from error


def _check_name(library: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        raise ConfigError(
            f"source: {library} has no model {name!r}",
            hint=f"did you mean {', '.join(near)}?" if near else f"it knows {len(known)} names, such as {known[0]}",
        )


@contextlib.contextmanager
def _argument_errors(model: Model) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError, KeyError, AssertionError) as error:
        raise ConfigError(
            f"source: {model.library}'s {model.name} cannot be built with these `args`",
            found=f"{type(error).__name__}: {error}; args {model.args}",
        ) from error


@contextlib.contextmanager
def _fetch_errors(model: Model, hint: str) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, EOFError) as error:
        raise MissingError(
            f"source: the weights of {model.library}'s {model.name} could not be fetched or read",
            found=f"{type(error).__name__}: {first_line(error)}",
            hint=f"run where the network allows it once; or {hint}",
        ) from error


def _hub_hint(what: str, name: str) -> str:
    return f"put {what} of {name} into the Hugging Face cache ($HF_HOME/hub, as `hf download {name}` does elsewhere)"


@contextlib.contextmanager
def _bounded_hub() -> Iterator[None]:
    """Use the local Hugging Face cache alone when the hub cannot be reached: its own retries take minutes."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    if not before:
        constants.HF_HUB_OFFLINE = not _reachable(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _reachable(url: str) -> bool:
    if not url.startswith(("http://", "https://")):
        return False
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_REACH_TIMEOUT_S):  # noqa: S310
            return True
    except urllib.error.HTTPError:
        return True  # it answered
    except OSError:
        return False
