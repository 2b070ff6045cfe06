"""Training in processes of its own: killed and resumed, and the same bytes from one process to the next."""

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

USER = '''
import os, signal
import numpy as np
import torch
from torch import nn

class Net(nn.Module):
    """Kills its process at a given training step."""
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 4))
        self.steps = 0

    def forward(self, x):
        self.steps += self.training
        if self.steps == int(os.environ.get("KILL_AT_STEP", -1)):
            os.kill(os.getpid(), signal.SIGKILL)
        return self.layers(x)

def data():
    random = np.random.default_rng(0)
    x, targets = random.normal(size=(100, 8)).astype(np.float32), np.arange(100) % 4
    x[np.arange(100), targets] += 2
    return {"train": ({"x": x[:80]}, targets[:80]), "test": ({"x": x[80:]}, targets[80:])}
'''
RUN = """
import json, sys
from pathlib import Path
from pipeline.base.values import Signature, TensorSpec
from tests.unit.sources.tiny import task, values
spec = lambda name, size: TensorSpec(name=name, dtype="float32", shape=("N", size))
settings = {"train": {
    "model": {"callable": "user.py:Net"}, "data": {"callable": "user.py:data"}, "epochs": 5, "batch_size": 16,
    "schedule": {"name": "onecycle"}, "optimizer": {"learning_rate": 0.01},
}}
signature = Signature(inputs=(spec("x", 8),), outputs=(spec("y", 4),), batch="N")
values = values(task(Path(sys.argv[1]), settings, signature), lambda text, share: None)
print(json.dumps(values["notes"]))
"""
STEPS_PER_EPOCH = 5


def train(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    (folder / "user.py").write_text(USER)
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", RUN, str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **environment},
    )


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "out" / "weights.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("uninterrupted")
    done = train(folder, PYTHONHASHSEED="1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
    return digest(folder)


@pytest.mark.parametrize(
    ("kill_at_step", "note"),
    [(2 * STEPS_PER_EPOCH + 1, "resumed after epoch 2"), (3 * STEPS_PER_EPOCH + 3, "resumed after epoch 3"), (2, "")],
)
def test_killed_and_resumed_gives_the_same_weights(
    tmp_path: Path, uninterrupted: str, kill_at_step: int, note: str
) -> None:
    folder = tmp_path / "elsewhere"
    killed = train(folder, KILL_AT_STEP=str(kill_at_step))
    assert killed.returncode == -signal.SIGKILL
    assert not (folder / "out" / "weights.safetensors").exists()
    resumed = train(folder, PYTHONHASHSEED="2")
    assert resumed.returncode == 0, resumed.stderr
    assert note in resumed.stdout
    assert digest(folder) == uninterrupted


def test_planning_a_source_imports_nothing_heavy() -> None:
    code = (
        "import sys; from pathlib import Path; from pipeline.data import datasets, samples\n"
        "from pipeline.config import load; from pipeline.sources import table\n"
        "c = load.load(Path('configs/text_classifier.yaml'))\n"
        "row = table.of(c.config.source); row.digests(c.config.source, c.resolve); row.tools(c.config.source)\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'sklearn', 'torchvision', 'PIL', 'tritonclient', 'safetensors'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, timeout=60)
    assert done.returncode == 0, done.stderr
