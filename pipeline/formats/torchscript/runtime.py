"""TorchScript files through libtorch in this process, behind values.Runtime."""

from __future__ import annotations

from pathlib import Path

import torch

from pipeline.base import runtimes, signatures
from pipeline.base.errors import StageError, first_line
from pipeline.base.step import Outcome, Task
from pipeline.base.values import Array, Progress, Signature, Tensors, described
from pipeline.capture.quiet import no_deprecation_warnings
from pipeline.proof import parity


def judge(task: Task, progress: Progress) -> Outcome:
    """The step; upstream ``graph`` and ``samples``, arguments ``signature`` and those of ``parity.Gates``."""
    runtime = TorchScriptRuntime(task.upstream["graph"].path, signatures.from_json(task.arguments["signature"]))
    return parity.judged(runtime, task)


class TorchScriptRuntime:
    """A file of ``torch.jit.save`` whose forward takes the signature's inputs by name and returns its outputs in order.

    Raises:
        StageError: the file cannot be loaded, or its arguments are not the signature's inputs.
    """

    def __init__(self, path: Path, signature: Signature) -> None:
        self._signature = signature
        try:
            with no_deprecation_warnings():
                self._module = torch.jit.load(str(path), map_location="cpu").eval()
        except (RuntimeError, ValueError, OSError) as error:
            what = "torchscript: cannot load the model"
            hint = "expected a file of torch.jit.save, not of torch.save; export it again"
            raise StageError(what, found=first_line(error), where=str(path), hint=hint) from error
        arguments = self._module._c._get_method("forward").schema.arguments[1:]
        runtimes.check_names("torchscript", "inputs", [item.name for item in arguments], signature.inputs, str(path))

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """As ``values.Runtime`` has it."""
        feeds = {spec.name: torch.from_numpy(inputs[spec.name].copy()) for spec in self._signature.inputs}
        try:
            with torch.inference_mode():
                result = self._module(**feeds)
        except (RuntimeError, torch.jit.Error) as error:  # the second where the module itself raises
            raise StageError(
                "torchscript: the model failed on a sample",
                found=(str(error).strip().splitlines() or [type(error).__name__])[-1],  # behind its own traceback
                hint=f"inputs were {described(inputs)}",
            ) from error
        values = (result,) if isinstance(result, torch.Tensor) else tuple(result)
        if len(values) != len(self._signature.outputs):
            raise StageError(
                f"torchscript: the model returned {len(values)} outputs",
                found=f"expected {', '.join(spec.name for spec in self._signature.outputs)}",
            )
        specs = self._signature.outputs
        outputs: dict[str, Array] = {spec.name: value.numpy() for spec, value in zip(specs, values, strict=True)}
        runtimes.check_dtypes("torchscript", outputs, self._signature)
        return outputs
