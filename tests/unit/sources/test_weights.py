"""Weights come back as they were, whatever memory they share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from pipeline.base.errors import StageError
from pipeline.sources import weights


class Shared(torch.nn.Module):
    """A buffer that is part of a greater one (as ``torch.hann_window(8)`` is), two halves of one, and tied weights."""

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(8) + 0 if value else torch.hann_window(8))
        base = torch.arange(8.0) + value
        self.register_buffer("low", base[:4])
        self.register_buffer("high", base[4:])
        self.register_buffer("middle", base[2:6])
        self.register_buffer("every_other", base[::2])
        self.register_buffer("nothing", torch.zeros(0, 3))
        self.register_buffer("nothing_too", torch.zeros(0, 3))
        self.a, self.b = torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 4, bias=False)
        self.b.weight = self.a.weight


def test_they_come_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, other = Shared(), Shared(1.0)
    weights.save(module, tmp_path)
    with torch.no_grad():
        other.window.zero_()
    weights.load(other, tmp_path)
    wanted = module.state_dict()
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, wanted[name]), name
    with safe_open(tmp_path / weights.FILE_NAME, "pt") as stored:
        assert stored.metadata() == {"b.weight": "a.weight"}


def test_a_module_without_weights_comes_back_too(tmp_path: Path) -> None:
    weights.save(torch.nn.ReLU(), tmp_path)
    weights.load(torch.nn.ReLU(), tmp_path)


def test_the_same_weights_give_the_same_bytes(tmp_path: Path) -> None:
    files = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        torch.manual_seed(0)
        weights.save(Shared(), tmp_path / name)
        files.append((tmp_path / name / weights.FILE_NAME).read_bytes())
    assert files[0] == files[1]


@pytest.mark.parametrize("odd", [torch.zeros(2, 2).to_sparse(), torch.empty(2, device="meta")], ids=["sparse", "meta"])
def test_what_is_no_plain_tensor_is_refused(tmp_path: Path, odd: torch.Tensor) -> None:
    module = torch.nn.Module()
    module.register_buffer("odd", odd)
    with pytest.raises(StageError, match="cannot be saved") as caught:
        weights.save(module, tmp_path)
    assert "odd" in caught.value.found


def test_another_architecture_is_told(tmp_path: Path) -> None:
    weights.save(Shared(), tmp_path)
    with pytest.raises(StageError, match="do not fit the model"):
        weights.load(torch.nn.Linear(2, 2), tmp_path)
