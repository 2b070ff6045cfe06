"""Served by the embedded Triton against in-process ONNX Runtime with the same threads; perf_analyzer is the client.

ResNet-50 at saturating concurrency: throughput ratio (goal >= 0.95). A tiny model at concurrency 1: what serving adds
to the median latency (goal <= 0.5 ms). In-process and served runs alternate, and the best of three rounds counts.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from pipeline.base import model_config
from pipeline.base.values import Sample, Signature, TensorSpec
from pipeline.data import torchvision_compat
from pipeline.servers.triton import config_pbtxt
from pipeline.servers.triton import embedded as triton
from tests.bench import perf_analyzer
from tests.bench.perf_analyzer import Figures
from tests.bench.timing import table

ROUNDS = 3


@dataclass(frozen=True)
class Candidate:
    """A model to be measured both ways.

    Attributes:
        threads: ONNX Runtime's intra-op threads, the same in both.
        requests: of batch 1, per round.
        concurrency: of perf_analyzer.
    """

    name: str
    path: Path
    signature: Signature
    threads: int
    requests: int
    concurrency: int


def measure(folder: Path) -> str:
    """Serve both models in one server; print throughput, p50 and p99 of both ways."""
    candidates = [_resnet50(folder), _tiny()]
    repository = folder / "repository"
    for candidate in candidates:
        _emit(repository, candidate)
    rows = []
    names = [candidate.name for candidate in candidates]
    with triton.embedded(repository, names, log_path=folder / "server.log", start_timeout_s=120) as running:
        for candidate in candidates:
            local = [_in_process(candidate) for _ in range(1)]
            served = []
            for _ in range(ROUNDS):
                local.append(_in_process(candidate))
                served.append(
                    perf_analyzer.measure(
                        candidate.name, running.server.grpc_url, folder,
                        concurrency=candidate.concurrency, requests=candidate.requests,
                    )
                )  # fmt: skip
            rows += _rows(candidate, local[1:], served)
    return table(("model", "way", "inferences/s", "p50 ms", "p99 ms", "throughput ratio", "p50 added ms"), rows)


def _rows(candidate: Candidate, local: list[Figures], served: list[Figures]) -> list[tuple[str, ...]]:
    mine, theirs = max(served), max(local)
    p50_mine, p50_theirs = min(row[1] for row in served), min(row[1] for row in local)
    label = f"{candidate.name}, {candidate.threads} threads, concurrency {candidate.concurrency}"
    return [
        (label, "in process", *_cells(theirs), "1", ""),
        (label, "served, gRPC", *_cells(mine), f"{mine[0] / theirs[0]:.2f}", f"{p50_mine - p50_theirs:.2f}"),
    ]


def _cells(figures: Figures) -> tuple[str, str, str]:
    return (f"{figures[0]:.1f}", f"{figures[1]:.2f}", f"{figures[2]:.2f}")


def _in_process(candidate: Candidate) -> Figures:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = candidate.threads
    session = onnxruntime.InferenceSession(str(candidate.path), options, providers=["CPUExecutionProvider"])
    inputs = {spec.name: _zeros(spec) for spec in candidate.signature.inputs}
    for _ in range(5):
        session.run(None, inputs)
    times = []
    for _ in range(candidate.requests):
        began = time.perf_counter()
        session.run(None, inputs)
        times.append(time.perf_counter() - began)
    return (len(times) / sum(times), *(float(np.percentile(times, share)) * 1e3 for share in (50, 99)))  # type: ignore[return-value]


def _zeros(spec: TensorSpec) -> np.ndarray:
    return np.zeros([size if isinstance(size, int) else 1 for size in spec.shape], spec.dtype)


def _emit(repository: Path, candidate: Candidate) -> None:
    """A repository as ``build`` writes it, with the thread count set."""
    sample = Sample(inputs={spec.name: _zeros(spec) for spec in candidate.signature.inputs}, outputs={})
    described = config_pbtxt.describe(
        model_name=candidate.name,
        kind="onnx",
        signature=candidate.signature,
        max_batch_size=8,
        fields={"parameters": {"intra_op_thread_count": {"string_value": str(candidate.threads)}}},
        warmup=sample,
    )
    assert model_config.to_text(described.config)
    for relative, data in described.files.items():
        target = repository / candidate.name / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    version = repository / candidate.name / "1"
    version.mkdir()
    (version / "model.onnx").write_bytes(candidate.path.read_bytes())


def _resnet50(folder: Path) -> Candidate:
    import torch

    torchvision = torchvision_compat.load()
    path = folder / "resnet50.onnx"
    torch.manual_seed(0)
    model = torchvision.models.resnet50().eval()
    batch = torch.export.Dim("N")
    torch.onnx.export(
        model, (torch.zeros(2, 3, 224, 224),), path, dynamo=True, dynamic_shapes=({0: batch},), input_names=["image"],
        output_names=["logits"], opset_version=20, external_data=False, verbose=False,
    )  # fmt: skip
    signature = Signature(
        inputs=(TensorSpec(name="image", dtype="float32", shape=("N", 3, 224, 224)),),
        outputs=(TensorSpec(name="logits", dtype="float32", shape=("N", 1000)),),
        batch="N",
    )
    return Candidate("resnet50", path, signature, threads=2, requests=100, concurrency=4)


def _tiny() -> Candidate:
    signature = Signature(
        inputs=(TensorSpec(name="image", dtype="float32", shape=("N", 1, 8, 8)),),
        outputs=(TensorSpec(name="logits", dtype="float32", shape=("N", 10)),),
        batch="N",
    )
    path = Path(__file__).parents[2] / "configs" / "models" / "digits.onnx"
    return Candidate("tiny", path, signature, threads=1, requests=3000, concurrency=1)
