"""Building one engine: a child builds it, and nothing it made is kept that is not proven to be what was asked for."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.base import command
from pipeline.base.errors import StageError, listed
from pipeline.base.files import digest_of, disk_errors, sha256_file, sha256_tree, write_atomic
from pipeline.base.step import Outcome, Task
from pipeline.base.values import Progress
from pipeline.formats.tensorrt import builder, failures, interface, layers, plan_file
from pipeline.formats.tensorrt.spec import EngineSpec, from_json, to_json
from pipeline.machine import tensorrt_flavours
from pipeline.machine.tensorrt_flavours import Flavour

_ONNX_FILE = "model.onnx"
_POLL_S = 0.1
_TOLD_LAYERS = 12
_TAIL_CHARACTERS = 400
_TURING = "(SM75): FP32 GEMM is not supported"  # TensorRT-RTX 1.7.1, of a product that keep_fp32 or repair left in fp32


def make(task: Task, progress: Progress) -> Outcome:
    """The step; see ``build``.

    Upstream: ``graph``, whose ``kept`` nodes are the spec's. Arguments: ``spec``. Unkeyed: ``timing_cache``,
    ``timeout_s``.
    """
    graph = task.upstream["graph"]
    return build(
        graph.path,
        replace(from_json(task.arguments["spec"]), kept_nodes=tuple(graph.values.get("kept", ()))),
        task.out_dir,
        timing_cache=Path(task.arguments["timing_cache"]),
        log_path=task.log_path.with_suffix(".engine.log"),
        timeout_s=task.arguments["timeout_s"],
        progress=progress,
    )


def build(
    onnx: Path,
    spec: EngineSpec,
    out_dir: Path,
    *,
    timing_cache: Path | None,
    log_path: Path,
    timeout_s: float,
    progress: Progress,
) -> Outcome:
    """Build the engines of a spec, prove them, and write them to ``out_dir``, each with its sidecar ``<file>.json``.

    Args:
        onnx: the graph, already in the spec's precision: a file, or a directory that holds ``model.onnx`` and its
            external data.
        spec: what to build, and what it is held against.
        out_dir: existing directory; on failure nothing is left in it.
        timing_cache: folder of classic TensorRT's timing caches, made where needed; None for none.
        log_path: everything the library says is added to it.
        timeout_s: the child that builds an engine is killed after this long.
        progress: told the library's phase and the share of the build that is done.

    Returns:
        The sidecar's facts as values. Of several engines, the first one's file, and as values their common ``identity``
        and, under ``engines``, the facts of each by file name.

    Raises:
        MissingError: the flavour is not installed, does not load, or has no such GPU here; the disk is full.
        StageError: the graph or a setting is refused, the build failed, took too long or was killed, or what it made
            is not what was asked for.
    """
    flavour = _usable(spec)
    facts: dict[str, dict[str, Any]] = {}
    with (
        disk_errors(out_dir, "building an engine"),
        tempfile.TemporaryDirectory(dir=out_dir, prefix=".engine-") as scratch,
    ):
        for item in spec.each:
            plan = Path(scratch) / item.file_name
            result = _run(_job(item, onnx, plan, timing_cache), flavour, log_path, timeout_s, progress)
            progress("engine: inspecting", None)
            facts[item.file_name] = _proven(result, item, onnx, plan, log_path)
            text = json.dumps(facts[item.file_name], indent=2, sort_keys=True)
            write_atomic(plan.with_name(f"{item.file_name}.json"), f"{text}\n")
        for name in (part for file_name in facts for part in (file_name, f"{file_name}.json")):
            (Path(scratch) / name).replace(out_dir / name)
    return Outcome(file=next(iter(facts)), values=_together(spec, facts))


def _usable(spec: EngineSpec) -> Flavour:
    flavour = tensorrt_flavours.flavour(spec.flavour)
    if tensorrt_flavours.installed(spec.flavour) is None:
        raise failures.absent(flavour, f"no module {' or '.join(flavour.modules)}")
    refused = tensorrt_flavours.refusals(spec.flavour, precision=spec.precision, gpus=spec.gpus, options=spec.options)
    if refused:
        raise StageError("engine: unsupported", found="\n".join(message for _, message in refused))
    return flavour


def _job(spec: EngineSpec, onnx: Path, plan: Path, timing_cache: Path | None) -> dict[str, Any]:
    return {
        "spec": to_json(spec),
        "onnx": str(onnx / _ONNX_FILE if onnx.is_dir() else onnx),
        "plan": str(plan),
        "result": f"{plan}.result",
        "timing_cache": None if timing_cache is None else str(timing_cache),
    }


def _together(spec: EngineSpec, facts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The facts of one engine, or of several: what they share, and each by its file name."""
    if len(facts) == 1:
        return dict(next(iter(facts.values())))
    return {
        "flavour": spec.flavour,
        "precision": spec.precision,
        "compute_capabilities": list(spec.gpus),
        "identity": digest_of({name: item["identity"] for name, item in facts.items()}),
        "engines": {name: dict(item) for name, item in facts.items()},
    }


def _run(
    job: Mapping[str, Any], flavour: Flavour, log_path: Path, timeout_s: float, progress: Progress
) -> dict[str, Any]:
    """Run the child to its end and return what it found."""
    result = Path(job["result"])
    job_file = result.with_suffix(".job")
    job_file.write_text(json.dumps(job))
    start = log_path.stat().st_size if log_path.exists() else 0
    child = command.start([sys.executable, "-m", builder.__name__, str(job_file)], log_path=log_path)
    try:
        _follow(child, log_path, start, timeout_s, progress)
    finally:
        status = command.stop(child, grace_s=0.0)
    if not result.is_file():
        with log_path.open(errors="replace") as log:
            log.seek(start)
            raise failures.died(status, log.read().strip()[-_TAIL_CHARACTERS:], log_path)
    values: dict[str, Any] = json.loads(result.read_text())
    if "failure" in values:
        error = failures.error(values["failure"], flavour, log_path)
        if _TURING in error.found:
            error.hint = "remove sm_75 from `engine.gpus`, or leave nothing in fp32: `repair: off`, and no `keep_fp32`"
        raise error
    return values


def _follow(child: subprocess.Popen[bytes], log_path: Path, start: int, timeout_s: float, progress: Progress) -> None:
    """Wait for the child, passing its progress on."""
    deadline, rest, running = time.monotonic() + timeout_s, "", True
    with log_path.open(errors="replace") as log:
        log.seek(start)
        while running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(timeout=_POLL_S)
            running = child.poll() is None
            *lines, rest = (rest + log.read()).split("\n")
            told = [line for line in lines if line.startswith(builder.PROGRESS)]
            if told:
                _, share, phase = told[-1].split(" ", 2)
                progress(f"engine: {phase[:1].lower()}{phase[1:]}", float(share))
            if running and time.monotonic() > deadline:
                what = f"engine: not built within {timeout_s:g} s"
                raise StageError(what, hint="raise `engine.timeout_s`, or make the profiles smaller", log=str(log_path))


def _proven(result: Mapping[str, Any], spec: EngineSpec, onnx: Path, plan: Path, log_path: Path) -> dict[str, Any]:
    """The sidecar's facts of an engine that is what was asked for."""
    log = str(log_path)
    if damage := plan_file.problem(plan, spec.flavour):
        raise StageError("engine: the builder wrote a damaged file", found=damage, log=log)
    table = layers.parse(result["table"])
    if not table:
        what = "engine: the build log has no layer table, so the engine cannot be proven"
        hint = "build with a version of the library that this tool knows"
        raise StageError(what, found=f"{spec.flavour} {result['version']}", hint=hint, log=log)
    inputs, outputs = layers.ports(result["table"])
    # Classic TensorRT's inspector does not list them in this form; the child has checked those of the network.
    if (inputs or spec.flavour == "tensorrt_rtx") and (wrong := interface.problems(inputs, outputs, spec)):
        raise StageError("engine: its inputs and outputs are not the model's", found="\n".join(wrong), log=log)
    if wrong := layers.judge(table, spec.precision, kept=spec.kept_nodes, quantized=result["quantized"]):
        raise _wrong_precision(wrong, table, spec, log)
    if lost := layers.narrowed(table, set(spec.kept_nodes) & set(result["products"])):
        raise StageError(
            "engine: nodes that stay fp32 in the graph do not in the engine, so it is not what the gates judged",
            found=", ".join(lost),
            hint="keep the node before or after each in fp32 too, as `keep_fp32: {nodes: […]}`: the builder narrows "
            "a product that stands alone between casts",
            log=log,
        )
    return _facts(result, spec, table, sha256_tree(onnx), plan)


def _wrong_precision(wrong: list[str], table: tuple[layers.Layer, ...], spec: EngineSpec, log: str) -> StageError:
    got = {kind for layer in table if layer.is_product for kind in layer.arithmetic[:1]} - {
        layers.TYPE_OF[spec.precision]
    }
    names = " and ".join(sorted(layers.PRECISION_OF.get(kind, kind) for kind in got)) or "something else"
    return StageError(
        f"engine: asked for {spec.precision}, got {names}",
        found=listed(wrong, _TOLD_LAYERS, "\n"),
        hint="the ONNX file is not in that precision: build the variant from the beginning, or name what stays in "
        "fp32 under `keep_fp32`",
        log=log,
    )


def _facts(
    result: Mapping[str, Any], spec: EngineSpec, table: tuple[layers.Layer, ...], onnx_sha256: str, plan: Path
) -> dict[str, Any]:
    """Everything in the sidecar; equal builds differ in the plan's hash and size only."""
    summary = layers.summary(table)
    tensors = {side: [{key: port[key] for key in ("name", "dtype", "shape")} for port in result[side]] for side in
               ("inputs", "outputs")}  # fmt: skip
    values = to_json(spec)
    decides = {"onnx": onnx_sha256, "spec": values, "version": result["version"], "layers": summary}
    return {
        "flavour": spec.flavour,
        "version": result["version"],
        "compute_capabilities": list(result["compute_capabilities"]),
        "precision": spec.precision,
        "profiles": json.loads(json.dumps(values["profiles"])),
        **tensors,
        "layers": layers.counts(table),
        "layer_types": summary,
        "quantized_nodes": result["quantized"],
        "options": spec.options,
        "onnx_sha256": onnx_sha256,
        "plan_sha256": sha256_file(plan),
        "size_bytes": plan.stat().st_size,
        "identity": digest_of(decides),
    }
