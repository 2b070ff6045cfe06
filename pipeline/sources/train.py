"""Train a classifier here: seeded, deterministic on the CPU, and resumable after a kill.

Every epoch seeds all generators from (seed, epoch), and every step's learning rate is a function of its number. So an
epoch depends on nothing but the weights and the optimizer's state before it: a resumed training ends in the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import math
import pickle
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.base import files, signatures
from pipeline.base.errors import ConfigError, StageError
from pipeline.base.step import Outcome, Task
from pipeline.base.values import Progress, Signature
from pipeline.capture.torch_module import NamedModule
from pipeline.data import datasets, user_code
from pipeline.formats import opening
from pipeline.schema.model import EarlyStop, Optimizer, Schedule, Train
from pipeline.sources import determinism, library, weights
from pipeline.sources.augment import augmenter

PARTIAL_FILE = "training.pt"
_EVALUATION_BATCH = 256
_PROGRESS_EVERY_S = 0.5

Inputs = dict[str, torch.Tensor]


@dataclass(slots=True, kw_only=True)
class _State:
    """What an epoch leaves to the next."""

    epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, torch.Tensor] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """A split in memory: samples of equal shapes stacked, or single samples for a model without a batch dimension.

    Per group the stacked inputs, one row per sample, and the int64 targets.
    """

    groups: tuple[tuple[Inputs, torch.Tensor], ...]
    batched: bool

    @property
    def size(self) -> int:
        return sum(len(targets) for _, targets in self.groups)


def make(task: Task, progress: Progress) -> Outcome:
    """The step; see ``train``, whose values it gives with ``kind``."""
    settings, notes = opening.section(task).train, list[str]()
    assert settings is not None
    with files.disk_errors(task.out_dir, "source"):
        values = train(
            settings,
            signature=signatures.from_json(task.arguments["signature"]),
            resolve=opening.resolver(task),
            out_dir=task.out_dir,
            partial_dir=task.partial_dir,
            progress=progress,
            notes=notes,
        )
    return Outcome(notes=tuple(notes), values={"kind": "torch", **values})


opened = library.opened
"""The module with the weights that training left."""


def train(
    settings: Train,
    *,
    signature: Signature,
    resolve: user_code.Resolve,
    out_dir: Path,
    partial_dir: Path,
    progress: Progress,
    notes: list[str],
) -> dict[str, Any]:
    """Train, and write ``weights.safetensors`` into ``out_dir``.

    The loss is the cross entropy of the first float output against the class index (a model that ends in log_softmax is
    fine: log_softmax of log-probabilities is the identity). With ``early_stop`` the weights of the best epoch are
    kept, else those of the last. Without a batch dimension the model sees single samples, and gradients are averaged
    over ``batch_size`` of them. ``partial_dir`` keeps the state after every epoch.

    Returns:
        ``accuracy`` (held-out, 0 to 1), ``epochs_run``, ``history``, ``train_samples``, ``test_samples``, ``labels``.

    Raises:
        ConfigError: data without targets or without a train part, or augmentation of something else than images.
        StageError: the model failed, its scores do not fit the classes, or the loss is no longer finite.
    """
    with determinism.reproducible(settings.seed, notes):
        progress("loading the data", None)
        dataset = datasets.load(settings.data, signature=signature, resolve=resolve, seed=settings.seed)
        train_part, test_part = (_part(split, signature) for split in datasets.trainable(dataset))
        determinism.seed_all(settings.seed)
        module = library.build(settings.model, resolve).module
        trainer = _Trainer(settings, signature, module, (train_part, test_part), progress)
        state = trainer.run(partial_dir / PARTIAL_FILE, notes)
        weights.save(module, out_dir)
    best = [row["accuracy"] for row in state.history]
    return {
        "accuracy": max(best) if settings.early_stop else best[-1],
        "epochs_run": state.epoch,
        "history": state.history,
        "train_samples": train_part.size,
        "test_samples": test_part.size,
        "labels": list(dataset.labels),
    }


class _Trainer:
    """One training run; see ``train``."""

    def __init__(
        self,
        settings: Train,
        signature: Signature,
        module: torch.nn.Module,
        parts: tuple[_Part, _Part],
        progress: Progress,
    ) -> None:
        self._settings, self._module, self._progress = settings, module, progress
        self._named, (self._train, self._test) = NamedModule(module, signature), parts
        self._classes = 1 + max(int(targets.max()) for part in parts for _, targets in part.groups)
        self._output = _scores_output(signature)
        self._optimizer = _optimizer(module, settings.optimizer)
        self._augment = augmenter(settings.augmentation, signature)
        self._told = 0.0

    def run(self, partial: Path, notes: list[str]) -> _State:
        """Run the epochs that are left, and leave the module with its final weights."""
        epochs, stop = self._settings.epochs, self._settings.early_stop
        state = self._restore(partial, notes)
        while state.epoch < epochs and not stopped(state.history, stop):
            determinism.seed_all(self._settings.seed, state.epoch + 1)
            loss = self._epoch(state.epoch)
            accuracy = self.accuracy()
            if stop and accuracy > max((row["accuracy"] for row in state.history), default=-1.0):
                state.best = {name: tensor.clone() for name, tensor in self._module.state_dict().items()}
            state.epoch += 1
            state.history.append({"loss": round(loss, 6), "accuracy": accuracy})
            self._keep(partial, state)
            self._progress(
                f"epoch {state.epoch}/{epochs}: loss {loss:.4f}, held-out accuracy {accuracy:.2%}", state.epoch / epochs
            )
        if state.epoch < epochs:
            notes.append(f"stopped early after {state.epoch} of {epochs} epochs; the best epoch's weights are kept")
        if state.best is not None:
            self._module.load_state_dict(state.best)
        return state

    def accuracy(self) -> float:
        """Share of held-out samples whose arg-max is their target."""
        self._named.eval()
        right, batch = 0, _EVALUATION_BATCH if self._test.batched else 1
        with torch.inference_mode():
            for inputs, targets in self._test.groups:
                for start in range(0, len(targets), batch):
                    rows = slice(start, start + batch)
                    right += int((self._scores(_rows(inputs, rows)).argmax(-1) == targets[rows]).sum())
        return right / self._test.size

    def _epoch(self, epoch: int) -> float:
        self._named.train()
        plan = list(_batches(self._train, self._settings.batch_size))
        total = 0.0
        for step, (group, rows) in enumerate(plan):
            done = (epoch + step / len(plan)) / self._settings.epochs
            base = self._settings.optimizer.learning_rate
            rate = learning_rate(self._settings.schedule, base, done, self._settings.epochs)
            for parameters in self._optimizer.param_groups:
                parameters["lr"] = rate
            self._optimizer.zero_grad(set_to_none=True)
            loss = self._backward(*self._train.groups[group], rows)
            if not math.isfinite(loss):
                raise StageError(
                    f"source: training diverged in epoch {epoch + 1}",
                    found=f"loss {loss}, learning rate {rate:g}",
                    hint="lower optimizer.learning_rate, or scale the data with `mean` and `std`",
                )
            self._optimizer.step()
            total += loss * len(rows)
            self._tell(f"epoch {epoch + 1}/{self._settings.epochs}", done)
        return total / self._train.size

    def _backward(self, inputs: Inputs, targets: torch.Tensor, rows: torch.Tensor) -> float:
        """Gradients of the mean loss over ``rows``; the loss."""
        if self._train.batched:
            return self._loss(self._augment(_rows(inputs, rows)), targets[rows], 1)
        return sum(self._loss(self._augment(_rows(inputs, row)), targets[row], len(rows)) for row in rows.split(1))

    def _loss(self, inputs: Inputs, targets: torch.Tensor, share: int) -> float:
        scores = self._scores(inputs)
        smoothing = self._settings.label_smoothing
        loss = torch.nn.functional.cross_entropy(scores, targets, label_smoothing=smoothing) / share
        loss.backward()
        return float(loss.detach())

    def _scores(self, inputs: Inputs) -> torch.Tensor:
        """Scores ``[n, classes]``, checked against the classes there are."""
        batched = self._train.batched
        values = [inputs[name] if batched else inputs[name][0] for name in self._named.input_names]
        with user_code.user_errors("source: the model failed in training"):
            scores = self._named(*values)[self._output]
        scores = scores if batched else scores[None]
        if scores.ndim != 2 or scores.shape[1] < self._classes:
            raise StageError(
                "source: the model's scores do not fit the classes",
                found=f"output {self._named.output_names[self._output]} of shape {list(scores.shape)}; "
                f"the data has {self._classes} classes",
                hint="one score per class, [N, classes]: check `model.args`",
            )
        return scores

    def _tell(self, text: str, share: float) -> None:
        if time.monotonic() - self._told > _PROGRESS_EVERY_S:
            self._told = time.monotonic()
            self._progress(text, share)

    def _keep(self, partial: Path, state: _State) -> None:
        modules = {"module": self._module.state_dict(), "optimizer": self._optimizer.state_dict()}
        stream = io.BytesIO()
        torch.save({**modules, "epoch": state.epoch, "history": state.history, "best": state.best}, stream)
        data = stream.getvalue()
        files.write_atomic(partial, hashlib.sha256(data).digest() + data)

    def _restore(self, partial: Path, notes: list[str]) -> _State:
        """What an interrupted run kept, or a fresh start; a damaged file is noted."""
        if not partial.is_file():
            return _State()
        raw = partial.read_bytes()
        try:
            if hashlib.sha256(raw[32:]).digest() != raw[:32]:
                raise ValueError("its digest is wrong")
            content = torch.load(io.BytesIO(raw[32:]), weights_only=True)
            state = _State(epoch=content["epoch"], history=content["history"], best=content["best"])
            self._module.load_state_dict(content["module"])
            self._optimizer.load_state_dict(content["optimizer"])
        except (ValueError, KeyError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
            notes.append(f"the state of an interrupted training is damaged ({error}); training started over")
            return _State()
        notes.append(f"resumed after epoch {state.epoch}")
        return state


def learning_rate(schedule: Schedule, base: float, done: float, epochs: int) -> float:
    """The learning rate at a share ``done`` (0 to 1) of all steps.

    cosine: Loshchilov & Hutter, SGDR, 2017, without restarts. onecycle: Smith & Topin, 2018, with the shape of
    torch.optim.lr_scheduler.OneCycleLR's defaults: cosine from base/25 up to base over 30 %, then down to base/250000.
    """
    if schedule.name == "cosine":
        return base * (1 + math.cos(math.pi * done)) / 2
    if schedule.name == "step":
        return base * schedule.gamma ** (int(done * epochs + 1e-9) // schedule.step_epochs)
    if schedule.name == "onecycle":
        low, high, share = (base / 25, base, done / 0.3) if done < 0.3 else (base / 250_000, base, (1 - done) / 0.7)
        return low + (high - low) * (1 - math.cos(math.pi * share)) / 2
    return base


def stopped(history: Sequence[Mapping[str, float]], early_stop: EarlyStop | None) -> bool:
    """Whether the last ``patience_epochs`` epochs all failed to beat the best before them by more than ``min_gain``."""
    if early_stop is None:
        return False
    best, since = -1.0, 0
    for row in history:
        if row["accuracy"] > best + (early_stop.min_gain if best >= 0 else 0):
            best, since = row["accuracy"], 0
        else:
            since += 1
    return since >= early_stop.patience_epochs


def _part(split: datasets.Split, signature: Signature) -> _Part:
    assert split.targets is not None
    grouped: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    samples = [split.inputs[row] for row in range(len(split.inputs))]
    for row, sample in enumerate(samples):
        grouped.setdefault(tuple(sample[spec.name].shape for spec in signature.inputs), []).append(row)
    batched = signature.batch is not None
    join = np.concatenate if batched else np.stack
    groups = tuple(
        (
            {spec.name: torch.from_numpy(join([samples[row][spec.name] for row in rows])) for spec in signature.inputs},
            torch.from_numpy(split.targets[rows].copy()),
        )
        for rows in grouped.values()
    )
    return _Part(groups=groups, batched=batched)


def _batches(part: _Part, size: int) -> Iterator[tuple[int, torch.Tensor]]:
    """Shuffled (group, rows) that cover every sample once.

    A lone last sample joins the batch before it: batch normalisation cannot train on one.
    """
    chunks: list[tuple[int, torch.Tensor]] = []
    for group, (_, targets) in enumerate(part.groups):
        rows = list(torch.randperm(len(targets)).split(size))
        if len(rows) > 1 and len(rows[-1]) == 1:
            rows[-2:] = [torch.cat(rows[-2:])]
        chunks += [(group, chunk) for chunk in rows]
    for position in torch.randperm(len(chunks)).tolist():
        yield chunks[position]


def _rows(inputs: Inputs, rows: slice | torch.Tensor) -> Inputs:
    return {name: tensor[rows] for name, tensor in inputs.items()}


def _scores_output(signature: Signature) -> int:
    for number, spec in enumerate(signature.outputs):
        if spec.dtype.startswith("float"):
            return number
    raise ConfigError("source: training needs an output of float scores", hint="add it to `outputs`")


def _optimizer(module: torch.nn.Module, settings: Optimizer) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not parameters:
        raise StageError("source: the model has no parameters to train")
    rate, decay = settings.learning_rate, settings.weight_decay
    # Fused: one pass over the weights per step; a third of the time of a small-image ResNet-18 step on 2 cores.
    if settings.name == "sgd":
        return torch.optim.SGD(parameters, lr=rate, weight_decay=decay, momentum=settings.momentum, fused=True)
    kind = torch.optim.Adam if settings.name == "adam" else torch.optim.AdamW
    return kind(parameters, lr=rate, weight_decay=decay, fused=True)
