"""What the rules between sections look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.base.values import Signature, TensorSpec
from pipeline.config.document import Key
from pipeline.config.inheritance import inherited
from pipeline.schema import Config
from pipeline.schema.model import Data, Input, Output

NO_BATCH = "the model has no batch dimension (its shapes do not all start with the same letter)"
Found = Iterator[tuple[Key, str]]
"""Problems: the path of the key, and what is wrong there."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A configuration, validated and as written; ``resolve`` finds a path in the YAML on disk."""

    config: Config
    raw: Mapping[str, Any]
    resolve: Callable[[str], Path]

    @property
    def tensors(self) -> list[tuple[Key, Input | Output]]:
        """Inputs, then outputs, each with its path."""
        inputs, outputs = self.config.inputs.items(), self.config.outputs.items()
        found: list[tuple[Key, Input | Output]] = [(("inputs", name), spec) for name, spec in inputs]
        return found + [(("outputs", name), spec) for name, spec in outputs]

    @property
    def data_sets(self) -> list[tuple[Key, Data]]:
        """Every data section, with its path."""
        config = self.config
        rows: list[tuple[Key, Data]] = []
        if config.source.training is not None:
            path = () if config.source.train is not None else (self.maker,)
            rows.append((("source", *path, "train", "data"), config.source.training.data))
        if isinstance(config.samples.from_, Data):
            rows.append((("samples", "from"), config.samples.from_))
        return rows + [
            (("variants", name, "calibration", "from"), variant.calibration.from_)
            for name, variant in config.variants.items()
            if variant.calibration is not None and variant.calibration.from_ is not None
        ]

    @property
    def variants(self) -> dict[str, Mapping[str, Any]]:
        """The variants as written, the ill-formed among them too."""
        given = self.raw.get("variants")
        rows = given.items() if isinstance(given, dict) else ()
        return {name: variant if isinstance(variant, dict) else {} for name, variant in rows}

    @property
    def formats(self) -> dict[str, str | None]:
        """What each variant is, by the nearest that says it; None where nobody does, or what is said is no text."""
        found = {name: inherited(self.variants, name, "format") for name in self.variants}
        return {name: made if isinstance(made, str) else None for name, made in found.items()}

    def of_format(self, wanted: str) -> list[str]:
        """The variants of one format."""
        return [name for name, made in self.formats.items() if made == wanted]

    @property
    def batch(self) -> str | None:
        """The letter every shape starts with, or None."""
        return self.signature.batch

    @property
    def signature(self) -> Signature:
        """The tensors as values; labels only where the YAML lists them."""
        listed = {
            name: spec.labels if isinstance(spec.labels, tuple) else ("",) if spec.labels else ()
            for name, spec in self.config.outputs.items()
        }
        return signature_of(self.config.inputs, self.config.outputs, listed)

    @property
    def maker(self) -> str:
        """The key under ``source`` that is given."""
        return self.config.source.key


def signature_of(
    inputs: Mapping[str, Input], outputs: Mapping[str, Output], labels: Mapping[str, tuple[str, ...]]
) -> Signature:
    """Tensors as values, with each output's labels; the batch letter is the one that every shape starts with."""
    ins = tuple(TensorSpec(name=name, dtype=s.dtype, shape=s.shape, layout=s.layout) for name, s in inputs.items())
    outs = tuple(
        TensorSpec(name=name, dtype=s.dtype, shape=s.shape, labels=labels[name]) for name, s in outputs.items()
    )
    firsts = {spec.shape[0] if spec.shape else None for spec in (*ins, *outs)}
    first = firsts.pop() if len(firsts) == 1 else None
    return Signature(inputs=ins, outputs=outs, batch=first if isinstance(first, str) else None)
