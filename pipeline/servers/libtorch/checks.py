"""A compiled C++ program, run on the golden samples' image files and held against their inputs and outputs."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.base import command
from pipeline.base.errors import SmokeError, StageError
from pipeline.base.values import Array, GoldenSamples, Sample, Signature, SmokeCheck, Tolerance
from pipeline.images import postprocessing
from pipeline.images.postprocessing import Postprocessing
from pipeline.proof.comparison import compare
from pipeline.proof.ledger import Ledger, held

LOSSY_LEVELS = 2
"""How far, of 255, pixels of a JPEG or lossy WebP may be from Pillow's: decoders of other versions may round otherwise.

Measured with OpenCV 4.6.0 (libjpeg-turbo 2.1.5) against Pillow 12.3.0 and 13.0.0 (libjpeg-turbo 3.1 and 3.2): equal.
"""

_SUFFIXES = {b"\x89PNG": ".png", b"RIFF": ".webp"}
_DAMAGED = "damaged"
_SOME_REFUSED = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A compiled program and what it must answer.

    Attributes:
        executable: the program.
        model: the TorchScript file it loads.
        signature: of the model; ``image`` says how files become its input.
        output: the output that holds the scores.
        answers: how they become labels.
        tolerance: how close scores must be.
        log_path: what it prints is added to it.
        timeout_s: for one run over all images.
    """

    executable: Path
    model: Path
    signature: Signature
    output: str
    answers: Postprocessing
    tolerance: Tolerance
    log_path: Path
    timeout_s: float = 600.0


def check(program: Program, golden: GoldenSamples, batch_sizes: Sequence[int], folder: Path) -> tuple[SmokeCheck, ...]:
    """Run it on every golden image, and one damaged file, at each batch size.

    Args:
        program: what to run.
        golden: samples with image files.
        batch_sizes: images per run of the model.
        folder: for images and answers; made here.

    Raises:
        SmokeError: it did not end as it should: no answers to judge.
        StageError: it took too long.
    """
    images = folder / "images"
    images.mkdir(parents=True)
    for number, sample in enumerate(golden.samples):
        (images / f"{number:06}{_suffix(sample.image)}").write_bytes(sample.image)
    first = golden.samples[0].image
    (images / f"{_DAMAGED}{_suffix(first)}").write_bytes(first[: len(first) // 2])
    ledger = Ledger()
    for size in batch_sizes:
        answer = _run(program, images, folder, size)
        exact, inputs = _inputs(program, golden.samples, folder / "inputs.bin")
        scores = _scores(program, golden.samples, answer, exact)
        verdicts = {"inputs": inputs, "scores": scores, "labels": _labels(program, answer)}
        for what, verdict in {**verdicts, "a damaged file": _refusal(answer)}.items():
            ledger.check(f"{what}, batch {size}", "-", partial(held, *verdict))
    return tuple(ledger.checks)


def _suffix(image: bytes) -> str:
    return _SUFFIXES.get(image[:4], ".jpg")


def _run(program: Program, images: Path, folder: Path, batch: int) -> dict[str, Any]:
    report = folder / "answers.json"
    argv = [str(program.executable), "--model", str(program.model), "--batch", str(batch), "--json", str(report)]
    child = command.start([*argv, "--dump", str(folder / "inputs.bin"), str(images)], log_path=program.log_path)
    try:
        status = child.wait(program.timeout_s)
    except subprocess.TimeoutExpired as error:
        raise StageError(
            f"{program.executable.name}: not done after {program.timeout_s:.0f} s", log=str(program.log_path)
        ) from error
    finally:
        command.stop(child, grace_s=1.0)
    if status != _SOME_REFUSED:
        raise SmokeError(
            f"{program.executable.name}: exit status {status}",
            found="1 is that of a run which refused some files, and one file is damaged",
            log=str(program.log_path),
        )
    answer: dict[str, Any] = json.loads(report.read_text(encoding="utf-8", errors="replace"))
    return answer


def _inputs(program: Program, samples: Sequence[Sample], dump: Path) -> tuple[list[bool], tuple[bool, str]]:
    """Which samples' inputs are bit for bit the golden ones, and the verdict on all."""
    (spec,) = program.signature.inputs
    how = program.signature.image
    assert how is not None
    expected = [sample.inputs[spec.name].reshape(-1) for sample in samples]
    values = np.fromfile(dump, dtype=spec.dtype)
    if values.size != sum(row.size for row in expected):
        return [], (False, f"{values.size} values, expected {sum(row.size for row in expected)}")
    rows = np.split(values, np.cumsum([row.size for row in expected])[:-1])
    exact = [row.tobytes() == wanted.tobytes() for row, wanted in zip(rows, expected, strict=True)]
    level = 1.0 if spec.dtype == "uint8" else 1.0 / how.scale / min(how.std)
    off = [_furthest(row, wanted) / level for row, wanted in zip(rows, expected, strict=True)]
    limits = [0 if sample.image.startswith(b"\x89PNG") else LOSSY_LEVELS for sample in samples]
    if wrong := [number for number, (far, limit) in enumerate(zip(off, limits, strict=True)) if far > limit + 1e-3]:
        number = wrong[0]
        return exact, (
            False,
            f"{len(wrong)} of {len(samples)} images; image {number} is {off[number]:.1f} of 255 levels "
            f"off, {limits[number]} are allowed",
        )
    least = "" if all(exact) else f", the others within {max(off):.2f} of 255 levels"
    return exact, (True, f"{sum(exact)} of {len(samples)} images bit for bit{least}")


def _furthest(row: Array, wanted: Array) -> float:
    return float(np.abs(row.astype(np.float64) - wanted.astype(np.float64)).max(initial=0.0))


def _scores(
    program: Program, samples: Sequence[Sample], answer: dict[str, Any], exact: Sequence[bool]
) -> tuple[bool, str]:
    """Scores of images whose input is exactly the golden one, within the tolerance; of the others, the best label."""
    rows = [image["scores"] for image in answer["images"]]
    if len(rows) != len(samples):
        return False, f"{len(rows)} answers, expected {len(samples)}"
    wanted = [sample.outputs[program.output].reshape(-1) for sample in samples]
    if {len(row) for row in rows} != {len(row) for row in wanted}:
        return False, f"{len(rows[0])} scores per image, expected {len(wanted[0])}"
    got = np.asarray(rows, dtype=wanted[0].dtype)  # null, a score that is no finite number, becomes NaN
    reference = np.stack(wanted)
    best = float(np.mean(got.argmax(axis=1) == reference.argmax(axis=1)))
    judged = np.asarray(exact, dtype=bool) if exact else np.ones(len(rows), dtype=bool)
    detail = f"best label agrees for {best:.2%} of {len(rows)} images"
    if best < program.tolerance.min_top1:
        return False, f"{detail}, under {program.tolerance.min_top1:.2%}"
    if not judged.any():
        return True, detail
    tolerance = replace(program.tolerance, min_top1=0.0)
    verdict = compare({program.output: got[judged]}, {program.output: reference[judged]}, tolerance)
    return verdict.passed, verdict.reason or f"max abs {verdict.max_abs:.1e}, {detail}"


def _labels(program: Program, answer: dict[str, Any]) -> tuple[bool, str]:
    """Labels and probabilities are those that the scores mean."""
    for image in answer["images"]:
        try:
            wanted = postprocessing.ranked(np.asarray(image["scores"], dtype=np.float64), program.answers)
        except postprocessing.UnusableScores as error:
            return False, f"{Path(image['file']).name}: {error}"
        same = [row["label"] for row in wanted] == [row["label"] for row in image["labels"]] and all(
            abs(one["probability"] - two["probability"]) <= 2e-6
            for one, two in zip(wanted, image["labels"], strict=True)
        )
        if not same:
            return False, f"{Path(image['file']).name}: {image['labels']}, expected {wanted}"
    return True, f"{len(answer['images'])} images"


def _refusal(answer: dict[str, Any]) -> tuple[bool, str]:
    names = [Path(row["file"]).stem for row in answer["refused"]]
    reasons = "; ".join(row["reason"] for row in answer["refused"])
    return names == [_DAMAGED], reasons or "it was not refused"
