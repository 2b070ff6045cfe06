"""Opening what a source's step left: the model that everything else is made from and judged by."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.base.files import canonical_json
from pipeline.base.step import Task
from pipeline.base.values import Signature, SourceModel
from pipeline.data.user_code import Resolve
from pipeline.schema.model import Source

if TYPE_CHECKING:
    import torch


def opened(task: Task, signature: Signature) -> SourceModel:
    """The model of a step's upstream ``source``; arguments ``source``, as in the YAML, and ``folder``, the YAML's.

    Raises:
        StageError: it cannot be opened.
    """
    source = Source.model_validate_json(canonical_json(task.arguments["source"]))
    resolve = Path(task.arguments["folder"]).joinpath
    return open_source(source, signature=signature, resolve=resolve, directory=task.upstream["source"].directory)


def open_source(source: Source, *, signature: Signature, resolve: Resolve, directory: Path) -> SourceModel:
    """Open what the source's step left in ``directory``.

    Raises:
        StageError: it cannot be opened.
    """
    if source.is_tensorflow:
        from pipeline.sources import tensorflow

        return tensorflow.open_source(source, signature=signature, resolve=resolve, directory=directory)
    if source.onnx is not None:
        from pipeline.formats.onnx.onnxruntime import OnnxRuntime
        from pipeline.sources import onnx

        path = directory / onnx.FILE_NAME
        return SourceModel(kind="onnx", module=None, path=path, runtime=OnnxRuntime(path, signature))

    from pipeline.capture.torch_module import NamedModule, TorchRuntime

    if source.torchscript is not None:
        from pipeline.sources import torchscript

        path = directory / torchscript.FILE_NAME
        module = torchscript.load(path)
        runtime = TorchRuntime(NamedModule(module, signature), signature)
        return SourceModel(kind="torchscript", module=module, path=path, runtime=runtime)
    module = _open_module(source, resolve, directory).eval()
    return SourceModel(
        kind="torch", module=module, path=None, runtime=TorchRuntime(NamedModule(module, signature), signature)
    )


def _open_module(source: Source, resolve: Resolve, directory: Path) -> torch.nn.Module:
    from pipeline.sources import checkpoint, determinism, library, weights

    model = source.built
    if model is None:
        assert source.checkpoint is not None
        return checkpoint.open_module(directory / checkpoint.PICKLED, resolve(source.checkpoint.file).parent)
    with determinism.reproducible(determinism.INITIAL_SEED, []):
        module = library.rebuild(model, resolve, directory)
    weights.load(module, directory)
    return module
