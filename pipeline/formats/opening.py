"""Opening what a source's step left: the model that everything else is made from and judged by.

The module whose function made it opens it. A step that does so need not name that module: its key holds that of the
source's step, and so the code that opens.

The steps that export have the arguments ``source`` as in the YAML, ``signature``, and ``options``, which the format's
own export takes. Unkeyed: ``folder`` of the YAML. Upstream: ``source`` and ``samples``.
"""

from __future__ import annotations

import pkgutil
from pathlib import Path
from typing import Protocol

from pipeline.base.files import canonical_json
from pipeline.base.step import Outcome, Task
from pipeline.base.values import Progress, Signature, SourceModel
from pipeline.data.user_code import Resolve
from pipeline.schema.model import Source


class Maker(Protocol):
    """What a source's module has."""

    def make(self, task: Task, progress: Progress) -> Outcome:
        """The step. Arguments: ``source``, as in the YAML, and ``signature``. Unkeyed: ``folder`` of the YAML.

        Returns:
            The values ``kind``, ``labels`` and ``accuracy`` (held-out, or None), and what else is known of it.
        """

    def opened(self, source: Source, *, signature: Signature, resolve: Resolve, directory: Path) -> SourceModel:
        """Open what the step left in ``directory``."""


def opened(task: Task, signature: Signature) -> SourceModel:
    """The model of a step's upstream ``source``; arguments ``source``, as in the YAML, and ``folder``, the YAML's."""
    maker: Maker = pkgutil.resolve_name(task.step.upstream["source"].module)
    directory = task.upstream["source"].directory
    return maker.opened(section(task), signature=signature, resolve=resolver(task), directory=directory)


def section(task: Task) -> Source:
    """The YAML's ``source``, an argument of the step."""
    return Source.model_validate_json(canonical_json(task.arguments["source"]))


def resolver(task: Task) -> Resolve:
    """Finds what is named in the YAML, whose ``folder`` is an argument of the step."""
    return Path(task.arguments["folder"]).joinpath
