"""TensorRT engines on the GPU at hand, behind values.Runtime."""

from __future__ import annotations

from pathlib import Path

from pipeline.base import runtimes, signatures
from pipeline.base.errors import MissingError, StageError
from pipeline.base.step import Outcome, Task
from pipeline.base.values import Array, Progress, Signature, Tensors, described
from pipeline.formats.tensorrt.engine_session import Session, SessionError, UnavailableError
from pipeline.formats.tensorrt.profiles import fitting_profile
from pipeline.machine import tensorrt_flavours
from pipeline.machine.tensorrt_flavours import FlavourName
from pipeline.proof import parity


def judge(task: Task, progress: Progress) -> Outcome:
    """The step; upstream ``engine`` and ``samples``, arguments ``signature``, ``flavour``, ``file``, and the gates'."""
    given = task.arguments
    file = task.upstream["engine"].directory / given["file"]
    return parity.judged(TensorRtRuntime(file, signatures.from_json(given["signature"]), given["flavour"]), task)


class TensorRtRuntime:
    """An engine opened on the first GPU; every run takes the optimization profile that suits its inputs best.

    Raises:
        MissingError: this machine has no GPU, no driver for it, or not the libraries.
        StageError: the engine cannot be loaded, or its inputs and outputs are not the signature's.
    """

    def __init__(self, path: Path, signature: Signature, flavour: FlavourName) -> None:
        self._signature, self._flavour = signature, flavour
        try:
            self._session = Session(flavour, path.read_bytes())
        except UnavailableError as error:
            raise MissingError(
                f"{flavour}: an engine cannot be run here",
                found=str(error),
                where=str(path),
                hint=f"{tensorrt_flavours.flavour(flavour).install} cuda-bindings, on a machine with an NVIDIA GPU and "
                "its driver",
            ) from error
        except SessionError as error:
            raise StageError(
                f"{flavour}: cannot load the engine",
                found=str(error),
                where=str(path),
                hint=f"the library here is {tensorrt_flavours.installed(flavour)}: the engine was built by another "
                "version, or for another GPU, or the file is damaged; build it again, here",
            ) from error
        inputs, outputs = self._session.inputs, self._session.outputs
        runtimes.check_names(flavour, "inputs", [item.name for item in inputs], signature.inputs, str(path))
        runtimes.check_names(flavour, "outputs", [item.name for item in outputs], signature.outputs, str(path))

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """As ``values.Runtime`` has it; no profile that takes the inputs is a StageError too."""
        feeds = {spec.name: inputs[spec.name] for spec in self._signature.inputs}
        shapes = {name: array.shape for name, array in feeds.items()}
        chosen = fitting_profile(self._flavour, self._session.profiles, shapes)
        try:
            outputs = self._session.run(feeds, chosen)
        except SessionError as error:
            what = f"{self._flavour}: the engine failed on a sample"
            raise StageError(what, found=str(error), hint=f"inputs were {described(feeds)}") from error
        runtimes.check_dtypes(self._flavour, outputs, self._signature)
        return {spec.name: outputs[spec.name] for spec in self._signature.outputs}
