"""Lint rule on what this tool wrote down of a version: whether it was ever proven."""

from __future__ import annotations

from pipeline.base import model_config
from pipeline.lint.model import Findings, Model, Rule
from pipeline.repository.manifest import read_manifest


def never_proven(model: Model) -> Findings:
    """A served version whose manifest, beside the repository, says that no server was ever asked."""
    root = model.root.resolve()
    if not root.name:
        return
    for number in model_config.served_versions(model.config, model.versions):
        if (read_manifest(root, model.name, number) or {}).get("proof") == "none":
            reason = "it was published without a proof (build --no-serve): no server's answers were ever compared."
            fix = f"python -m pipeline smoke {model.root}"
            yield model.at(model.versions[number]).warning("version-not-proven", reason, fix)


PROOF_RULES: tuple[Rule, ...] = (never_proven,)
