"""Which of a model's tensors gets which name of the YAML: all by name, or all by position, and never a mix."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.base.errors import StageError
from pipeline.base.values import Array, Signature, TensorSpec
from pipeline.capture.quiet import no_deprecation_warnings
from pipeline.capture.torch_module import NamedModule, TorchRuntime

Pair = namedtuple("Pair", ["p", "q"])


@dataclass
class Record:
    """As transformers' outputs: what was not computed is None."""

    p: torch.Tensor
    q: torch.Tensor
    hidden: None = None


class Masked(torch.nn.Module):
    """``ids`` where ``attention_mask`` is not 0, and the token types."""

    def forward(
        self, ids: torch.Tensor, attention_mask: torch.Tensor, token_types: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        return {"p": ids * attention_mask, "q": token_types}


class Open(Masked):
    """As transformers' newer models: it swallows what it does not know."""

    def forward(self, ids: torch.Tensor, attention_mask: torch.Tensor, **other: Any) -> dict[str, torch.Tensor]:
        return {"p": ids * attention_mask, "q": ids}


class Star(torch.nn.Module):
    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return inputs[0] - inputs[1], inputs[1]


class Returns(torch.nn.Module):
    """x and 2 x, as ``wrap`` has it."""

    def __init__(self, wrap: Callable[..., Any]) -> None:
        super().__init__()
        self.wrap = wrap

    def forward(self, x: torch.Tensor) -> Any:
        return self.wrap(x, 2 * x)


def signature(inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Signature:
    def specs(names: tuple[str, ...]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(name=name, dtype="float32", shape=("N",)) for name in names)

    return Signature(inputs=specs(inputs), outputs=specs(outputs), batch="N")


def run(module: torch.nn.Module, names: Signature) -> tuple[dict[str, list[float]], tuple[str, ...]]:
    """Feed 1, 2, 3, … to the inputs in the YAML's order."""
    runtime = TorchRuntime(NamedModule(module, names), names)
    given: dict[str, Array] = {spec.name: np.full(1, at, np.float32) for at, spec in enumerate(names.inputs, start=1)}
    return {name: value.tolist() for name, value in runtime.run(given).items()}, runtime.notes


def test_inputs_of_all_the_models_names_go_by_name() -> None:
    answer, notes = run(Masked(), signature(("token_types", "attention_mask", "ids"), ("q", "p")))
    assert answer == {"q": [1.0], "p": [6.0]}
    assert notes == ()


def test_inputs_of_none_of_them_go_by_position_and_it_is_noted() -> None:
    answer, notes = run(Masked(), signature(("a", "b", "c"), ("p", "q")))
    assert answer == {"p": [2.0], "q": [3.0]}
    assert notes == ("`inputs` go by position: a, b, c for the model's ids, attention_mask, token_types",)


def test_one_input_of_another_name_is_no_news() -> None:
    assert run(Returns(Pair), signature(("image",), ("p", "q")))[1] == ()


def test_inputs_named_as_the_stars_go_by_position() -> None:
    assert run(Star(), signature(("inputs", "mask"), ("y", "z")))[0] == {"y": [-1.0], "z": [2.0]}


@pytest.mark.parametrize("module", [Masked(), Open()])
def test_inputs_of_some_of_the_names_are_refused(module: torch.nn.Module) -> None:
    with pytest.raises(StageError) as caught:
        run(module, signature(("ids", "token_type_ids", "mask"), ("p", "q")))
    assert "the model has no input token_type_ids, mask" in str(caught.value)
    assert "the model's: ids, attention_mask" in caught.value.found
    assert "`inputs`: ids, token_type_ids, mask" in caught.value.found


def test_a_torchscript_modules_names_count_too() -> None:
    class Difference(torch.nn.Module):
        def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
            return left - right

    with no_deprecation_warnings():
        script = torch.jit.script(Difference())
    assert run(script, signature(("right", "left"), ("y",)))[0] == {"y": [1.0]}
    with pytest.raises(StageError, match="no input r"):
        run(script, signature(("left", "r"), ("y",)))


@pytest.mark.parametrize("wrap", [Pair, Record, lambda p, q: {"p": p, "q": q, "hidden": None}])
def test_outputs_go_by_name_by_position_or_not_at_all(wrap: Callable[..., Any]) -> None:
    assert run(Returns(wrap), signature(("x",), ("q", "p"))) == ({"q": [2.0], "p": [1.0]}, ())
    answer, notes = run(Returns(wrap), signature(("x",), ("a", "b")))
    assert answer == {"a": [1.0], "b": [2.0]}
    assert len(notes) == 1
    assert notes[0].startswith("`outputs` go by position: a, b for the model's p, q")
    with pytest.raises(StageError, match="no output r") as caught:
        run(Returns(wrap), signature(("x",), ("q", "r")))
    assert "the model's: p, q" in caught.value.found
