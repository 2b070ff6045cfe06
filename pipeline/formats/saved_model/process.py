"""The TensorFlow process, seen from the pipeline's."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from multiprocessing import util
from multiprocessing.connection import Connection
from pathlib import Path

from pipeline.base import command
from pipeline.base.errors import ConfigError, MissingError, PipelineError, StageError
from pipeline.base.values import Array, Progress, Signature, Tensors
from pipeline.formats.saved_model import messages
from pipeline.formats.saved_model.messages import Answer, ModelFile, Values

_CHILD = "pipeline.formats.saved_model.child"
_START_TIMEOUT_S = 180.0  # 4 s on an idle machine, 33 s were seen with a cold disk cache on a busy one
_TAIL_CHARACTERS = 1500
_FAILURES: Mapping[str, type[PipelineError]] = {
    "ConfigError": ConfigError,
    "MissingError": MissingError,
    "StageError": StageError,
}
_ENVIRONMENT = {
    "KERAS_BACKEND": "tensorflow",  # whatever ~/.keras/keras.json says
    "PYTHONHASHSEED": "0",  # tf2onnx 1.17 orders constants by the hashes of their names: same model, same bytes
    "CUDA_VISIBLE_DEVICES": "-1",  # the reference is computed on the CPU; the GPU's memory is left to others
    "TF_CPP_MIN_LOG_LEVEL": "1",  # warnings and errors
}
_log = logging.getLogger("tensorflow")


def _unheard(text: str, share: float | None) -> None:
    """Progress that nobody watches."""


class Process:
    """A child that has imported TensorFlow and does what it is told, one job at a time.

    Raises:
        MissingError: TensorFlow or Keras is not installed, or does not load.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="tensorflow-")
        self._log_path = Path(self._folder.name) / "output.log"
        ours, theirs = socket.socketpair()
        with theirs:
            argv = [sys.executable, "-m", _CHILD, str(theirs.fileno())]
            # AutoGraph (TensorFlow 2.19) leaves the code it makes in the temporary folder: this one goes with the child
            environment = {**os.environ, **_ENVIRONMENT, "TMPDIR": self._folder.name}
            self._child = command.start(argv, log_path=self._log_path, env=environment, pass_fds=(theirs.fileno(),))
        self._connection = Connection(ours.detach())
        self._heard = len(self._log_path.read_bytes().splitlines(keepends=True)[0])  # the command line
        try:
            if not self._connection.poll(_START_TIMEOUT_S):
                raise StageError(f"TensorFlow did not load within {_START_TIMEOUT_S:.0f} s", found=self._tail())
            self._answer(_unheard)
        except BaseException:
            self.close()
            raise

    def call(self, job: str, values: Values, arrays: Tensors | None = None, progress: Progress = _unheard) -> Answer:
        """Have one job done; see ``child``. Raises what the job raised; a StageError where the process died."""
        try:
            with contextlib.suppress(BrokenPipeError):  # then there is nothing to be read either
                messages.send(self._connection, {"job": job, **values}, arrays)
            return self._answer(progress)
        except PipelineError:
            raise
        except BaseException:  # its answer to this job would be taken for that to the next
            self.close()
            raise

    def _answer(self, progress: Progress) -> Answer:
        while True:
            try:
                values, arrays = messages.receive(self._connection)
            except (EOFError, ConnectionResetError) as error:
                status = command.stop(self._child, grace_s=0.0)
                self.close()
                raise StageError(
                    "the TensorFlow process died",
                    found=f"exit status {status}\n{self._tail()}",
                    hint="status -9 is most often too little memory",
                ) from error
            if "progress" not in values:
                break
            progress(*values["progress"])
        self._tell()
        if "failure" in values:
            failure = values["failure"]
            raise _FAILURES[failure.pop("kind")](failure.pop("what"), **failure)
        if "bug" in values:
            raise RuntimeError(f"in the TensorFlow process:\n{values['bug']}")
        return values, arrays

    def _tell(self) -> None:
        """Pass on what the child printed: to the log of the stage that is running."""
        with self._log_path.open(errors="replace") as stream:
            stream.seek(self._heard)
            text = stream.read().strip()
            self._heard = stream.tell()
        if text:
            _log.warning("%s", text)

    def _tail(self) -> str:
        try:
            return self._log_path.read_text(errors="replace").strip()[-_TAIL_CHARACTERS:]
        except OSError:
            return ""

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return not self._connection.closed and self._child.poll() is None

    def close(self) -> None:
        """End the child."""
        self._connection.close()
        command.stop(self._child, grace_s=0.0)
        with contextlib.suppress(OSError):
            self._folder.cleanup()


_shared: list[Process] = []


def shared() -> Process:
    """The one process in which models are trained, opened and run, started at first need; raises as ``Process``."""
    while _shared and not _shared[0].alive:
        _shared.pop().close()
    if not _shared:
        _shared.append(Process())
        # Not atexit, which does not run in a process that multiprocessing has forked.
        util.Finalize(None, _shared[0].close, exitpriority=0)
    return _shared[0]


@contextlib.contextmanager
def fresh() -> Iterator[Process]:
    """A process for one file: what TensorFlow writes depends on what a process did before; raises as ``Process``."""
    process = Process()
    try:
        yield process
    finally:
        process.close()


class RemoteRuntime:
    """A model opened in the shared process, behind values.Runtime, with the names and dtypes of a signature.

    Attributes:
        notes: how the model's tensors were matched to the signature's.

    Raises:
        MissingError: TensorFlow is not installed.
        StageError: the model cannot be opened, or its inputs and outputs are not the signature's.
    """

    def __init__(self, model: ModelFile, signature: Signature) -> None:
        self._process = shared()
        self._outputs = [spec.name for spec in signature.outputs]
        self._inputs = [spec.name for spec in signature.inputs]
        values, _ = self._process.call("open", messages.about(model, signature))
        self._handle, self.notes = values["handle"], tuple(values["notes"])

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """As ``values.Runtime`` has it."""
        feeds = {name: inputs[name] for name in self._inputs}
        _, arrays = self._process.call("run", {"handle": self._handle}, feeds)
        return {name: arrays[name] for name in self._outputs}
