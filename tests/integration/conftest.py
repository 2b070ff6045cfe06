"""The command line run as a user runs it, and builds that several tests look at."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"

# A shell without job control starts its background jobs with Ctrl-C ignored, and so would the children be that tests
# interrupt: a test run in the background would wait for them in vain.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pipeline(
    *arguments: str | Path, env: dict[str, str] | None = None, timeout_s: float = 600, cwd: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m pipeline …`` and return what it printed; standard output and error together."""
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
        cwd=cwd,
        env={**os.environ, "COLUMNS": "200", **(env or {})},
        check=False,
    )


@dataclass(frozen=True)
class Built:
    """A configuration that was built, with its own repository and work directory."""

    config: Path
    folder: Path
    arguments: tuple[str, ...]
    output: str
    exit_code: int

    @property
    def repository(self) -> Path:
        return self.folder / "repository"

    @property
    def rtx_repository(self) -> Path:
        """Where engines of TensorRT-RTX go."""
        return self.folder / "repository.tensorrt_rtx"

    @property
    def work_dir(self) -> Path:
        return self.folder / "work"

    @property
    def report(self) -> dict[str, Any]:
        report: dict[str, Any] = json.loads((self.folder / "report.json").read_text())
        return report

    def variant(self, name: str) -> dict[str, Any]:
        """A variant's row of the report."""
        return next(row for row in self.report["variants"] if row["name"] == name)

    def again(self, *more: str | Path, command: str = "build", **keywords: Any) -> Built:
        """Run a command on the same configuration, repository and work directory."""
        return run(self.config, self.folder, (*self.arguments, *map(str, more)), command=command, **keywords)

    def copy(self, folder: Path) -> Built:
        """The same state in another folder, free to be damaged."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return Built(self.config, folder, self.arguments, self.output, self.exit_code)


def run(config: Path, folder: Path, arguments: Sequence[str] = (), *, command: str = "build", **keywords: Any) -> Built:
    """Run a command with everything it writes below ``folder``."""
    done = pipeline(
        command, config, "--repository", folder / "repository", "--work-dir", folder / "work", "--report",
        folder / "report.json", *arguments, **keywords,
    )  # fmt: skip
    return Built(config, folder, tuple(arguments), done.stdout, done.returncode)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Built]:
    """Build an example configuration once for all tests that look at it."""
    done: dict[str, Built] = {}

    def build(name: str) -> Built:
        if name not in done:
            folder = tmp_path_factory.mktemp(name)
            done[name] = run(CONFIGS / f"{name}.yaml", folder, env=_environment(name, folder))
        return done[name]

    return build


@pytest.fixture
def other_digits(tmp_path: Path) -> Path:
    """The model of from_onnx.yaml with every score 0.25 higher: other bytes, other answers, the same accuracy."""
    model = onnx.load(CONFIGS / "models" / "digits.onnx")
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "b1")
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(0.25), "b1"))
    onnx.save(model, tmp_path / "other.onnx")
    return tmp_path / "other.onnx"


def _environment(name: str, folder: Path) -> dict[str, str]:
    """ResNet-50's weights come by name; here from a local file, in the place where torchvision looks first."""
    if name != "resnet50_imagenet":
        return {}
    script = (
        "import torch; from pipeline.data import torchvision_compat;"
        "tv = torchvision_compat.load(); torch.manual_seed(0);"
        "from pathlib import Path; home = Path('{home}') / 'hub' / 'checkpoints'; home.mkdir(parents=True);"
        "url = tv.models.ResNet50_Weights.IMAGENET1K_V2.url;"
        "torch.save(tv.models.resnet50().state_dict(), home / url.rsplit('/', 1)[1])"
    )
    subprocess.run([sys.executable, "-c", script.format(home=folder / "torch")], check=True, cwd=ROOT)
    return {"TORCH_HOME": str(folder / "torch")}
