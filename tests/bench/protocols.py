"""What a protocol costs and what a front end costs, as ratios of one run.

First Triton's protocols with a tiny and a large input on a model that does next to nothing, perf_analyzer being the
client. Then one TorchScript model behind the embedded Triton, TorchServe and a Flask + Redis polling queue, with one
client for all. Candidates take turns for three rounds, each warmed up; the best round of each figure counts.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from onnx import helper

from pipeline.capture.quiet import no_deprecation_warnings
from pipeline.servers.triton import embedded as triton
from tests.bench import frontends, http_load, perf_analyzer
from tests.bench.frontends import FrontEnd
from tests.bench.timing import ROOT, table
from tests.models import make_models

ROUNDS = 3
CONCURRENCY = 16
_TOLERANCE = 1e-4

INPUTS = {"tiny": (1, 28, 28), "large": (3, 512, 512)}
_SHARED = ("--shared-memory", "system")
_JSON = ("--input-tensor-format", "json", "--output-tensor-format", "json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """A protocol, and how many requests a round takes at concurrency 1 and 16, by input."""

    label: str
    protocol: str
    flags: tuple[str, ...]
    requests: dict[str, tuple[int, int]]


_MANY = {"tiny": (1000, 4000), "large": (150, 480)}
PROTOCOLS = (
    Protocol(label="HTTP, binary", protocol="http", flags=(), requests=_MANY),
    Protocol(label="HTTP, JSON", protocol="http", flags=_JSON, requests={"tiny": (500, 1600), "large": (4, 16)}),
    Protocol(label="gRPC", protocol="grpc", flags=(), requests=_MANY),
    Protocol(label="gRPC, system shared memory", protocol="grpc", flags=_SHARED, requests=_MANY),
)

Figures = tuple[float, float]
"""p50 in ms at concurrency 1, requests per second at concurrency 16."""


def measure(folder: Path) -> str:
    """Two tables: protocols by size of the input, and front ends."""
    return "\n\n".join((_protocols(folder), _front_ends(folder)))


def _protocols(folder: Path) -> str:
    repository = folder / "means"
    for name, shape in INPUTS.items():
        _add_mean(repository, name, shape)
    rounds: dict[tuple[str, str], list[Figures]] = {}
    with triton.embedded(repository, list(INPUTS), log_path=folder / "means.log", start_timeout_s=120) as running:
        urls = {"http": running.server.http_url.removeprefix("http://"), "grpc": running.server.grpc_url}
        for number in range(ROUNDS + 1):
            for name in INPUTS:
                for item in PROTOCOLS:
                    figures = _perf_analyzer(item, name, urls[item.protocol], folder, warm_up=number == 0)
                    if number:
                        rounds.setdefault((name, item.label), []).append(figures)
    rows = []
    for name, shape in INPUTS.items():
        size = 4 * int(np.prod(shape)) / 1024
        base = _best(rounds[name, PROTOCOLS[0].label])
        label = f"{name}, {'x'.join(map(str, shape))} ({size:.0f} KiB)"
        rows += [(label, item.label, *_cells(_best(rounds[name, item.label]), base)) for item in PROTOCOLS]
    return table(("input", "protocol", *_COLUMNS), rows)


_COLUMNS = ("p50 ms, alone", "ratio", "requests/s, 16 at once", "ratio")


def _add_mean(repository: Path, name: str, shape: tuple[int, ...]) -> None:
    """Mean over height and width: the least that a model can do with an image."""
    config = make_models.config_text(
        "onnxruntime_onnx",
        inputs=[make_models.tensor_text("image", "float32", shape)],
        outputs=[make_models.tensor_text("mean", "float32", [shape[0], 1, 1])],
        max_batch_size=32,
        extra='dynamic_batching { } parameters { key: "intra_op_thread_count" value { string_value: "1" } }',
    )
    node = helper.make_node("GlobalAveragePool", ["image"], ["mean"])
    model = make_models.onnx_model(
        [node], {"image": ("float32", ("N", *shape))}, {"mean": ("float32", ("N", shape[0], 1, 1))}
    )
    make_models.add_model(repository, name, config, model)


def _perf_analyzer(item: Protocol, model: str, url: str, folder: Path, *, warm_up: bool) -> Figures:
    alone, together = item.requests[model]
    if warm_up:
        alone, together = min(10, alone), min(2 * CONCURRENCY, together)

    def ask(concurrency: int, requests: int) -> perf_analyzer.Figures:
        return perf_analyzer.measure(
            model, url, folder, concurrency=concurrency, requests=requests, protocol=item.protocol, flags=item.flags
        )

    return ask(1, alone)[1], ask(CONCURRENCY, together)[0]


def _front_ends(folder: Path) -> str:
    model, image, expected = _convnet(folder)
    rounds: dict[str, list[Figures]] = {}
    missing = []
    with contextlib.ExitStack() as stack:
        found: dict[str, FrontEnd] = {}
        for label, start in (
            ("embedded Triton", frontends.embedded_triton),
            ("TorchServe", frontends.torchserve),
            ("Flask + Redis", frontends.redis_queue),
        ):
            place = folder / label.split()[0].lower()
            place.mkdir()
            try:
                found |= stack.enter_context(start(model, image, place))
            except LookupError as error:
                missing.append((label, f"not installed: {error}", "", "", ""))
        for number in range(ROUNDS + 1):
            for label, end in found.items():
                figures = _asked(end, expected, warm_up=number == 0)
                if number:
                    rounds.setdefault(label, []).append(figures)
    base = _best(rounds["embedded Triton"])
    rows = [(label, *_cells(_best(figures), base)) for label, figures in rounds.items()]
    return table(("one TorchScript ConvNet behind", *_COLUMNS), [*rows, *missing])


def _asked(end: FrontEnd, expected: list[float], *, warm_up: bool) -> Figures:
    alone, together = (2, CONCURRENCY) if warm_up else end.requests
    first = http_load.run(end.target, concurrency=1, requests=alone)
    second = http_load.run(end.target, concurrency=CONCURRENCY, requests=together)
    for load in (first, second):
        np.testing.assert_allclose(end.scores(load.answer), expected, atol=_TOLERANCE)
    return first.p50_s * 1e3, second.rate


def _convnet(folder: Path) -> tuple[Path, bytes, list[float]]:
    """configs/mnist_convnet.py with random weights as TorchScript, one image, and its scores."""
    spec = importlib.util.spec_from_file_location("mnist_convnet", ROOT / "configs" / "mnist_convnet.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    make: Callable[[], torch.nn.Module] = module.ConvNet
    torch.manual_seed(0)
    net, path = make().eval(), folder / "convnet.pt"
    image = np.random.default_rng(0).standard_normal((1, *frontends.SHAPE)).astype(np.float32)
    with no_deprecation_warnings(), torch.inference_mode():
        torch.jit.save(torch.jit.trace(net, torch.from_numpy(image)), str(path))
        scores: list[float] = net(torch.from_numpy(image))[0].tolist()
    return path, image.tobytes(), scores


def _best(rounds: list[Figures]) -> Figures:
    return min(p50 for p50, _ in rounds), max(rate for _, rate in rounds)


def _cells(mine: Figures, base: Figures) -> tuple[str, ...]:
    return (f"{mine[0]:.2f}", f"{mine[0] / base[0]:.2f}", f"{mine[1]:.1f}", f"{mine[1] / base[1]:.3f}")
