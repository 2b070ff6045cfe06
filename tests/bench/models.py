"""The models of precision.py and engines.py, as float32 ONNX files that the pipeline has finished."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.base.values import GoldenSamples, Sample, Signature, TensorSpec
from pipeline.build import loop as build
from pipeline.config import load
from pipeline.data import samples, torchvision_compat
from tests.bench.timing import ROOT, python


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model to be made less precise.

    Attributes:
        path: float32 ONNX; one input, one output of class scores.
        calibration: samples to measure ranges on; also what speed is measured with.
        held_out: samples with known classes, where the model has learnt any.
    """

    name: str
    path: Path
    signature: Signature
    calibration: GoldenSamples
    held_out: GoldenSamples | None


def digits(folder: Path) -> Model:
    """resnet.yaml's ResNet-18, trained on 32x32 digits by the pipeline, with its golden and calibration samples."""
    config, work_dir, keys = ROOT / "configs" / "resnet.yaml", folder / "work", ("onnx", "onnx_int8")
    options = build.Options(repository=folder / "repository", work_dir=work_dir, variants=keys, serve=False)
    python(
        "-m", "pipeline", "build", config, "--no-serve", "--repository", folder / "repository", "--work-dir", work_dir,
        *(part for key in keys for part in ("--variant", key)),
    )  # fmt: skip
    plan = build.make_plan(load.load(config), options)
    calibration = plan.variants[1].calibration
    assert calibration is not None
    entries = work_dir / "store" / "entries"
    return Model(
        name="resnet18 on digits",
        path=entries / plan.variants[0].export.key / "model.onnx",
        signature=plan.signature,
        calibration=samples.read(entries / calibration.key / samples.FILE_NAME),
        held_out=samples.read(entries / plan.samples.key / samples.FILE_NAME),
    )


def untrained(name: str, folder: Path, *, calibrate_on: int) -> Model:
    """torchvision's model at 224x224 with random weights, and noise to calibrate on; the same in every run."""
    import torch

    from pipeline.formats.onnx import graph

    torchvision = torchvision_compat.load()
    torch.manual_seed(0)
    raw, finished, batch = folder / f"{name}.raw.onnx", folder / name, torch.export.Dim("N")
    torch.onnx.export(
        torchvision.models.get_model(name).eval(), (torch.zeros(2, 3, 224, 224),), raw, dynamo=True,
        dynamic_shapes=({0: batch},), input_names=["image"], output_names=["logits"], opset_version=20,
        external_data=False, verbose=False,
    )  # fmt: skip
    finished.mkdir()
    graph.finish(raw, finished, simplify=True, max_ir_version=10)
    noise = np.random.default_rng(0).standard_normal((calibrate_on, 1, 3, 224, 224), np.float32)
    return Model(
        name=name,
        path=finished / graph.FILE,
        signature=Signature(
            inputs=(TensorSpec(name="image", dtype="float32", shape=("N", 3, 224, 224)),),
            outputs=(TensorSpec(name="logits", dtype="float32", shape=("N", 1000)),),
            batch="N",
        ),
        calibration=GoldenSamples(
            samples=tuple(Sample(inputs={"image": image}, outputs={}) for image in noise), batched=True, sha256=""
        ),
        held_out=None,
    )
