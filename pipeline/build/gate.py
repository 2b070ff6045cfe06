"""The gate of a variant: what a parity step found of its graph or engine, and whether that is good enough."""

from __future__ import annotations

from pipeline.base.errors import GateError
from pipeline.base.step import Made
from pipeline.proof.parity import Judgement


def judgement(made: Made) -> Judgement:
    """What a parity step found."""
    return Judgement.of(made.values)


def summary(made: Made) -> str:
    """For the end of its line."""
    found = judgement(made)
    share = f" · accuracy {found.accuracy.value:.2%}" if found.accuracy else ""
    return f"max abs {found.parity.max_abs:.1e}{share}"


def check(step_name: str, found: Judgement, where: str) -> None:
    """Refuse numbers that are not good enough.

    Args:
        step_name: of the parity step.
        found: its numbers.
        where: the variant in the YAML.

    Raises:
        GateError: the numbers are refused.
    """
    for reason in found.reasons[:1]:
        raise GateError(
            f"{step_name}: refused by a gate",
            found=reason,
            where=where,
            hint="nothing was emitted; try another exporter, method or calibration, keep nodes in fp32, "
            "or loosen `gates` if you accept it",
        )
