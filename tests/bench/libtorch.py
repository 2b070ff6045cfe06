"""A C++ program with libtorch against Python on the same TorchScript module and the same images: docs/libtorch.md.

ResNet-18 with random weights, one 3x224x224 image at a time, a JPEG photograph of 427x640. Work on one thread is
compared by processor time, which a busy machine distorts least; several threads by the wall clock, in turn.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from pipeline.base.values import Signature, TensorSpec
from pipeline.data import torchvision_compat
from pipeline.images import preprocessing
from pipeline.images.postprocessing import Postprocessing
from pipeline.images.preprocessing import Preprocessing
from pipeline.machine import environment
from pipeline.servers.libtorch import program
from pipeline.servers.libtorch.proving import compile_folder, paths
from tests.bench.timing import ROOT, median, table

ROUNDS, RUNS, IMAGES = 5, 40, 40
HOW = Preprocessing(
    formats=("jpeg", "png", "webp"),
    color="rgb",
    resize=256,
    crop=(224, 224),
    interpolation="bilinear",
    scale=255.0,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    max_pixels=50_000_000,
    dtype="float32",
    layout="NCHW",
)
_PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE"}


class _Bench:
    """The program, the model and a photograph, below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.source = folder / "source"
        self.source.mkdir()
        self.model, self.photo = self.source / program.MODEL_FILE, folder / "photo.jpg"
        _resnet(self.model)
        Image.fromarray(load_sample_image("china.jpg")).save(self.photo, quality=90)
        spec = TensorSpec(name="x", dtype="float32", shape=("N", 3, 224, 224), layout="NCHW")
        scores = TensorSpec(name="y", dtype="float32", shape=("N", 1000))
        answers = Postprocessing(activation="softmax", labels=(), top_k=5, threshold=0.0)
        signature = Signature(inputs=(spec,), outputs=(scores,), batch="N", image=HOW)
        for name, content in program.sources("bench", signature, "y", answers, torch_version="2.13").items():
            (self.source / name).write_bytes(content)
        here = environment.probe(folder)
        build = compile_folder(self.source, folder / "build", paths(here.cpp), log_path=folder / "cmake.log")
        self.program = build / "bench"
        self.include = str(here.cpp.opencv)

    def compiled(self, main: Path, name: str, level: str, files: Sequence[str] = ()) -> Path:
        """One of the small drivers, with some of the program's files."""
        out = self.folder / name
        flags = ["-std=c++17", level, f"-I{self.source}", f"-I{self.include}"]
        libraries = ["-lopencv_imgcodecs", "-lopencv_imgproc", "-lopencv_core"]
        sources = [str(main), *(str(self.source / file) for file in files)]
        subprocess.run(["c++", *flags, *sources, "-o", str(out), *libraries], check=True)
        return out

    def start(self, threads: int, *, runs: int = RUNS, report: str = "a.json", **env: str) -> subprocess.Popen[bytes]:
        """The program, running in the background."""
        argv = [str(self.program), "--model", str(self.model), "--repeat", str(runs), "--threads", str(threads)]
        argv += ["--json", str(self.folder / report), str(self.photo)]
        return subprocess.Popen(argv, stdout=subprocess.DEVNULL, env={**os.environ, **env})

    def times(self, threads: int, *, runs: int = RUNS, report: str = "a.json", **env: str) -> dict[str, float]:
        """The program's own times in ms, and ``cpu``: processor time of the whole process, in s."""
        before = _children_s()
        if status := self.start(threads, runs=runs, report=report, **env).wait():
            sys.exit(f"bench: the program exited with {status}")
        return {**self.read(report), "cpu": _children_s() - before}

    def read(self, report: str) -> dict[str, float]:
        """A finished run's times."""
        found: dict[str, float] = json.loads((self.folder / report).read_text())["timings_ms"]
        return found

    def python(self, threads: int, mode: str = "inference", runs: int = RUNS) -> dict[str, float]:
        """The same in Python; see libtorch_python.py."""
        argv = [sys.executable, Path(__file__).with_name("libtorch_python.py"), self.model, threads, runs, mode]
        done = subprocess.run([str(word) for word in argv], capture_output=True, text=True, check=True)
        found: dict[str, float] = json.loads(done.stdout)
        return found


def _children_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _resnet(path: Path) -> None:
    torch.manual_seed(0)
    network = torchvision_compat.load().models.resnet18(weights=None).eval()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.", category=DeprecationWarning)
        torch.jit.trace(network, torch.zeros(1, 3, 224, 224)).save(str(path))


def measure(folder: Path) -> str:
    """The table of docs/libtorch.md."""
    bench = _Bench(folder)
    rows = [*_forward(bench), *_oversubscription(bench), *_images(bench), *_semantics(bench)]
    return "## libtorch\n\n" + table(("what", "against", "ratio"), rows)


def _forward(bench: _Bench) -> list[tuple[str, ...]]:
    found: dict[str, list[float]] = {}
    modes = ("inference", "grad", "freeze", "optimize", "stack")
    for _ in range(ROUNDS):
        few, many = bench.times(1, runs=5), bench.times(1, runs=5 + RUNS)
        both = bench.times(2), bench.python(2)
        rows: dict[str, Any] = {f"python {mode}": bench.python(1, mode) for mode in modes}
        values = {"c++": (many["cpu"] - few["cpu"]) * 1e3 / RUNS, "c++ first": many["forward_first"] / many["forward"]}
        values |= {name: row["cpu"] for name, row in rows.items()}
        values["python first"] = rows["python inference"]["first"] / rows["python inference"]["median"]
        values["2 threads"] = both[0]["forward"] / both[1]["median"]
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    middle = {name: median(values) for name, values in found.items()}
    python = middle["python inference"]
    return [
        ("forward in C++, 1 thread, processor time", "Python", _ratio(middle["c++"] / python)),
        ("forward in C++, 2 threads, wall clock", "Python", _ratio(middle["2 threads"])),
        ("the first forward in C++", "the median of later ones", _ratio(middle["c++ first"])),
        ("the first forward in Python", "the median of later ones", _ratio(middle["python first"])),
        ("gradients on, 1 thread", "inference mode", _ratio(middle["python grad"] / python)),
        ("torch.jit.freeze, 1 thread", "inference mode", _ratio(middle["python freeze"] / python)),
        ("torch.jit.optimize_for_inference, 1 thread", "inference mode", _ratio(middle["python optimize"] / python)),
        ("copying 32 images into one batch", "32 forwards", _ratio(middle["python stack"] / (32 * python), 4)),
    ]


def _oversubscription(bench: _Bench) -> list[tuple[str, ...]]:
    cores = len(os.sched_getaffinity(0))
    half = max(1, cores // 2)
    ways = {"shared": (half, {}), "spinning": (cores, {}), "passive": (cores, _PASSIVE)}
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, (threads, env) in ways.items():
            pair = [bench.start(threads, report=f"{number}.json", **env) for number in range(2)]
            for child in pair:
                child.wait()
            found[name].append(max(bench.read(f"{number}.json")["forward"] for number in range(2)))
    shared = median(found["shared"])
    named = (("spinning", ""), ("passive", ", OMP_WAIT_POLICY=PASSIVE"))
    return [
        (
            f"two programs at once, {cores} threads each{how}",
            f"{half} thread each",
            _ratio(median(found[name]) / shared),
        )
        for name, how in named
    ]


def _images(bench: _Bench) -> list[tuple[str, ...]]:
    """Decode and prepare, per image: the image code alone, so that its optimisation level can be another."""
    files = ("image_file.cpp", "image_header.cpp", "resample.cpp", "preprocessing.cpp")
    main = ROOT / "tests" / "integration" / "cpp" / "prepare.cpp"
    drivers = {level: bench.compiled(main, f"prepare{level}", level, files) for level in ("-O3", "-O0")}
    data = bench.photo.read_bytes()
    found: dict[str, list[float]] = {"-O3": [], "-O0": [], "python": []}
    for _ in range(ROUNDS):
        for level, driver in drivers.items():
            once, often = (_prepared_s(bench, driver, count) for count in (1, 1 + IMAGES))
            found[level].append((often - once) / IMAGES)
        began = time.process_time()
        for _ in range(IMAGES):
            preprocessing.tensor(data, HOW)
        found["python"].append((time.process_time() - began) / IMAGES)
    optimised, plain, python = (median(found[name]) for name in ("-O3", "-O0", "python"))
    return [
        ("image to input in C++, -O3", "Pillow and numpy", _ratio(optimised / python)),
        ("image to input in C++, -O0", "the same with -O3", _ratio(plain / optimised)),
    ]


def _prepared_s(bench: _Bench, driver: Path, count: int) -> float:
    before = _children_s()
    lines = f"{bench.photo} {bench.folder / 'out.raw'} 0 0 -\n" * count
    subprocess.run([driver], input=lines.encode(), check=True)
    return _children_s() - before


def _semantics(bench: _Bench) -> list[tuple[str, ...]]:
    """How far cv::resize is from Pillow's pixels, in levels of 255."""
    resize = bench.compiled(Path(__file__).parent / "cpp" / "resize.cpp", "resize", "-O2")
    with Image.open(bench.photo) as opened:
        wanted = np.asarray(opened.convert("RGB").resize((224, 224), Image.Resampling.BILINEAR), np.int16)
    subprocess.run([resize, bench.photo, bench.folder / "cv.raw", "224", "224"], check=True)
    far = np.abs(np.fromfile(bench.folder / "cv.raw", np.uint8).reshape(224, 224, 3).astype(np.int16) - wanted)
    text = f"mean {far.mean():.1f}, greatest {far.max()} of 255 levels"
    return [("pixels of cv::resize, 427x640 to 224x224", "Pillow's", text)]


def _ratio(value: float, digits: int = 2) -> str:
    return f"{value:.{digits}f}"
