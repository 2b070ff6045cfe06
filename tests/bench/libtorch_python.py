"""What a C++ program does, in Python: times of a TorchScript module's runs. Arguments: model, threads, runs, mode.

Prints JSON: `first` and `median` in ms of wall clock, `cpu` in ms of processor time per run after the first four.
Modes: inference, grad, freeze, optimize; `stack` times joining 32 images instead of running the model.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable

import torch

WARM_UPS = 4  # the program's first run and its warm-up


def main(path: str, threads: int, runs: int, mode: str) -> None:
    """Run it and print."""
    torch.set_num_threads(threads)
    warnings.filterwarnings("ignore", message=r"`torch\.jit\.", category=DeprecationWarning)
    module = torch.jit.load(path).eval()
    if mode in ("freeze", "optimize"):
        module = torch.jit.freeze(module)
    if mode == "optimize":
        module = torch.jit.optimize_for_inference(module)
    batch = torch.zeros(1, 3, 224, 224)
    images = [torch.rand(3, 224, 224) for _ in range(32)]

    def once() -> object:
        return torch.stack(images) if mode == "stack" else module(batch)

    with torch.inference_mode(mode != "grad"):
        wall_ms = [_timed(once) for _ in range(WARM_UPS)]
        began = time.process_time()
        wall_ms += [_timed(once) for _ in range(runs)]
        cpu_ms = (time.process_time() - began) * 1e3 / runs
    print(json.dumps({"first": wall_ms[0], "median": statistics.median(wall_ms[WARM_UPS:]), "cpu": cpu_ms}))


def _timed(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return (time.perf_counter() - began) * 1e3


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
