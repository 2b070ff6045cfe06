"""A SavedModel for TensorFlow Serving: ``<root>/<name>/<N>/``, ``models.config``, and the proof of both."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.base import files
from pipeline.base.errors import ConfigError, SmokeError, StageError
from pipeline.base.values import RepositoryEntry, RunningServer, SmokeCheck, SmokeResult, Tensors
from pipeline.build.emission import manifest_of
from pipeline.build.run import Run
from pipeline.formats.saved_model import tfserving_messages
from pipeline.plan import TfServingPlan
from pipeline.proof import parity
from pipeline.proof.comparison import compare
from pipeline.repository.manifest import manifest_check
from pipeline.repository.versions import LOCK_TIMEOUT_S, Version, global_lock, version_numbers
from pipeline.servers.tfserving import server

SCRIPT = "serve.sh"
_LOOKS_EVERY_S = 60  # at models.config: a model that a later build adds is then served without a restart
_ROUND_TRIPS = 3  # requests; the samples themselves have all been through the signature by then
_Checked = Callable[[], str]


def emit(run: Run, plan: TfServingPlan) -> None:
    """Put the variant's SavedModel into the candidate of the tree; a failure is kept to this row."""
    with run.guarded(plan, "build"):
        made = run.results[plan.variant.key]
        if made.artifact is None or made.error:
            raise StageError(
                f"tfserving[{plan.model}]: its SavedModel was not made",
                found=f"{plan.variant.identifier} failed",
                hint="see the error of that variant",
            )
        with run.stage(f"candidate[{plan.identifier}]", plan.identifier) as stage:
            version = Version(
                model_name=plan.model,
                file_name="",
                artifact=made.artifact.path,
                model_files={},
                golden=run.golden_path,
                manifest=manifest_of(run, plan.variant, made.artifact),
            )
            entry = run.emit(plan, version, stage)
            write_tree_files(entry.root)
        run.update(
            plan,
            artifact=made.artifact,
            entry=entry,
            parity=made.parity,
            accuracy=made.accuracy,
            cached=made.cached and not entry.created,
        )


def published(run: Run, plan: TfServingPlan) -> None:
    """Name the model in the tree's own files, now that it is there; a failure is kept to this row."""
    entry = run.results[plan.key].entry
    if entry is None or run.results[plan.key].error:
        return
    with run.guarded(plan, "build"):
        write_tree_files(plan.root)
        run.note(plan, f"launch: {launch_command(plan.root)}")


def write_tree_files(root: Path) -> None:
    """Write ``models.config`` for every model in the tree, and the script that launches TF-Serving on it.

    Raises:
        MissingError: the disk is full, or another build holds the tree for too long.
    """
    with files.locked(global_lock(root), LOCK_TIMEOUT_S):
        names = sorted(item.name for item in root.iterdir() if version_numbers(item))
        files.write_atomic(root / server.MODELS_CONFIG, tfserving_messages.models_config(names, server.INSIDE))
        files.write_atomic(root / SCRIPT, _script())


def launch_command(root: Path) -> str:
    """What to type to serve the tree with Docker."""
    return f"sh {shlex.quote(str(root / SCRIPT))}"


def _script() -> str:
    command = server.docker_run('"$here"', name="", ports=server.USUAL_PORTS)
    words = [*command, f"--model_config_file_poll_wait_seconds={_LOOKS_EVERY_S}", '"$@"']
    return (
        "#!/bin/sh\n"
        f"# Serves every model of this folder with TensorFlow Serving: gRPC on {server.USUAL_PORTS.grpc}, "
        f"REST on {server.USUAL_PORTS.http}, on this machine alone.\n"
        'here=$(cd "$(dirname "$0")" && pwd) || exit 1\n'
        f"exec {' '.join(words)}\n"
    )


# ---- the proof ----------------------------------------------------------------------------------------------------


def prove(run: Run, plan: TfServingPlan) -> None:
    """Hold the newest version against the golden samples, its manifest and TF-Serving's own messages.

    With ``serve.engine: container`` TensorFlow Serving itself is launched and asked over REST and gRPC; else
    TensorFlow's loader runs what the server would run, and the report says that the server was not run.
    """
    entry = run.results[plan.key].entry
    if entry is None:
        return
    with run.guarded(plan, "smoke"), run.stage(f"smoke[{plan.identifier}]", plan.identifier) as stage:
        proof = _Proof(run, plan, entry)
        checks, served = proof.offline(), run.plan.loaded.config.serve.engine == "container"
        if served:
            checks += proof.served()
        else:
            run.note(plan, "the server was not run: TensorFlow's own loader answered in its place")
        result = SmokeResult(model=plan.identifier, checks=tuple(checks))
        stage.result = f"{len(checks)} checks"
        run.judge(plan, result)
        run.prove(entry, "served" if served else "inspected")


class _Proof:
    """The checks of one version."""

    def __init__(self, run: Run, plan: TfServingPlan, entry: RepositoryEntry) -> None:
        self._run, self._plan, self._entry = run, plan, entry
        self._tolerance = plan.variant.tolerance
        self._metadata: dict[str, Any] = {}

    def offline(self) -> list[SmokeCheck]:
        """What needs no server."""
        rows: tuple[tuple[str, _Checked], ...] = (
            ("models_config", self._config),
            ("signature", self._signature),
            ("metadata", self._shown),
            ("predict_request", self._round_trip),
        )
        return [manifest_check(self._entry), *(_check(name, "-", checked) for name, checked in rows)]

    def served(self) -> list[SmokeCheck]:
        """What TensorFlow Serving itself answers."""
        from pipeline.servers.tfserving import client

        config = self._run.plan.loaded.config.serve
        log_path = self._run.directory / f"{self._plan.identifier}.server.log"
        launch = server.launch(
            self._entry.root, self._plan.model, log_path=log_path, start_timeout_s=config.start_timeout_s
        )
        with launch as running:
            asked: tuple[tuple[str, Any, _Checked], ...] = (
                ("metadata", "http", lambda: client.metadata(running, self._plan.model, self._known())),
                ("golden", "http", lambda: self._golden(running, client.rest)),
                ("golden", "grpc", lambda: self._golden(running, client.grpc)),
            )
            return [_check(name, protocol, checked) for name, protocol, checked in asked]

    def _golden(self, running: RunningServer, ask: Any) -> str:
        samples = self._run.golden.samples
        for number, sample in enumerate(samples):
            outputs = ask(running, self._plan.model, self._run.signature, self._known(), sample.inputs)
            self._hold(outputs, sample.outputs, f"sample {number}")
        return f"{len(samples)} samples"

    def _config(self) -> str:
        path = self._entry.root / server.MODELS_CONFIG
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SmokeError(f"{path.name} cannot be read", found=str(error)) from error
        known = tfserving_messages.parse_models_config(text, str(path))
        expected = f"{server.INSIDE}/{self._plan.model}"
        if known.get(self._plan.model) != expected:
            raise SmokeError(f"{path.name} says {known}; expected {self._plan.model} at {expected}")
        return f"lists {', '.join(known)}"

    def _signature(self) -> str:
        from pipeline.formats.saved_model.runtime import SavedModelRuntime

        runtime = SavedModelRuntime(self._entry.version_dir, self._run.plan.signature)
        sizes = parity.batch_sizes(self._plan.variant.max_batch_size)
        measured = parity.measure(runtime, self._run.golden, batch_sizes=sizes, tolerance=self._tolerance)
        if not measured.passed:
            raise SmokeError(measured.reason)
        return f"{measured.samples} answers at batch {', '.join(map(str, sizes))}, max abs {measured.max_abs:.1e}"

    def _shown(self) -> str:
        shown = metadata(self._entry.version_dir, self._plan.model, self._entry.version)
        path = self._run.directory / f"{self._plan.identifier}.metadata.json"
        files.write_atomic(path, json.dumps(shown, indent=1) + "\n")
        signatures = shown["metadata"]["signature_def"]["signature_def"]
        if "serving_default" not in signatures:
            others = ", ".join(name for name in signatures if not name.startswith("__saved_model_"))
            raise SmokeError("no signature serving_default", found=f"the SavedModel has {others}")
        named = signatures["serving_default"]
        for side, specs in (("inputs", self._run.signature.inputs), ("outputs", self._run.signature.outputs)):
            if set(named[side]) != {spec.name for spec in specs}:
                raise SmokeError(f"serving_default has {side} {', '.join(named[side])}")
        self._metadata = shown
        return str(path)

    def _known(self) -> dict[str, Any]:
        """The printed metadata, which requests are made of."""
        if not self._metadata:
            raise SmokeError("no metadata to make a request of", found="the check `metadata` failed")
        return self._metadata

    def _round_trip(self) -> str:
        """A request made of the printed metadata, serialised, parsed, and answered by the SavedModel."""
        from pipeline.formats.saved_model import process

        child, samples = process.shared(), self._run.golden.samples[:_ROUND_TRIPS]
        for number, sample in enumerate(samples):
            _, request = child.call("request", {"metadata": self._known()}, sample.inputs)
            _, answer = child.call("answer", {"path": str(self._entry.version_dir.absolute())}, request)
            _, outputs = child.call("response", {}, answer)
            self._hold(outputs, sample.outputs, f"sample {number}")
        return f"{len(samples)} requests"

    def _hold(self, outputs: Tensors, expected: Tensors, label: str) -> None:
        batched = self._run.golden.batched
        theirs, ours = ({name: array if batched else np.asarray(array)[None] for name, array in side.items()}
                        for side in (outputs, expected))  # fmt: skip
        result = compare(theirs, ours, replace(self._tolerance, min_top1=0.0))
        if not result.passed:
            raise SmokeError(f"{label}: {result.reason}")


def _check(name: str, protocol: Any, checked: _Checked) -> SmokeCheck:
    try:
        return SmokeCheck(name=name, protocol=protocol, outcome="passed", detail=checked())
    except (ConfigError, SmokeError, StageError) as failure:
        detail = " ".join(text for text in (failure.what, failure.found) if text)
        return SmokeCheck(name=name, protocol=protocol, outcome="failed", detail=detail)


def metadata(version_dir: Path, name: str, version: int) -> dict[str, Any]:
    """What TF-Serving answers to ``GET /v1/models/NAME/metadata``.

    Raises:
        MissingError: TensorFlow is not installed.
        StageError: not a SavedModel that can be served.
    """
    from pipeline.formats.saved_model import process

    request = {"path": str(version_dir.absolute()), "name": name, "version": version}
    values, _ = process.shared().call("metadata", request)
    shown: dict[str, Any] = values["metadata"]
    return shown
