"""The C++ program of mnist_convnet.yaml, as the build compiled it: on other images, with other options, refused."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.base import files
from pipeline.capture.quiet import no_deprecation_warnings
from pipeline.config.load import load
from pipeline.data import images
from pipeline.images import postprocessing, preprocessing
from pipeline.plan import signature
from pipeline.repository.manifest import read_manifest
from pipeline.repository.versions import version_numbers
from pipeline.servers.libtorch.checks import LOSSY_LEVELS
from tests.integration import picture_files
from tests.integration.conftest import CONFIGS, Built

NAME = "mnist_convnet_cpp"
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow's own, of what is wrong with EXIF


@pytest.fixture(scope="module")
def build(built: Callable[[str], Built]) -> Built:
    return built("mnist_convnet")


@pytest.fixture(scope="module")
def executable(build: Built) -> Path:
    """The program that the build compiled and proved: there is one, and the tests compile no other."""
    (found,) = (build.work_dir / "store" / "entries").glob(f"*/{NAME}")
    return found


@pytest.fixture(scope="module")
def model(build: Built) -> Path:
    return root(build) / NAME / "1" / "model.pt"


def root(build: Built) -> Path:
    return build.repository.with_name("repository.libtorch")


def run(executable: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    argv = [str(executable), *map(str, arguments)]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with folders of sound images, and a hidden one of images that are refused."""
    folder = tmp_path_factory.mktemp("mixed")
    for name, make in (("a", picture_files.lossless), ("b", picture_files.lossy), ("c", picture_files.refused)):
        (folder / name).mkdir()
        make(folder / name)
    (folder / "notes.txt").write_text("no image by its name, so not looked at")
    return folder


@pytest.fixture(scope="module")
def answered(executable: Path, model: Path, mixed: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One run over all of them, in batches of 5: the process, its JSON and its inputs."""
    folder = tmp_path_factory.mktemp("answers")
    done = run(
        executable, "--model", model, "--batch", "5", "--json", folder / "a.json", "--dump", folder / "i.bin", mixed
    )
    return done, json.loads((folder / "a.json").read_text()), np.fromfile(folder / "i.bin", np.float32)


def test_the_build_compiled_it_and_proved_it_on_every_golden_image(build: Built) -> None:
    assert build.exit_code == 0, build.output
    row = build.variant(NAME)
    assert (row["format"], row["server"], row["version"]) == ("libtorch", "none", 1)
    assert Path(row["path"]) == root(build) / NAME / "1"
    checks = {check["name"]: check for check in row["smoke"]["checks"]}
    sizes = [f"batch {size}" for size in (1, 32)]
    kinds = ("inputs", "scores", "labels", "a damaged file")
    assert set(checks) == {"manifest", "compiled", *(f"{kind}, {size}" for kind in kinds for size in sizes)}
    assert all(check["outcome"] == "passed" for check in checks.values())
    assert "OpenCV 4." in checks["compiled"]["detail"]
    assert f"libtorch {torch.__version__}" in checks["compiled"]["detail"]
    assert checks["inputs, batch 32"]["detail"] == "359 of 359 images bit for bit"
    assert "best label agrees for 100.00% of 359 images" in checks["scores, batch 1"]["detail"]


def test_the_folder_holds_the_very_file_that_triton_serves(build: Built, model: Path) -> None:
    served = build.repository / "mnist_convnet_torchscript" / "1" / "model.pt"
    assert model.read_bytes() == served.read_bytes()
    manifest = read_manifest(root(build), NAME, 1)
    assert manifest is not None
    assert (manifest["format"], manifest["variant"]) == ("libtorch", "cpp")
    assert {"main.cpp", "CMakeLists.txt", "README.md", "settings.hpp", "model.pt"} <= set(manifest["files"])
    assert not (root(build) / NAME / "config.pbtxt").exists()
    assert manifest["parity"]["passed"]


def test_inputs_scores_and_labels_are_pythons(answered: Any, model: Path, mixed: Path) -> None:
    _, answer, dumped = answered
    loaded = load(CONFIGS / "mnist_convnet.yaml")
    config = loaded.config
    shape = signature(config.inputs, config.outputs, loaded)
    assert shape.image is not None
    assert config.postprocess is not None
    _, answers = images.postprocessing(config.postprocess, shape)
    files = [Path(row["file"]) for row in answer["images"]]
    assert files == sorted(path for part in ("a", "b") for path in (mixed / part).iterdir())
    inputs = np.stack([preprocessing.tensor(file.read_bytes(), shape.image) for file in files])
    far = np.abs(dumped.reshape(inputs.shape) - inputs).max(axis=(1, 2, 3))
    for file, distance in zip(files, far, strict=True):
        exact = file.parent.name == "a"
        limit = 0.0 if exact else LOSSY_LEVELS / 255.0 / min(shape.image.std) + 1e-6
        assert distance <= limit, file.name
    with no_deprecation_warnings(), torch.inference_mode():
        expected = torch.jit.load(str(model))(torch.from_numpy(dumped.reshape(inputs.shape))).numpy()
    for row, scores in zip(answer["images"], expected, strict=True):
        np.testing.assert_allclose(row["scores"], scores, atol=1e-4, err_msg=row["file"])
        wanted = postprocessing.ranked(np.asarray(row["scores"], np.float32), answers)
        assert [one["label"] for one in row["labels"]] == [one["label"] for one in wanted]
        assert row["labels"][0]["label"] == answers.labels[int(scores.argmax())]
        for one, other in zip(row["labels"], wanted, strict=True):
            assert one["probability"] == pytest.approx(other["probability"], abs=2e-6)


def test_files_it_cannot_read_are_named_and_the_others_answered(answered: Any, mixed: Path) -> None:
    done, answer, _ = answered
    assert done.returncode == 1
    bad = {path.name for path in (mixed / "c").iterdir()}
    assert {Path(row["file"]).name for row in answer["refused"]} == bad
    told = [line for line in done.stderr.splitlines() if ": refused: " in line]
    assert {Path(line.partition(": refused: ")[0]).name for line in told} == bad
    lines = [line.split("\t") for line in done.stdout.splitlines() if "\t" in line]
    assert [line[0] for line in lines] == [row["file"] for row in answer["images"]]
    for line, row in zip(lines, answer["images"], strict=True):
        assert line[1] == row["labels"][0]["label"]
        assert float(line[2]) == pytest.approx(row["labels"][0]["probability"], abs=1e-6)
    assert "notes.txt" not in done.stdout + done.stderr


def test_times_are_told_and_repeats_are_made(executable: Path, model: Path, mixed: Path, tmp_path: Path) -> None:
    picture = mixed / "a" / "rgb.png"
    options = ("--model", model, "--repeat", "7", "--threads", "1", "--json", tmp_path / "a.json")
    done = run(executable, *options, picture, picture)
    assert done.returncode == 0, done.stderr
    answer = json.loads((tmp_path / "a.json").read_text())
    assert answer["threads"] == 1
    assert set(answer["timings_ms"]) == {"load", "decode", "preprocess", "forward_first", "forward"}
    assert all(value > 0 for value in answer["timings_ms"].values())
    assert "(14 runs of up to 1 images, 1 threads)" in done.stdout
    assert re.search(
        r"loaded in [\d.]+ ms; per image: decode [\d.]+ ms, preprocess [\d.]+ ms \(medians of 2\)", done.stdout
    )


def test_it_finds_its_model_beside_it_and_in_the_folder_above(
    executable: Path, model: Path, mixed: Path, tmp_path: Path
) -> None:
    here = tmp_path / "build"
    here.mkdir()
    copied = here / "program"
    copied.write_bytes(executable.read_bytes())
    copied.chmod(0o755)
    picture = mixed / "a" / "rgb.png"
    (tmp_path / "model.pt").write_bytes(model.read_bytes())
    assert run(copied, picture).returncode == 0
    (tmp_path / "model.pt").rename(here / "model.pt")
    assert run(copied, picture).returncode == 0
    (here / "model.pt").unlink()
    lost = run(copied, picture)
    assert lost.returncode == 3
    assert str(tmp_path / "model.pt") in lost.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--batch", "0", "x.png"), "--batch takes a number from 1 to 2147483647; found 0"),
        (("--repeat", "3x", "x.png"), "--repeat takes a number from 1 to 2147483647; found 3x"),
        (("--threads", "100000", "x.png"), "--threads takes a number from 1 to 1024; found 100000"),
        (("--fast", "yes", "x.png"), "no such option: --fast"),
        (("x.png", "--json"), "--json is no option, or lacks its value"),
        ((), "no image given"),
        (("EMPTY",), "no .jpg, .jpeg, .png or .webp file in"),
    ],
)
def test_wrong_usage_is_told(executable: Path, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    done = run(executable, *(str(tmp_path) if word == "EMPTY" else word for word in arguments))
    assert done.returncode == 2
    assert f"{NAME}: {message}" in done.stderr
    assert "--threads N" in done.stderr


def test_a_missing_file_is_refused_and_a_file_that_is_no_model_too(
    executable: Path, model: Path, tmp_path: Path
) -> None:
    absent = run(executable, "--model", model, tmp_path / "absent.png")
    assert (absent.returncode, absent.stderr.strip()) == (1, f"{tmp_path / 'absent.png'}: refused: cannot be read")
    (tmp_path / "model.pt").write_bytes(b"no model")
    Image.fromarray(picture_files.pixels(4, 4)).save(tmp_path / "x.png")
    done = run(executable, "--model", tmp_path / "model.pt", tmp_path / "x.png")
    assert done.returncode == 3
    assert f"{NAME}: the model cannot be loaded or run: " in done.stderr


@pytest.mark.parametrize("option", ["--json", "--dump"])
@pytest.mark.parametrize(
    ("target", "reason"), [("absent/x", "No such file or directory"), ("/dev/full", "No space left on device")]
)
def test_an_output_that_cannot_be_written_is_an_error(
    executable: Path, model: Path, mixed: Path, tmp_path: Path, option: str, target: str, reason: str
) -> None:
    path = tmp_path / target
    done = run(executable, "--model", model, option, path, mixed / "a" / "rgb.png")
    assert (done.returncode, done.stderr.strip()) == (3, f"{NAME}: cannot write {path}: {reason}")
    if target != "/dev/full":
        assert done.stdout == ""  # known before any work


@pytest.mark.parametrize("arguments", [("--help",), ("--model", "MODEL", "IMAGE")])
def test_answers_that_cannot_be_printed_are_an_error(
    executable: Path, model: Path, mixed: Path, arguments: tuple[str, ...]
) -> None:
    words = {"MODEL": str(model), "IMAGE": str(mixed / "a" / "rgb.png")}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [str(executable), *(words.get(word, word) for word in arguments)],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=120,
        )  # fmt: skip
    assert (done.returncode, done.stderr.strip()) == (3, f"{NAME}: cannot write all of standard output")


def test_what_cannot_be_read_is_named_and_the_others_answered(
    executable: Path, model: Path, mixed: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "pictures"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "sound.png").write_bytes((mixed / "a" / "rgb.png").read_bytes())
    (folder / "deep" / "dangling.png").symlink_to("nowhere")
    (folder / "loop.JPG").symlink_to("loop.JPG")
    (folder / "broken.webp").symlink_to("/proc/self/mem")  # opens, and its first byte cannot be read
    (folder / "dangling.txt").symlink_to("nowhere")
    os.mkfifo(folder / "pipe.png")
    too_long = folder / f"{'x' * 300}.png"
    done = run(executable, "--model", model, "--json", tmp_path / "a.json", folder, too_long)
    answer = json.loads((tmp_path / "a.json").read_text())
    assert done.returncode == 1
    assert [row["file"] for row in answer["images"]] == [str(folder / "deep" / "sound.png")]
    unread = [folder / "broken.webp", folder / "deep" / "dangling.png", folder / "loop.JPG", too_long]
    assert done.stderr.splitlines() == [f"{path}: refused: cannot be read" for path in unread]
    assert [row["file"] for row in answer["refused"]] == [str(path) for path in unread]


def test_as_many_threads_as_are_allowed(executable: Path, model: Path, mixed: Path) -> None:
    done = run(executable, "--model", model, "--threads", "1024", mixed / "a" / "rgb.png")
    assert done.returncode == 0, done.stderr


def test_the_readme_s_commands_leave_the_version_as_it_is(build: Built, tmp_path: Path) -> None:
    """Configured only: the build has compiled it."""
    copy = build.copy(tmp_path / "copy")
    version = root(copy) / NAME / "1"
    before = files.tree_digests(version)
    configure, compiling = re.search(
        r"```\n(cmake -S .*)\n(cmake --build .*)\n```", (version / "README.md").read_text()
    ).groups()
    assert compiling.split()[2] == f"/tmp/{NAME}"
    command = configure.replace(f"/tmp/{NAME}", str(tmp_path / "elsewhere"))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run(
        ["sh", "-c", command], cwd=version, env={**os.environ, "PATH": path}, check=True, capture_output=True
    )
    assert files.tree_digests(version) == before
    assert (tmp_path / "elsewhere" / "model.pt").resolve() == version / "model.pt"


def test_a_build_folder_inside_is_no_damage(build: Built, tmp_path: Path) -> None:
    copy = build.copy(tmp_path / "copy")
    made = root(copy) / NAME / "1" / "build"
    made.mkdir()
    (made / "CMakeCache.txt").write_text("")
    proven = copy.again("--variant", "cpp", command="smoke")
    assert proven.exit_code == 0, proven.output
    again = copy.again("--variant", "cpp")
    assert again.exit_code == 0, again.output
    for done in (proven, again):
        assert re.search(rf"= program\[{NAME}\] .* cached · 10 checks", done.output)
    assert version_numbers(root(copy) / NAME) == [1]


def test_a_rebuild_does_not_compile_again(build: Built, tmp_path: Path) -> None:
    again = build.copy(tmp_path / "copy").again("--variant", "cpp")
    assert again.exit_code == 0, again.output
    assert re.search(rf"= program\[{NAME}\] .* cached · 10 checks", again.output)
    assert version_numbers(root(again) / NAME) == [1]


def test_without_a_compiler_it_is_emitted_and_that_is_said(build: Built, tmp_path: Path) -> None:
    again = build.copy(tmp_path / "copy").again("--variant", "cpp", env={"PATH": str(tmp_path), "CXX": ""})
    assert again.exit_code == 0, again.output
    row = again.variant(NAME)
    assert row["smoke"]["outcome"] == "not run"
    (note,) = (note for note in row["notes"] if note.startswith("emitted, not compiled here"))
    assert "no CMake (apt-get install cmake)" in note
    assert "no C++ compiler (apt-get install g++)" in note


def test_a_changed_source_is_found_before_it_is_compiled(build: Built, tmp_path: Path) -> None:
    copy = build.copy(tmp_path / "copy")
    (root(copy) / NAME / "1" / "main.cpp").write_text("int main() { return 0; }\n")
    done = copy.again("--variant", "cpp", command="smoke")
    assert done.exit_code == 5, done.output
    assert "version 1 no longer matches its manifest (main.cpp)" in done.variant(NAME)["error"]
