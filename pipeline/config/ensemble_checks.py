"""Rules on the ensemble: what answers in it, and that no other model takes the names of its parts."""

from __future__ import annotations

from pipeline.config.document import Key
from pipeline.config.explain import nearest
from pipeline.config.subject import Found, Subject
from pipeline.formats.table import FORMATS
from pipeline.schema import Config
from pipeline.servers.table import DEPLOYMENTS

_ENSEMBLE = DEPLOYMENTS["triton"]
PARTS = _ENSEMBLE.parts
"""The models beside the variants are called ``<name>_preprocess`` and ``<name>_postprocess``."""


def sections(subject: Subject) -> Found:
    """Labels of images need both sections."""
    config = subject.config
    if config.postprocess is not None and config.preprocess is None:
        yield ("postprocess",), "needs `preprocess` beside it, which says how an image becomes the input"
    missing = [name for name in PARTS if getattr(config, name) is None]
    if config.ensemble is not None and missing:
        yield ("ensemble",), f"needs {' and '.join(f'`{name}`' for name in missing)} beside it"


def answering(subject: Subject) -> Found:
    """One of the variants answers, and takes batches."""
    config = subject.config
    if not has_ensemble(config):
        return
    formats, named = subject.formats, config.ensemble.from_ if config.ensemble else None
    key: Key = ("ensemble", "from") if named else ("postprocess",)
    if named is not None and named not in formats:
        yield key, f"no variant is called `{named}`; {nearest(named, formats)}"
        return
    release = config.triton.target
    rows = {name: FORMATS.get(str(found)) for name, found in formats.items()}
    served = {name: row for name, row in rows.items() if row is None or row.server(release) == "triton"}
    chosen = named or next((name for name, row in served.items() if row is None or not row.on_gpu), None)
    if chosen is None:
        if not served:  # else a `from` names nothing; that is told elsewhere
            yield key, f"Triton {release} serves no variant that could answer: add one such as `onnx: {{format: onnx}}`"
        return
    if chosen not in served:  # of a program that is told elsewhere
        if formats[chosen] in _ENSEMBLE.takes:
            yield key, f"expected a variant that Triton {release} serves; `{chosen}` is {formats[chosen]}"
        return
    own = config.variants[chosen].triton.get("max_batch_size")
    limit = config.triton.max_batch_size if own is None else own
    if subject.batch is None or limit == 0:
        why = " (the shapes do not all start with the same letter)" if subject.batch is None else ""
        yield key, f"Triton must batch the variant that answers, and `{chosen}` has max_batch_size 0{why}"


def names(subject: Subject) -> Found:
    """Names of the ensemble and its parts are not those of variants."""
    config = subject.config
    if not has_ensemble(config):
        return
    for name in (*PARTS, config.name):
        if name in config.variants:
            taken = "the ensemble" if name == config.name else f"the ensemble's {name}ing model"
            yield ("variants", name), f"this name is {taken}'s; choose another"


def has_ensemble(config: Config) -> bool:
    """Whether the build makes an ensemble."""
    return _ENSEMBLE.settings(config, True) is not None
