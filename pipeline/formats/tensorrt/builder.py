"""The child that builds one engine: ``python -m pipeline.formats.tensorrt.builder JOB.json``.

One process per build, because a failed build changes the next one in its process (measured with TensorRT-RTX 1.7.1).
It writes the engine and a JSON file of what it found, or why there is none; what the library says goes to standard
output, with lines that start with ``@progress`` in between.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline.formats.tensorrt import engine_session, interface, spec
from pipeline.formats.tensorrt.failures import FailureError
from pipeline.machine import tensorrt_flavours

PROGRESS = "@progress"
_HOOKS = {"tensorrt": "pipeline.formats.tensorrt.classic", "tensorrt_rtx": "pipeline.formats.tensorrt.rtx"}


def main(arguments: list[str]) -> int:
    """Do the job of a file; the exit status is 0 also when there is no engine, and the result says why."""
    job = json.loads(Path(arguments[0]).read_text())
    try:
        result = _build(job)
    except FailureError as failure:
        result = {"failure": failure.values}
    except MemoryError:
        result = {"failure": FailureError("build", "out of memory").values}
    except OSError as error:
        result = {"failure": FailureError("disk", str(error), errno=error.errno).values}
    Path(job["result"]).write_text(json.dumps(result))
    return 0


def _build(job: Mapping[str, Any]) -> dict[str, Any]:
    wanted, plan = spec.from_json(job["spec"]), Path(job["plan"])
    timing_cache = None if job["timing_cache"] is None else Path(job["timing_cache"])
    # All flavours have one interface. The modules imported next are written, and type-checked, against `tensorrt`.
    sys.modules["tensorrt"] = library = _library(wanted.flavour)
    common = importlib.import_module("pipeline.formats.tensorrt.common")
    hooks = importlib.import_module(_HOOKS[wanted.flavour])
    log = common.Log()
    device = hooks.prepare(wanted)
    builder = common.make_builder(log)
    network = common.parse(builder, log, Path(job["onnx"]))
    inputs, outputs = common.ports(network)
    if wrong := interface.problems(inputs, outputs, wanted):
        raise FailureError("interface", *wrong)
    config = common.configure(builder, wanted, _tell)
    capabilities = hooks.configure(config, wanted, timing_cache, device)
    common.build(builder, network, config, log, plan)
    hooks.finish(config, log, plan, timing_cache, device)
    return {
        "version": library.__version__,
        "compute_capabilities": capabilities,
        "inputs": [asdict(port) for port in inputs],
        "outputs": [asdict(port) for port in outputs],
        "products": common.products(network),
        "quantized": common.quantized(network),
        "table": log.table,
    }


def _library(name: tensorrt_flavours.FlavourName) -> ModuleType:
    try:
        return engine_session.library(tensorrt_flavours.flavour(name).modules)
    except engine_session.UnavailableError as error:
        raise FailureError("missing", str(error)) from error


def _tell(phase: str, share: float) -> None:
    print(f"{PROGRESS} {share:.3f} {phase}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
