import hashlib
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.base.errors import ConfigError, StageError
from pipeline.schema.model import EarlyStop, Schedule
from pipeline.sources.train import PARTIAL_FILE, learning_rate, stopped

from .tiny import BATCHED, UNBATCHED, Workshop


def settings(**changes) -> dict:
    train = {
        "model": {"callable": "user.py:Net"},
        "data": {"callable": "user.py:data"},
        "epochs": 4,
        "batch_size": 16,
        "optimizer": {"name": "adamw", "learning_rate": 0.02},
    }
    return {"train": train | changes}


class Killed(BaseException):
    """Stands for the signal that ends a process."""


def killed_after(epoch: int):
    def progress(text: str, share: float | None) -> None:
        if text.startswith(f"epoch {epoch}/") and "accuracy" in text:
            raise Killed

    return progress


def digest(workshop: Workshop) -> str:
    return hashlib.sha256((workshop.folder / "out" / "weights.safetensors").read_bytes()).hexdigest()


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path)


def test_trains_and_opens(workshop: Workshop) -> None:
    values = workshop.prepare(settings())
    assert (values["kind"], values["labels"], values["notes"]) == ("torch", ["a", "b", "c"], [])
    assert (values["epochs_run"], values["train_samples"], values["test_samples"]) == (4, 65, 30)
    assert values["accuracy"] == values["history"][-1]["accuracy"] >= 0.9
    assert values["history"][-1]["loss"] < values["history"][0]["loss"]
    assert f"held-out accuracy {values['accuracy']:.2%}" in workshop.told[-1]
    opened = workshop.open(settings())
    assert not opened.module.training
    x = np.eye(4, dtype=np.float32)[:3] * 5
    scores = opened.runtime.run({"x": x})["y"]
    assert scores.argmax(1).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": {"name": "sgd", "learning_rate": 0.05}, "schedule": {"name": "cosine"}},
        {"optimizer": {"name": "adam", "learning_rate": 0.02}, "schedule": {"name": "onecycle"}},
        {"early_stop": {"patience_epochs": 3}},
    ],
)
def test_same_seed_same_bytes_and_resumed_the_same(tmp_path: Path, changes: dict) -> None:
    whole, resumed = Workshop(tmp_path / "."), None
    first = whole.prepare(settings(**changes))
    expected = digest(whole)
    (tmp_path / "partial" / PARTIAL_FILE).unlink()
    random.random(), np.random.random(), torch.rand(3)  # whatever ran before must not matter
    whole.prepare(settings(**changes))
    assert digest(whole) == expected
    (tmp_path / "partial" / PARTIAL_FILE).unlink()
    with pytest.raises(Killed):
        whole.prepare(settings(**changes), progress=killed_after(2))
    resumed = whole.prepare(settings(**changes))
    assert digest(whole) == expected
    assert (resumed["history"], resumed["notes"][0]) == (first["history"], "resumed after epoch 2")


def test_another_seed_gives_other_weights(workshop: Workshop) -> None:
    workshop.prepare(settings())
    before = digest(workshop)
    (workshop.folder / "partial" / PARTIAL_FILE).unlink()
    workshop.prepare(settings(seed=1))
    assert digest(workshop) != before


@pytest.mark.parametrize("damage", [lambda raw: raw[:-7], lambda raw: b"", lambda raw: raw[:900] + b"x" + raw[901:]])
def test_a_damaged_partial_file_is_noted(workshop: Workshop, damage) -> None:
    workshop.prepare(settings())
    expected, partial = digest(workshop), workshop.folder / "partial" / PARTIAL_FILE
    partial.write_bytes(damage(partial.read_bytes()))
    values = workshop.prepare(settings())
    assert "its digest is wrong" in values["notes"][0]
    assert "started over" in values["notes"][0]
    assert values["epochs_run"] == 4
    assert digest(workshop) == expected


def test_random_state_and_settings_are_put_back(workshop: Workshop) -> None:
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    expected = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate(), torch.get_num_threads()
    workshop.prepare(settings(epochs=1))
    found = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate(), torch.get_num_threads()
    assert torch.equal(found[0], expected[0])
    assert found[1:] == expected[1:]
    assert not torch.are_deterministic_algorithms_enabled()


def test_without_a_batch_dimension(workshop: Workshop) -> None:
    changed = settings(model={"callable": "user.py:Single"}, data={"callable": "user.py:sequences"}, epochs=3)
    values = workshop.prepare(changed, UNBATCHED)
    assert values["accuracy"] >= 0.9
    answer = workshop.open(changed, UNBATCHED).runtime.run({"x": np.ones((5, 4), np.float32)})
    assert (answer["count"].tolist(), answer["scores"].shape) == ([5], (3,))


def test_gradients_of_single_samples_are_those_of_their_batch(workshop: Workshop) -> None:
    """With sequences of length 1, training sample by sample must be training in batches."""
    (workshop.folder / "user.py").write_text(
        (workshop.folder / "user.py").read_text()
        + "\ndef short():\n    f = data()\n"
        + "    return {n: ([{'x': r[None]} for r in f[n][0]['x']], f[n][1]) for n in ('train', 'test')}\n"
        + "\nclass Plain(nn.Linear):\n    def __init__(self):\n        super().__init__(4, 3)\n"
    )
    sgd = {"name": "sgd", "learning_rate": 0.1}
    workshop.prepare(settings(model={"callable": "user.py:Plain"}, optimizer=sgd))
    batched = workshop.open(settings(model={"callable": "user.py:Plain"})).module.weight
    (workshop.folder / "partial" / PARTIAL_FILE).unlink()
    single = settings(model={"callable": "user.py:Single"}, data={"callable": "user.py:short"}, optimizer=sgd)
    workshop.prepare(single, UNBATCHED)
    assert torch.allclose(batched, workshop.open(single, UNBATCHED).module.linear.weight, atol=1e-5)


def test_library_model_on_digits_with_augmentation(workshop: Workshop) -> None:
    from pipeline.base.values import Signature, TensorSpec

    signature = Signature(
        inputs=(TensorSpec(name="image", dtype="float32", shape=("N", 8, 8, 1), layout="NHWC"),),
        outputs=(TensorSpec(name="logits", dtype="float32", shape=("N", 10)),),
        batch="N",
    )
    (workshop.folder / "user.py").write_text(
        "from torch import nn\ndef net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    values = workshop.prepare(
        settings(
            model={"callable": "user.py:net"},
            data={"dataset": "digits"},
            batch_size=64,
            augmentation={"shift_pixels": 1, "horizontal_flip": False, "noise_std": 0.05},
        ),
        signature,
    )
    assert values["labels"] == list("0123456789")
    assert 0.6 < values["accuracy"] < 1


def test_early_stop_keeps_the_best_epoch(workshop: Workshop) -> None:
    changed = settings(epochs=50, early_stop={"patience_epochs": 2}, optimizer={"name": "adam", "learning_rate": 0.05})
    values = workshop.prepare(changed)
    accuracies = [row["accuracy"] for row in values["history"]]
    assert values["epochs_run"] == len(accuracies) < 50
    assert values["accuracy"] == max(accuracies)
    assert values["epochs_run"] == accuracies.index(max(accuracies)) + 1 + 2
    assert "stopped early" in values["notes"][0]


def test_stopped() -> None:
    rule = EarlyStop(patience_epochs=2, min_gain=0.01)
    rows = [{"accuracy": value} for value in (0.5, 0.6, 0.605, 0.609)]
    assert not stopped(rows[:3], rule)
    assert stopped(rows, rule)
    assert not stopped(rows, None)


def test_learning_rates() -> None:
    def rate(name: str, done: float, **kwargs) -> float:
        return learning_rate(Schedule(name=name, **kwargs), 1.0, done, 10)

    assert rate("constant", 0.9) == 1.0
    assert [rate("cosine", done) for done in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0])
    assert [rate("step", epoch / 10, step_epochs=4, gamma=0.1) for epoch in (0, 3.9, 4, 8)] == pytest.approx(
        [1, 1, 0.1, 0.01]
    )
    reference = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    cycle = torch.optim.lr_scheduler.OneCycleLR(reference, 1.0, total_steps=1001)
    for step in range(1000):
        assert rate("onecycle", step / 1000) == pytest.approx(cycle.get_last_lr()[0], abs=5e-3)
        reference.step()
        cycle.step()


def test_diverging_training(workshop: Workshop) -> None:
    changed = settings(
        optimizer={"name": "sgd", "learning_rate": 100.0, "momentum": 0.0},
        model={"callable": "user.py:Single"},
        data={"callable": "user.py:sequences", "args": {}},
        epochs=400,
    )
    (workshop.folder / "user.py").write_text(
        (workshop.folder / "user.py").read_text().replace("self.linear(x).mean(0)", "self.linear(x).mean(0) ** 9")
    )
    with pytest.raises(StageError, match="training diverged in epoch") as caught:
        workshop.prepare(changed, UNBATCHED)
    assert "learning rate 100" in caught.value.found
    assert "learning_rate" in caught.value.hint


def test_unusable_data_and_models(workshop: Workshop) -> None:
    with pytest.raises(ConfigError, match="labelled data with a train and a test part"):
        workshop.prepare(settings(data={"callable": "user.py:data", "args": {"train": False}}))
    with pytest.raises(StageError, match="the user's mistake") as caught:
        workshop.prepare(settings(model={"callable": "user.py:broken"}))
    assert caught.value.where.startswith(str(workshop.folder / "user.py"))
    with pytest.raises(ConfigError, match="`augmentation` is for images"):
        workshop.prepare(settings(augmentation={"noise_std": 0.1}))
    user = workshop.folder / "user.py"
    user.write_text(user.read_text().replace("(hidden, 3)", "(hidden, 2)"))
    with pytest.raises(StageError, match="do not fit the classes") as caught:
        workshop.prepare(settings())
    assert "[16, 2]; the data has 3 classes" in caught.value.found


def test_an_error_in_forward_names_the_line(workshop: Workshop) -> None:
    text = (
        (workshop.folder / "user.py")
        .read_text()
        .replace("return self.second(", "x = x @ x\n        return self.second(")
    )
    (workshop.folder / "user.py").write_text(text)
    with pytest.raises(StageError, match="failed in training") as caught:
        workshop.prepare(settings(), BATCHED)
    line = 1 + text.splitlines().index("        x = x @ x")
    assert caught.value.where == f"{workshop.folder / 'user.py'}:{line}"


def test_an_operator_without_a_deterministic_form_is_noted(workshop: Workshop) -> None:
    text = (
        (workshop.folder / "user.py")
        .read_text()
        .replace("return self.second(", "import warnings; warnings.warn('made up')\n        return self.second(")
    )
    (workshop.folder / "user.py").write_text(text)
    assert workshop.prepare(settings())["notes"] == ["warning: UserWarning: made up"]


@pytest.mark.parametrize(("smoothing", "certain"), [(0.0, True), (0.3, False)])
def test_label_smoothing_asks_for_less_than_certainty(workshop: Workshop, smoothing: float, certain: bool) -> None:
    """With 30 % spread over three classes no loss is under the entropy of (0.8, 0.1, 0.1)."""
    values = workshop.prepare(settings(epochs=30, label_smoothing=smoothing))
    assert values["accuracy"] >= 0.9
    assert (min(row["loss"] for row in values["history"]) < -0.8 * np.log(0.8) - 0.2 * np.log(0.1)) == certain
