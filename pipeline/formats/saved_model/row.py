"""A SavedModel, as Triton's tensorflow backend serves it, and TF-Serving where Triton has none any more."""

from __future__ import annotations

from pipeline.base import triton_facts
from pipeline.formats.format import Export, Format
from pipeline.machine.target import LAST_WITH_TENSORFLOW

_EXPORT = Export(
    function="pipeline.formats.saved_model.export:make",
    tools=("keras", "tensorflow", "tensorflow-cpu"),  # the last two are one library; one of them is absent
)
FORMAT = Format(
    kind="saved_model",
    backends={"saved_model": triton_facts.BACKENDS["tensorflow"]},
    exports={"keras": _EXPORT, "saved_model": _EXPORT},
    refusal="a SavedModel is made of `keras` or `saved_model`; the source is `{maker}`",
    judge="pipeline.formats.saved_model.runtime:judge",
    last_release=LAST_WITH_TENSORFLOW,
    successor="tfserving",
)
