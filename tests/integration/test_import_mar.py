"""Archives of the real torch-model-archiver, imported and built: the variants answer as the original does."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from pipeline.capture.quiet import no_deprecation_warnings

from .conftest import pipeline

NET = """import torch


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = torch.nn.Conv2d(3, 4, 3, stride=8)
        self.head = torch.nn.Linear(4, 3)

    def forward(self, image):
        return self.head(self.convolution(image).relu().mean((2, 3)))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network as weights and as TorchScript, photographs, and what it answers to four arrays."""
    made = tmp_path_factory.mktemp("mar")
    (made / "net.py").write_text(NET)
    scope: dict[str, type[torch.nn.Module]] = {}
    exec(compile(NET, "net.py", "exec"), scope)
    torch.manual_seed(0)
    net = scope["Net"]().eval()
    torch.save(net.state_dict(), made / "weights.pth")
    with no_deprecation_warnings():
        torch.jit.save(torch.jit.trace(net, torch.zeros(1, 3, 224, 224)), made / "model.pt")
    images = np.random.default_rng(0).standard_normal((4, 3, 224, 224)).astype(np.float32)
    with torch.inference_mode():
        np.savez(made / "expected.npz", image=images, output=net(torch.from_numpy(images)).numpy())
    np.savez(made / "samples.npz", image=images)
    (made / "index_to_name.json").write_text(json.dumps({"0": "cat", "1": "dog", "2": "owl"}))
    (made / "model-config.yaml").write_text("minWorkers: 1\nbatchSize: 8\nmaxBatchDelay: 5\n")
    return made


def archived(folder: Path, name: str, *arguments: str) -> None:
    """Run the real torch-model-archiver in ``folder``; it deletes and makes TMPDIR/NAME."""
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    subprocess.run(
        [
            Path(sys.executable).with_name("torch-model-archiver"), "--model-name", name, "--version", "1.0",
            "--handler", "image_classifier", "--extra-files", "index_to_name.json",
            "--config-file", "model-config.yaml", *arguments,
        ],
        cwd=folder, check=True, capture_output=True, env={**os.environ, "TMPDIR": str(scratch)},
    )  # fmt: skip


def emitted(folder: Path, name: str) -> dict[str, np.ndarray]:
    """What both emitted variants answer to the four arrays."""
    with np.load(folder / "expected.npz") as content:
        images = content["image"]
    root = folder / "repository"
    session = onnxruntime.InferenceSession(str(root / f"{name}_onnx" / "1" / "model.onnx"))
    with no_deprecation_warnings(), torch.inference_mode():
        module = torch.jit.load(str(root / f"{name}_torchscript" / "1" / "model.pt"))
        scripted = module(torch.from_numpy(images)).numpy()
    return {"onnx": session.run(None, {"image": images})[0], "torchscript": scripted}


def test_archives_become_variants_that_answer_as_the_original(folder: Path) -> None:
    archived(folder, "scripted", "--serialized-file", "model.pt")
    eager = ("--serialized-file", "weights.pth", "--model-file", "net.py", "--archive-format", "tgz")
    archived(folder, "eager", *eager)
    configs = [folder / name / f"{name}.yaml" for name in ("scripted", "eager")]
    for file, config in zip(("scripted.mar", "eager.tar.gz"), configs, strict=True):
        done = pipeline("import-mar", folder / file, "--out", config.parent, "--samples", folder / "samples.npz")
        assert done.returncode == 0, done.stdout
        assert f"next: python -m pipeline build {config}" in done.stdout
        for text in ("carried", "batchSize 8: max_batch_size", "not carried", "the repository counts its own versions"):
            assert text in done.stdout
    built = pipeline(
        "build", *configs, "--no-serve", "--set", "samples.count=4",
        "--repository", folder / "repository", "--work-dir", folder / "work",
    )  # fmt: skip
    assert built.returncode == 0, built.stdout
    with np.load(folder / "expected.npz") as content:
        expected = content["output"]
    for name in ("scripted", "eager"):
        for answered in emitted(folder, name).values():
            np.testing.assert_allclose(answered, expected, atol=1e-5)
    settings = (folder / "repository" / "eager_onnx" / "config.pbtxt").read_text()
    assert "max_batch_size: 8" in settings
    assert "max_queue_delay_microseconds: 5000" in settings
    assert (folder / "repository" / "eager_onnx" / "labels.txt").read_text() == "cat\ndog\nowl\n"


def test_without_samples_the_import_says_so_and_the_command_it_prints_works(folder: Path) -> None:
    archived(folder, "bare", "--serialized-file", "model.pt")
    done = pipeline("import-mar", folder / "bare.mar", "--out", folder / "bare")
    assert done.returncode == 2
    config = folder / "bare" / "bare.yaml"
    assert f"python -m pipeline build {config} --set samples.from.images=PATH" in done.stdout
    assert "Traceback" not in done.stdout
    planned = pipeline("plan", config, "--set", "samples.from.arrays=../samples.npz", "--work-dir", folder / "work")
    assert planned.returncode == 0, planned.stdout


def test_an_unarchived_model_is_refused(folder: Path) -> None:
    archived(folder, "plain", "--serialized-file", "model.pt", "--archive-format", "no-archive")
    done = pipeline("import-mar", folder / "plain", "--out", folder / "none")
    assert done.returncode == 2
    assert "a folder, not an archive" in done.stdout
    assert not (folder / "none").exists()


@pytest.mark.parametrize("name", ["../../escaped", "/tmp/escaped-from-a-mar", "a/../../escaped"])
@pytest.mark.parametrize("kind", ["mar", "tar.gz"])
def test_an_archive_whose_names_lead_out_is_refused_and_leaves_nothing(
    folder: Path, tmp_path: Path, name: str, kind: str
) -> None:
    members = {"model.pt": (folder / "model.pt").read_bytes(), "MAR-INF/MANIFEST.json": b"{}", name: b"escaped"}
    work = tmp_path / "a" / "b"
    work.mkdir(parents=True)
    path = work / f"bad.{kind}"
    if kind == "mar":
        with zipfile.ZipFile(path, "w") as archive:
            for member, data in members.items():
                archive.writestr(member, data)
    else:
        with tarfile.open(path, "w:gz") as archive:
            for member, data in members.items():
                info = tarfile.TarInfo(member)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    done = pipeline("import-mar", path, "--out", work / "out", env={"TMPDIR": str(work)})
    assert done.returncode == 2
    assert "error: import-mar: the archive is refused as unsafe" in done.stdout
    assert f"found: '{name}': {'an absolute path' if name.startswith('/') else 'a path that leads out'}" in done.stdout
    assert f"where: {path}" in done.stdout
    assert "nothing was written" in done.stdout
    assert "Traceback" not in done.stdout
    assert [item for item in tmp_path.rglob("*") if item.is_file()] == [path]
    assert [item.name for item in work.iterdir()] == [path.name]
    assert not Path("/tmp/escaped-from-a-mar").exists()
