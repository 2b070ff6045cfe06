"""What runtimes check about a model: its names when opened, shapes and dtypes when run."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.base.errors import StageError
from pipeline.base.ports import same_names
from pipeline.base.values import NUMPY_DTYPES, Signature, Tensors, TensorSpec


def check_names(runtime: str, what: str, found: Sequence[str], expected: Sequence[TensorSpec], where: str) -> None:
    """Check that the names of a file's ``inputs`` or ``outputs`` (``what``) are the signature's, in any order.

    Raises:
        StageError: one is missing or unknown; the message names ``runtime``, and the file in ``where``.
    """
    if not same_names(found, expected):
        raise StageError(
            f"{runtime}: the file's {what} are not the configuration's",
            found=f"{', '.join(found) or 'none'}; expected {', '.join(spec.name for spec in expected)}",
            where=where,
            hint=f"name them alike under `{what}`",
        )


def check_dtypes(runtime: str, outputs: Tensors, signature: Signature) -> None:
    """Check that outputs have the signature's dtypes; a StageError says which has not."""
    for spec in signature.outputs:
        if outputs[spec.name].dtype != NUMPY_DTYPES[spec.dtype]:
            raise StageError(
                f"{runtime}: output {spec.name} is {outputs[spec.name].dtype}",
                found=f"`outputs.{spec.name}.dtype` says {spec.dtype}",
                hint=f"write dtype: {outputs[spec.name].dtype}",
            )
