"""The gate of the source model: what its golden samples say of it, before anything is made of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.base.errors import GateError
from pipeline.build.run import Run
from pipeline.plan import Variant

_SUSPECTS = (
    "are the output's `labels` in the order of the training, `preprocess` (or the data's `mean` and `std`) that of the "
    "training, and `layout` what the model reads?"
)


def check(run: Run) -> None:
    """Refuse a source model that its labelled golden samples speak against.

    Raises:
        GateError: it is refused, and the YAML does not overrule that.
    """
    judged = _judged(run)
    if judged.get("reason") and run.plan.loaded.config.gates.accuracy != "off":
        raise GateError(
            f"{run.plan.samples.name}: the source model's answers are wrong; nothing was made of it",
            found=f"output {judged['output']}: {judged['reason']}",
            where=run.plan.loaded.where("source"),
            hint=f"{_SUSPECTS}\n`gates: {{accuracy: off}}` takes the model as it is",
        )


def check_least(run: Run, variant: Variant) -> None:
    """Refuse to make a variant of a source model that is itself under the least accuracy: no repair could help.

    Raises:
        GateError: it is under it.
    """
    config = run.plan.loaded.config
    judged, gate = _judged(run), (config.variants[variant.key].gates or config.gates).limits
    if judged and gate is not None and gate.min is not None and judged["value"] < gate.min:
        raise GateError(
            f"{variant.identifier}: the source model itself is refused by a gate; the variant was not made",
            found=f"accuracy {judged['value']:.2%} of the source model on {judged['samples']} labelled golden samples "
            f"is under the least, {gate.min:.2%}",
            where=run.plan.loaded.where("variants", variant.key),
            hint=f"train it further, or lower `gates.accuracy.min` if you accept it\n{_SUSPECTS}",
        )


def _judged(run: Run) -> Mapping[str, Any]:
    """What was found when the samples were made; empty where nothing could be judged."""
    return run.entries[run.plan.samples.name].values["source"] or {}
