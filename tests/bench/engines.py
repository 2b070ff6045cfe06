"""Building engines: the pipeline, which also proves each from its layer table, against the bare bindings.

Both build each engine in a process of its own and take turns; the least of two rounds counts, process start included.
"""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path
from typing import Literal

from pipeline.base.errors import PipelineError
from pipeline.formats.tensorrt import build, profiles
from pipeline.formats.tensorrt.spec import EngineSpec
from pipeline.machine import environment, tensorrt_flavours
from pipeline.machine.tensorrt_flavours import Flavour
from pipeline.precision import half
from tests.bench import calibration, engine_latency, models
from tests.bench.models import Model
from tests.bench.timing import interleaved, python, table

ROUNDS = 2
MODELS = ("resnet18", "resnet50")
_MAX_BATCH = 8
_FLAVOURS: tuple[tensorrt_flavours.FlavourName, ...] = ("tensorrt_rtx", "tensorrt")
_RTX_GPUS = ("sm_80", "sm_89")
_TIMEOUT_S = 1800.0

Precision = Literal["fp32", "fp16", "int8"]


def measure(folder: Path) -> str:
    """Seconds and MiB of every flavour that can build here, and what can be said of speed."""
    gpu = environment.probe(folder).gpu is not None
    graphs = [graph for name in MODELS for graph in _graphs(name, folder)]
    rows, speeds = [], []
    for flavour in map(tensorrt_flavours.flavour, _FLAVOURS):
        version = tensorrt_flavours.installed(flavour.name)
        label = f"{flavour.name} {version or ''}".strip()
        if version is None or (flavour.needs_gpu and not gpu):
            rows.append((label, "not installed" if version is None else "no GPU", *[""] * 5))
        else:
            rows += [_row(label, flavour, *graph, folder) for graph in graphs]
            speeds += [_speed(flavour, *graph, folder) for graph in graphs if gpu]
    header = ("flavour", "graph", "bare bindings s", "pipeline s", "ratio", "bare MiB", "pipeline MiB")
    return "\n\n".join([table(header, rows), *(speeds or ["Engine latency: no GPU."])])


def _speed(flavour: Flavour, model: Model, precision: Precision, graph: Path, folder: Path) -> str:
    """The engine that _row has built, on the GPU at hand."""
    out = folder / f"{model.name}.{precision}" / flavour.name
    (engine,) = out.glob(f"*.{'plan' if flavour.needs_gpu else 'engine'}")
    try:
        return f"{precision}:\n\n{engine_latency.measure(model, engine, flavour.name)}"
    except PipelineError as error:  # an engine for other GPUs, or without the libraries to run it
        return f"Engine latency, {flavour.name} {precision} {model.name}: {error.what}: {error.found}"


def _graphs(name: str, folder: Path) -> list[tuple[Model, Precision, Path]]:
    """The model's graphs for TensorRT; build time does not depend on how well int8 was calibrated, so on 16 samples."""
    model = models.untrained(name, folder, calibrate_on=16)
    fp16, int8 = (folder / f"{name}.{precision}" / "graph" for precision in ("fp16", "int8"))
    fp16.mkdir(parents=True)
    int8.mkdir(parents=True)
    half.convert(model.path, fp16, precision="fp16")
    calibration.quantize(model, int8, consumer="tensorrt")
    return [(model, "fp32", model.path), (model, "fp16", fp16 / "model.onnx"), (model, "int8", int8 / "model.onnx")]


def _row(
    label: str, flavour: Flavour, model: Model, precision: Precision, graph: Path, folder: Path
) -> tuple[str, ...]:
    spec = EngineSpec(
        flavour=flavour.name,
        precision=precision,
        signature=model.signature,
        max_batch_size=_MAX_BATCH,
        profiles=profiles.resolve(model.signature, (), _MAX_BATCH),
        gpus=() if flavour.needs_gpu else _RTX_GPUS,
    )
    out = folder / f"{model.name}.{precision}" / flavour.name
    out.mkdir(parents=True)
    module = next(name for name in flavour.modules if importlib.util.find_spec(name))
    bare = partial(
        python, Path(__file__).with_name("flat_engine.py"), module, graph, out / "bare", model.signature.inputs[0].name,
        str(_MAX_BATCH), *(gpu.replace("_", "").upper() for gpu in spec.gpus),
    )  # fmt: skip
    whole = partial(
        build.build, graph, spec, out, timing_cache=None, log_path=out / "log", timeout_s=_TIMEOUT_S,
        progress=lambda phase, share: None,
    )  # fmt: skip
    seconds = interleaved({"bare": bare, "pipeline": whole}, ROUNDS)
    bare_s, mine_s = min(seconds["bare"]), min(seconds["pipeline"])
    sizes = [(out / file).stat().st_size / 2**20 for file in ("bare", spec.file_name)]
    return (
        label,
        f"{model.name} {precision}",
        *(f"{bare_s:.1f}", f"{mine_s:.1f}", f"{mine_s / bare_s:.2f}", *(f"{size:.1f}" for size in sizes)),
    )
