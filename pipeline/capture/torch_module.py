"""Runs a torch module under the YAML's names: the source model, and what the exporters trace."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from pipeline.base.errors import StageError
from pipeline.base.values import NUMPY_DTYPES, Array, Signature, Tensors


class NamedModule(torch.nn.Module):
    """Positional tensors in the YAML's input order in, a tuple in the YAML's output order out.

    Inputs go by keyword where ``forward`` has parameters of those names, else by position. Outputs are picked by key
    from a mapping, a named tuple or a dataclass when it has the YAML's names (transformers' ModelOutput is a mapping
    and a dataclass), else by position.
    """

    def __init__(self, module: torch.nn.Module, signature: Signature) -> None:
        super().__init__()
        self.module = module
        self.input_names = tuple(spec.name for spec in signature.inputs)
        self.output_names = tuple(spec.name for spec in signature.outputs)
        self.by_keyword = _takes_keywords(module, self.input_names)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run the module; shapes and dtypes are the signature's."""
        if self.by_keyword:
            result = self.module(**dict(zip(self.input_names, inputs, strict=True)))
        else:
            result = self.module(*inputs)
        return pick_outputs(result, self.output_names)


def _takes_keywords(module: torch.nn.Module, names: Sequence[str]) -> bool:
    if isinstance(module, torch.jit.ScriptModule):
        return False
    parameters = inspect.signature(module.forward).parameters
    return all(name in parameters and parameters[name].kind != inspect.Parameter.POSITIONAL_ONLY for name in names)


def pick_outputs(result: Any, names: Sequence[str]) -> tuple[torch.Tensor, ...]:
    """Order a module's result by the YAML's output names; a StageError where it has fewer tensors."""
    if dataclasses.is_dataclass(result) and not isinstance(result, Mapping):
        result = {item.name: getattr(result, item.name) for item in dataclasses.fields(result)}
    elif isinstance(result, tuple) and hasattr(result, "_fields"):  # a named tuple
        result = dict(zip(result._fields, result, strict=True))
    if isinstance(result, torch.Tensor):
        values: Sequence[Any] = (result,)
    elif isinstance(result, Mapping):
        present = {key: value for key, value in result.items() if value is not None}
        named = all(name in present for name in names)
        values = [present[name] for name in names] if named else list(present.values())
    else:
        values = list(result)
    if len(values) < len(names) or not all(isinstance(value, torch.Tensor) for value in values[: len(names)]):
        raise StageError(
            "source: the model's outputs do not fit the YAML's",
            found=f"{len(values)} values of types {', '.join(type(value).__name__ for value in values)}",
            hint=f"`outputs` names {', '.join(names)}; name what the model returns, in its order",
        )
    return tuple(values[: len(names)])


class TorchRuntime:
    """A NamedModule behind values.Runtime: numpy in, numpy out, no gradients."""

    def __init__(self, module: NamedModule, signature: Signature) -> None:
        self._module = module.eval()
        self._signature = signature

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """As ``values.Runtime`` has it."""
        tensors = [torch.from_numpy(inputs[spec.name].copy()) for spec in self._signature.inputs]
        try:
            with torch.inference_mode():
                results = self._module(*tensors)
        except StageError:
            raise
        except Exception as error:  # a user's module may raise anything
            raise StageError(
                "source: the model failed on a sample",
                found=f"{type(error).__name__}: {error}",
                hint=f"inputs were {_shapes(inputs)}; check `inputs` against the model's forward",
            ) from error
        outputs = {}
        for spec, tensor in zip(self._signature.outputs, results, strict=True):
            array = tensor.detach().cpu().numpy()
            if array.dtype != NUMPY_DTYPES[spec.dtype]:
                raise StageError(
                    f"source: output {spec.name} is {array.dtype}",
                    found=f"`outputs.{spec.name}.dtype` says {spec.dtype}",
                    hint=f"write dtype: {array.dtype}",
                )
            outputs[spec.name] = array
        return outputs


def _shapes(inputs: Tensors) -> str:
    return ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in inputs.items())
