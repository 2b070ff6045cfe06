"""A shop of small models on one real tritonserver, and what is expected of them."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from onnx import helper

from pipeline.base import model_config
from pipeline.base.values import GoldenSamples, RunningServer, Sample, Signature, SmokeResult, TensorSpec, Tolerance
from pipeline.data import images
from pipeline.servers.triton import embedded as triton
from pipeline.servers.triton.proof import checks
from pipeline.servers.triton.proof.expectation import Expectation
from tests.models import make_models

TOLERANCE = Tolerance(max_abs=1e-4, max_rel=1e-3, min_cosine=0.9999, min_top1=0.99)
LABELS = ("ant", "bee: the small one", "cat")
MAX_BATCH = 8
WEIGHTS = np.array([[1.0, -2.0, 0.5], [0.25, 1.0, -1.0], [2.0, 0.0, 1.0], [-1.0, 0.5, 3.0]], np.float32)


def linear_onnx(weights: np.ndarray):
    """logits [N, 3] = x [N, 4] @ weights."""
    return make_models.onnx_model(
        [helper.make_node("MatMul", ["x", "w"], ["logits"])],
        {"x": ("float32", ("N", 4))},
        {"logits": ("float32", ("N", 3))},
        {"w": weights},
    )


def colour_settings() -> str:
    spec = TensorSpec(name="image", dtype="float32", shape=("N", 3, 2, 4))
    return images.plain(spec, "NCHW", 3, (2, 4), mean=(0.5, 0.0, 0.0), std=(0.25, 1.0, 1.0)).to_json()


def mean_colour_onnx():
    """scores [N, 3] = mean over height and width of image [N, 3, H, W]."""
    return make_models.onnx_model(
        [helper.make_node("ReduceMean", ["image", "axes"], ["scores"], keepdims=0)],
        {"image": ("float32", ("N", 3, "H", "W"))},
        {"scores": ("float32", ("N", 3))},
        {"axes": np.array([2, 3], np.int64)},
    )


def add_linear(
    repository: Path, name: str, *, weights=WEIGHTS, labels=LABELS, version: int = 1, extra: str = ""
) -> str:
    config = make_models.config_text(
        "onnxruntime_onnx",
        inputs=[make_models.tensor_text("x", "float32", [4])],
        outputs=[make_models.tensor_text("logits", "float32", [3], 'label_filename: "labels.txt"')],
        max_batch_size=MAX_BATCH,
        extra=extra or "dynamic_batching { max_queue_delay_microseconds: 100 }",
    )
    make_models.add_model(repository, name, config, linear_onnx(weights), version=version)
    (repository / name / "labels.txt").write_text("".join(f"{label}\n" for label in labels))
    return config


def add_text() -> str:
    """The linear model's configuration, without a repository."""
    with tempfile.TemporaryDirectory() as folder:
        return add_linear(Path(folder), "good")


def golden_of(samples: list[Sample], *, batched: bool = True) -> GoldenSamples:
    return GoldenSamples(samples=tuple(samples), batched=batched, sha256="0" * 64)


def linear_golden(weights: np.ndarray = WEIGHTS, count: int = 21) -> GoldenSamples:
    rows = np.random.default_rng(0).normal(size=(count, 1, 4)).astype(np.float32)
    return golden_of([Sample(inputs={"x": row}, outputs={"logits": row @ weights}) for row in rows])


LINEAR = Signature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=("N", 4)),),
    outputs=(TensorSpec(name="logits", dtype="float32", shape=("N", 3), labels=LABELS),),
    batch="N",
)


def expectation(
    model: str,
    config: str,
    *,
    signature: Signature = LINEAR,
    versions: Mapping[int, GoldenSamples | None] | None = None,
) -> Expectation:
    message = model_config.parse_text(config, "test")
    return Expectation(
        model=model,
        signature=signature,
        max_batch_size=message.max_batch_size,
        versions={1: linear_golden()} if versions is None else versions,
        tolerance=TOLERANCE,
        config=message,
        alive=lambda: None,
    )


def run(server: RunningServer, expected: Expectation, *, progress=lambda text, share: None, timeout_s: float = 20.0):
    return checks.run(server.http_url, server.grpc_url, expected, request_timeout_s=timeout_s, progress=progress)


def failures(result: SmokeResult) -> dict[tuple[str, str], str]:
    return {(check.name, check.protocol): check.detail for check in result.checks if check.outcome == "failed"}


class Shop:
    """One server with many models; ``configs`` holds each one's config.pbtxt."""

    def __init__(self, repository: Path) -> None:
        self.repository = repository
        self.configs: dict[str, str] = {}
        self.server: RunningServer

    def add(self, name: str, **options) -> None:
        self.configs[name] = add_linear(self.repository, name, **options)


@contextlib.contextmanager
def open_shop(folder: Path) -> Iterator[Shop]:
    shop = Shop(folder / "repository")
    shop.add("good")
    shop.add("swapped", labels=(LABELS[0], LABELS[2], LABELS[1]))
    shop.add("two", extra="dynamic_batching { } version_policy { all { } }")
    make_models.add_model(shop.repository, "two", shop.configs["two"], linear_onnx(2 * WEIGHTS), version=2)
    tensor = make_models.tensor_text
    shop.configs["pair"] = make_models.config_text(
        "onnxruntime_onnx",
        inputs=[tensor("ids", "int64", [-1]), tensor("mask", "int64", [-1])],
        outputs=[tensor("total", "int64", [1]), tensor("share", "float32", [1])],
        max_batch_size=MAX_BATCH,
        extra="dynamic_batching { }",
    )
    make_models.add_model(shop.repository, "pair", shop.configs["pair"], make_models.masked_sum_onnx())
    shop.configs["rows"] = make_models.config_text(
        "onnxruntime_onnx",
        inputs=[tensor("x", "float32", [-1, 4])],
        outputs=[tensor("total", "float32", [-1])],
        max_batch_size=0,
    )
    make_models.add_model(shop.repository, "rows", shop.configs["rows"], make_models.row_sum_onnx())
    shop.configs["colour"] = make_models.config_text(
        "onnxruntime_onnx",
        inputs=[tensor("image", "float32", [3, 2, 4], "format: FORMAT_NCHW")],
        outputs=[tensor("scores", "float32", [3])],
        extra=f'parameters {{ key: "preprocess" value {{ string_value: {json.dumps(colour_settings())} }} }}',
    )
    make_models.add_model(shop.repository, "colour", shop.configs["colour"], mean_colour_onnx())
    shop.configs["plain"] = make_models.config_text(
        "onnxruntime_onnx",
        inputs=[tensor("x", "float32", [-1, 4])],
        outputs=[tensor("logits", "float32", [-1, 3], 'label_filename: "labels.txt"')],
        max_batch_size=0,
    )
    make_models.add_model(shop.repository, "plain", shop.configs["plain"], linear_onnx(WEIGHTS))
    (shop.repository / "plain" / "labels.txt").write_text("".join(f"{label}\n" for label in LABELS))
    names = sorted(shop.configs)
    with triton.embedded(shop.repository, names, log_path=folder / "server.log", start_timeout_s=90) as served:
        shop.server = served.server
        yield shop
