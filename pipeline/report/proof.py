"""How far a row was proven, in the one word that the table and the page have room for."""

from __future__ import annotations

from pipeline.base.values import ProofLevel


def word(server: str, proof: ProofLevel | None, *, asked: bool) -> str:
    """The server (``none`` for a program) that proved it, if asked, or how far it was proven without one."""
    if proof in ("none", "inspected"):
        return proof
    if proof == "served":
        return "served" if server == "none" else server
    return server if asked or server == "none" else "not run"
