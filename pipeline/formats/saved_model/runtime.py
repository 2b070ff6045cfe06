"""SavedModels through TensorFlow's own loader, behind values.Runtime."""

from __future__ import annotations

from pathlib import Path

from pipeline.base.values import Signature
from pipeline.formats.saved_model.messages import ModelFile
from pipeline.formats.saved_model.process import RemoteRuntime


class SavedModelRuntime(RemoteRuntime):
    """The serving signature of a SavedModel, in a session of the TensorFlow process.

    Raises:
        MissingError: TensorFlow is not installed.
        StageError: the SavedModel cannot be loaded, has no ``serving_default``, or its tensors are not the signature's.
    """

    def __init__(self, path: Path, signature: Signature) -> None:
        super().__init__(ModelFile(kind="saved_model", path=str(path.absolute())), signature)
