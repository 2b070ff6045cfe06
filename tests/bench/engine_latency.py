"""How long an engine takes on a GPU, against the bare runtime, ONNX Runtime's CUDA provider and torch.compile.

All take the same array from the host and give one back to it, one request at a time. What a machine lacks is said in
its row. Written against the bindings of TensorRT 10.16 and 11.4; never run yet, for want of a GPU.
"""

from __future__ import annotations

import importlib
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.base.values import Array
from pipeline.data import torchvision_compat
from pipeline.formats.tensorrt.runtime import TensorRtRuntime
from pipeline.machine import tensorrt_flavours
from pipeline.machine.tensorrt_flavours import FlavourName
from tests.bench.models import Model
from tests.bench.timing import interleaved, median, table

_WARM_UP = 20
_ROUNDS = 200
_INPUT, _OUTPUT = "image", "logits"

Run = Callable[[Array], Array]


def measure(model: Model, engine: Path, flavour: FlavourName) -> str:
    """Median milliseconds at batch 1 of each way to run the model, and its ratio to the bare TensorRT runtime."""
    array = np.ascontiguousarray(model.calibration.samples[0].inputs[_INPUT])
    runtime = TensorRtRuntime(engine, model.signature, flavour)
    runs: dict[str, Run] = {"pipeline's TensorRT runtime": lambda image: runtime.run({_INPUT: image})[_OUTPUT]}
    missing = {}
    _warm_up(runs["pipeline's TensorRT runtime"], array)
    for name, opened in (
        ("bare TensorRT runtime", lambda: _bare(engine, flavour)),
        ("ONNX Runtime CUDA, fp32", lambda: _onnxruntime(model.path)),
        ("torch.compile, fp32", lambda: _torch(model.name)),
    ):
        try:
            run = opened()
            _warm_up(run, array)  # torch.compile compiles at the first call
        except (ImportError, RuntimeError, OSError, subprocess.SubprocessError) as error:
            missing[name] = (str(error) or type(error).__name__).splitlines()[0]
        else:
            runs[name] = run
    seconds = interleaved({name: lambda run=run: run(array) for name, run in runs.items()}, _ROUNDS)
    milliseconds = {name: 1000 * median(values) for name, values in seconds.items()}
    base = milliseconds.get("bare TensorRT runtime")
    rows = [(name, f"{value:.3f}", f"{value / base:.2f}" if base else "") for name, value in milliseconds.items()]
    rows += [(name, reason, "") for name, reason in missing.items()]
    return table((f"{model.name}, {flavour}", "batch 1 ms", "ratio"), rows)


def _warm_up(run: Run, array: Array) -> None:
    for _ in range(_WARM_UP):
        run(array)


def _bare(engine: Path, flavour: FlavourName) -> Run:
    """The library's own calls, with torch's CUDA tensors as buffers."""
    import torch

    _need_cuda(torch)
    module = next(name for name in tensorrt_flavours.flavour(flavour).modules if importlib.util.find_spec(name))
    trt: Any = importlib.import_module(module)
    opened = trt.Runtime(trt.Logger(trt.Logger.WARNING)).deserialize_cuda_engine(engine.read_bytes())
    if opened is None:
        raise RuntimeError("the engine cannot be loaded")
    context, stream = opened.create_execution_context(), torch.cuda.Stream()

    def run(image: Array) -> Array:
        with torch.cuda.stream(stream):
            given = torch.from_numpy(image).cuda(non_blocking=True)
            context.set_input_shape(_INPUT, tuple(given.shape))
            scores = torch.empty(tuple(context.get_tensor_shape(_OUTPUT)), device="cuda")
            context.set_tensor_address(_INPUT, given.data_ptr())
            context.set_tensor_address(_OUTPUT, scores.data_ptr())
            if not context.execute_async_v3(stream.cuda_stream):
                raise RuntimeError("the engine failed")
            result: Array = scores.cpu().numpy()
        return result

    return run


def _onnxruntime(path: Path) -> Run:
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise RuntimeError("not installed: onnxruntime-gpu")
    session = onnxruntime.InferenceSession(path, providers=["CUDAExecutionProvider"])
    if "CUDAExecutionProvider" not in session.get_providers():  # it falls back to the CPU without an error
        raise RuntimeError("onnxruntime-gpu cannot load its CUDA libraries")
    return lambda image: session.run([_OUTPUT], {_INPUT: image})[0]


def _torch(name: str) -> Run:
    """The same architecture; speed does not depend on the weights."""
    import torch

    _need_cuda(torch)
    compiled = torch.compile(torchvision_compat.load().models.get_model(name).eval().cuda())

    def run(image: Array) -> Array:
        with torch.inference_mode():
            result: Array = compiled(torch.from_numpy(image).cuda()).cpu().numpy()
        return result

    return run


def _need_cuda(torch: Any) -> None:
    if not torch.cuda.is_available():
        raise RuntimeError("not installed: a torch built for CUDA")
