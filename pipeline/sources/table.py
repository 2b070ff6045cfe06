"""The sources: where a model can come from. A new one is a file beside this one, and a row here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from pipeline.data.user_code import Resolve
from pipeline.machine import doctor
from pipeline.machine.environment import Environment
from pipeline.schema.model import Source
from pipeline.sources import onnx, reads, tensorflow
from pipeline.sources.reads import Named


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """One key under ``source``.

    Attributes:
        module: full name of the module that makes and opens it: a ``formats.opening.Maker``.
        kind: what the opened model is: what formats are exported from.
        words: what it is called in a message.
        files: the files it names.
        digests: SHA-256 of every file it reads, user code included.
        tools: distributions whose version decides the result.
        lacks: what this machine lacks for it beyond what all builds need, each with its remedy.
    """

    module: str
    kind: str
    words: str
    files: Callable[[Source], Iterable[Named]]
    digests: Callable[[Source, Resolve], dict[str, str]]
    tools: Callable[[Source], tuple[str, ...]]
    lacks: Callable[[Environment], tuple[str, ...]] = lambda environment: ()


def _torch(module: str) -> Origin:
    return Origin(
        module=module,
        kind="torch",
        words="a torch model",
        files=reads.built_files,
        digests=reads.built_digests,
        tools=reads.built_tools,
    )


def _tensorflow(kind: str) -> Origin:
    return Origin(
        module="pipeline.sources.tensorflow",
        kind=kind,
        words="a TensorFlow model",
        files=tensorflow.named,
        digests=tensorflow.digests,
        tools=tensorflow.tools,
        lacks=doctor.lacks_tensorflow,
    )


SOURCES: Mapping[str, Origin] = {
    "train": _torch("pipeline.sources.train"),
    "checkpoint": _torch("pipeline.sources.checkpoint"),
    "model": _torch("pipeline.sources.library"),
    "onnx": Origin(
        module="pipeline.sources.onnx",
        kind="onnx",
        words="an ONNX file",
        files=onnx.named,
        digests=onnx.digests,
        tools=lambda source: ("onnx",),
    ),
    "torchscript": Origin(
        module="pipeline.sources.torchscript",
        kind="torchscript",
        words="a TorchScript file",
        files=reads.script_files,
        digests=reads.script_digests,
        tools=reads.built_tools,
    ),
    "keras": _tensorflow("keras"),
    "saved_model": _tensorflow("saved_model"),
}
"""By the key in the YAML."""


def of(source: Source) -> Origin:
    """The row of what is given."""
    return SOURCES[source.key]
