"""The image code of a C++ program against Pillow: compiled without its model, which takes a few seconds only."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.base.values import Signature, TensorSpec
from pipeline.images import preprocessing
from pipeline.images.postprocessing import Postprocessing
from pipeline.images.preprocessing import Preprocessing
from pipeline.machine import environment
from pipeline.servers.libtorch import program
from pipeline.servers.libtorch.checks import LOSSY_LEVELS
from tests.integration import picture_files

HOW = Preprocessing(
    formats=("jpeg", "png", "webp"),
    color="rgb",
    resize=40,
    crop=(37, 45),  # wider than square images become: a border is added
    interpolation="bicubic",
    scale=255.0,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    max_pixels=1_000_000,
    dtype="float32",
    layout="NHWC",
)
SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=("N", 37, 45, 3), layout="NHWC"),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=("N", 2)),),
    batch="N",
    image=HOW,
)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow's own, of what is wrong with EXIF
Job = tuple[Path, int, int, str]


@pytest.fixture(scope="module")
def prepare(tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[Job]], tuple[list[bytes], dict[str, str]]]:
    """Compiles the image code once; gives a function from jobs to their results and to refusals by file name."""
    folder = tmp_path_factory.mktemp("prepare")
    answers = Postprocessing(activation="softmax", labels=("a", "b"), top_k=2, threshold=0.0)
    for name, content in program.sources("x", SIGNATURE, "y", answers, torch_version="2.13").items():
        (folder / name).write_bytes(content)
    sources = [f"{name}.cpp" for name in ("image_file", "image_header", "resample", "preprocessing")]
    here = environment.probe(folder).cpp
    flags = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-I.", "-isystem", str(here.opencv)]
    main = Path(__file__).parent / "cpp" / "prepare.cpp"
    argv = [str(here.compiler), *flags, *sources, str(main), "-o", "prepare", "-lopencv_imgcodecs", "-lopencv_core"]
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

    def run(jobs: list[Job]) -> tuple[list[bytes], dict[str, str]]:
        outs = [folder / f"{number}.raw" for number in range(len(jobs))]
        lines = [
            f"{file} {out} {height} {width} {how}\n" for (file, height, width, how), out in zip(jobs, outs, strict=True)
        ]
        done = subprocess.run([folder / "prepare"], input="".join(lines), capture_output=True, text=True, check=True)
        refusals = dict(line.split("\t") for line in done.stdout.splitlines())
        return [out.read_bytes() for out in outs], {Path(file).name: why for file, why in refusals.items()}

    return run


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_resizing_is_pillows_bit_for_bit(prepare, tmp_path: Path, interpolation: str) -> None:
    sources = [(1, 1), (31, 33), (64, 64), (100, 30), (30, 100), (33, 31), (257, 129), (7, 300), (410, 4)]
    targets = [(32, 32), (1, 1), (64, 20), (224, 224), (33, 31)]
    jobs, expected = [], []
    for number, (height, width) in enumerate(sources):
        file = tmp_path / f"{height}x{width}.png"
        picture = Image.fromarray(picture_files.pixels(height, width, seed=number))
        picture.save(file)
        for size in targets:
            jobs.append((file, *size, interpolation))
            resized = picture.resize(size[::-1], Image.Resampling[interpolation.upper()])
            expected.append(resized.tobytes())
    found, refusals = prepare(jobs)
    assert not refusals
    wrong = [job for job, one, other in zip(jobs, found, expected, strict=True) if one != other]
    assert wrong == []


def test_lossless_files_give_the_same_input_bit_for_bit(prepare, tmp_path: Path) -> None:
    picture_files.lossless(tmp_path)
    files = sorted(tmp_path.iterdir())
    assert len(files) > 35
    found, refusals = prepare([(file, 0, 0, "-") for file in files])
    assert not refusals
    for file, values in zip(files, found, strict=True):
        assert values == preprocessing.tensor(file.read_bytes(), HOW).tobytes(), file.name


def test_lossy_files_give_the_same_input_within_what_decoders_may_differ(prepare, tmp_path: Path) -> None:
    """Measured with OpenCV 4.6.0 and Pillow 12.3.0 and 13.0.0: equal; the limit is for other pairs of decoders."""
    picture_files.lossy(tmp_path)
    files = sorted(tmp_path.iterdir())
    found, refusals = prepare([(file, 0, 0, "-") for file in files])
    assert not refusals
    for file, values in zip(files, found, strict=True):
        expected = preprocessing.tensor(file.read_bytes(), HOW)
        far = np.abs(np.frombuffer(values, np.float32).reshape(expected.shape) - expected)
        assert (far * 255.0 * np.asarray(HOW.std)).max() <= LOSSY_LEVELS + 1e-3, file.name


def test_what_python_refuses_is_refused(prepare, tmp_path: Path) -> None:
    picture_files.refused(tmp_path)
    picture_files.too_large(tmp_path)
    files = sorted(tmp_path.iterdir())
    reasons = {}
    for file in files:
        with pytest.raises(preprocessing.RefusedImage) as caught:
            preprocessing.tensor(file.read_bytes(), HOW)
        reasons[file.name] = str(caught.value)
    found, refusals = prepare([(file, 0, 0, "-") for file in files])
    assert sorted(refusals) == [file.name for file in files]
    assert set(found) == {b""}
    assert refusals["empty.png"] == "no bytes; expected an image file"
    assert refusals["gif.png"].endswith("that are no image in jpeg, png, webp")
    assert refusals["bomb.png"] == "60000 x 60000 pixels; at most 1000000 are accepted"
    assert refusals["strip.png"] == "700 x 1 pixels would be resized to 28000 x 40; at most 1000000 are accepted"
    for name in ("wide.png", "strip.png", "upright_strip.png", "scans.jpg"):
        assert refusals[name] == reasons[name]
    assert refusals["cut.jpg"] == "truncated: the JPEG has no end marker"
