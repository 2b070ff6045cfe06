"""Runs a torch module under the YAML's names: the source model, and what the exporters trace."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from pipeline.base import runtimes
from pipeline.base.errors import StageError
from pipeline.base.values import Array, Signature, Tensors, described


class NamedModule(torch.nn.Module):
    """Positional tensors in the YAML's input order in, a tuple in the YAML's output order out.

    Inputs go by keyword where ``forward`` has parameters of those names, by position where it has none of them. Outputs
    are picked so too from a mapping, a named tuple or a dataclass (transformers' ModelOutput is both).

    Raises:
        StageError: some of the YAML's names are the model's and some are not; by position they would be miswired.
    """

    def __init__(self, module: torch.nn.Module, signature: Signature) -> None:
        super().__init__()
        self.module = module
        self.input_names = tuple(spec.name for spec in signature.inputs)
        self.output_names = tuple(spec.name for spec in signature.outputs)
        self.parameters_of_forward = _parameters(module)
        self.by_keyword = matched("inputs", self.input_names, self.parameters_of_forward)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run the module; shapes and dtypes are the signature's."""
        return pick_outputs(self.whole(*inputs), self.output_names)

    def whole(self, *inputs: torch.Tensor) -> Any:
        """All that the module returns, as it does."""
        if self.by_keyword:
            return self.module(**dict(zip(self.input_names, inputs, strict=True)))
        return self.module(*inputs)


def matched(what: str, names: Sequence[str], known: Sequence[str]) -> bool:
    """Whether the YAML's names are the model's: all of them, or none.

    Raises:
        StageError: some are.
    """
    unknown = [name for name in names if name not in known]
    if unknown and len(unknown) < len(names):
        raise StageError(
            f"source: the model has no {what[:-1]} {', '.join(unknown)}",
            found=f"the model's: {', '.join(known)}; `{what}`: {', '.join(names)}",
            hint=f"write all of `{what}` with the model's names; only where none is one of them, they go by position",
        )
    return not unknown


def _parameters(module: torch.nn.Module) -> tuple[str, ...]:
    """Those of ``forward`` that can be given by name; ``*args`` and ``**kwargs`` are no names."""
    if isinstance(module, torch.jit.ScriptModule):
        return tuple(item.name for item in module._c._get_method("forward").schema.arguments[1:])
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(module.forward).parameters.values()
    return tuple(parameter.name for parameter in parameters if parameter.kind in kinds)


def pick_outputs(result: Any, names: Sequence[str]) -> tuple[torch.Tensor, ...]:
    """Order a module's result by the YAML's output names.

    Raises:
        StageError: fewer results than names, one is not a tensor, or only some of the names are the result's.
    """
    result = _by_name(result)
    if isinstance(result, torch.Tensor):
        values: Sequence[Any] = (result,)
    elif isinstance(result, Mapping):
        present = {key: value for key, value in result.items() if value is not None}
        named = matched("outputs", names, list(present))
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


def _by_name(result: Any) -> Any:
    """A mapping in place of a dataclass or a named tuple; anything else as it is."""
    if dataclasses.is_dataclass(result) and not isinstance(result, Mapping):
        return {item.name: getattr(result, item.name) for item in dataclasses.fields(result)}
    if isinstance(result, tuple) and hasattr(result, "_fields"):
        return dict(zip(result._fields, result, strict=True))
    return result


class TorchRuntime:
    """A NamedModule behind values.Runtime: numpy in, numpy out, no gradients."""

    def __init__(self, module: NamedModule, signature: Signature) -> None:
        self._module = module.eval()
        self._signature = signature
        self._notes = dict.fromkeys(_positions("inputs", module.input_names, module.parameters_of_forward))

    @property
    def notes(self) -> tuple[str, ...]:
        """What was taken by position where the model has other names, in the runs so far too."""
        return tuple(self._notes)

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """As ``values.Runtime`` has it."""
        tensors = [torch.from_numpy(inputs[spec.name].copy()) for spec in self._signature.inputs]
        try:
            with torch.inference_mode():
                whole = self._module.whole(*tensors)
            results = pick_outputs(whole, self._module.output_names)
        except StageError:
            raise
        except Exception as error:  # a user's module may raise anything
            raise StageError(
                "source: the model failed on a sample",
                found=f"{type(error).__name__}: {error}",
                hint=f"inputs were {described(inputs)}; check `inputs` against the model's forward",
            ) from error
        if isinstance(named := _by_name(whole), Mapping):
            self._notes |= dict.fromkeys(_positions("outputs", self._module.output_names, list(named)))
        specs = self._signature.outputs
        outputs = {spec.name: tensor.detach().cpu().numpy() for spec, tensor in zip(specs, results, strict=True)}
        runtimes.check_dtypes("source", outputs, self._signature)
        return outputs


def _positions(what: str, names: Sequence[str], known: Sequence[str]) -> Iterator[str]:
    """A note on names that are not the model's, where an order could be wrong."""
    if len(names) > 1 and not set(names) & set(known):
        yield f"`{what}` go by position: {', '.join(names)} for the model's {', '.join(known) or 'unnamed ones'}"
