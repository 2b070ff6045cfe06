"""Proves a SavedModel for TensorFlow Serving: without the server, by TensorFlow's loader, and by the server itself."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.base import files
from pipeline.base.errors import SmokeError
from pipeline.base.values import GoldenSamples, RunningServer, Sample, Signature, Tensors, Tolerance
from pipeline.formats.saved_model import tfserving_messages
from pipeline.proof import parity
from pipeline.proof.failures import WrongError
from pipeline.proof.judge import Judge, Tally
from pipeline.proof.ledger import Row
from pipeline.servers.tfserving.server import INSIDE, MODELS_CONFIG

_ROUND_TRIPS = 3  # requests; the samples themselves have all been through the signature by then


@dataclass(frozen=True, slots=True, kw_only=True)
class TfServingExpectation:
    """What TensorFlow Serving should serve of one model.

    Attributes:
        root: the tree, with models.config.
        version: its directory is ``<root>/<model>/<version>``.
        signature: as the YAML gives it.
        max_batch_size: as in the configuration.
        tolerance: how close an answer must be to the reference.
        metadata_path: where the metadata is written that the server should answer with.
    """

    root: Path
    model: str
    version: int
    signature: Signature
    golden: GoldenSamples
    max_batch_size: int
    tolerance: Tolerance
    metadata_path: Path

    @property
    def version_dir(self) -> Path:
        """The SavedModel."""
        return self.root / self.model / str(self.version)


@dataclass
class Suite:
    """The checks of one version, and what they share."""

    expectation: TfServingExpectation
    judge: Judge = field(init=False)
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.judge = Judge(self.expectation.tolerance, batched=self.expectation.golden.batched)

    def offline(self) -> list[Row]:
        """What needs no server."""
        return [
            ("models_config", "-", self._config),
            ("signature", "-", self._signature),
            ("metadata", "-", self._shown),
            ("predict_request", "-", self._round_trip),
        ]

    def served(self, server: RunningServer) -> list[Row]:
        """What TensorFlow Serving itself answers."""
        from pipeline.servers.tfserving import client

        return [
            ("metadata", "http", lambda: client.metadata(server, self.expectation.model, self._known())),
            ("golden", "http", partial(self._golden, server, client.rest)),
            ("golden", "grpc", partial(self._golden, server, client.grpc)),
        ]

    def _golden(self, server: RunningServer, ask: Any) -> str:
        expected = self.expectation
        for number, sample in enumerate(expected.golden.samples):
            answer = ask(server, expected.model, expected.signature, self._known(), sample.inputs)
            self._hold(answer, sample, number)
        return f"{len(expected.golden.samples)} samples"

    def _config(self) -> str:
        path = self.expectation.root / MODELS_CONFIG
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SmokeError(f"{path.name} cannot be read", found=str(error)) from error
        model = self.expectation.model
        known, place = tfserving_messages.parse_models_config(text, str(path)), f"{INSIDE}/{model}"
        if known.get(model) != place:
            raise WrongError(f"{path.name} says {known}; expected {model} at {place}")
        return f"lists {', '.join(known)}"

    def _signature(self) -> str:
        from pipeline.formats.saved_model.runtime import SavedModelRuntime

        expected = self.expectation
        runtime = SavedModelRuntime(expected.version_dir, expected.signature)
        sizes = parity.batch_sizes(expected.max_batch_size)
        measured = parity.measure(runtime, expected.golden, batch_sizes=sizes, tolerance=expected.tolerance)
        if not measured.passed:
            raise WrongError(measured.reason)
        return f"{measured.samples} answers at batch {', '.join(map(str, sizes))}, max abs {measured.max_abs:.1e}"

    def _shown(self) -> str:
        expected = self.expectation
        shown = metadata(expected.version_dir, expected.model, expected.version)
        files.write_atomic(expected.metadata_path, json.dumps(shown, indent=1) + "\n")
        signatures = shown["metadata"]["signature_def"]["signature_def"]
        if "serving_default" not in signatures:
            others = ", ".join(name for name in signatures if not name.startswith("__saved_model_"))
            raise SmokeError("no signature serving_default", found=f"the SavedModel has {others}")
        named = signatures["serving_default"]
        for side, specs in (("inputs", expected.signature.inputs), ("outputs", expected.signature.outputs)):
            if set(named[side]) != {spec.name for spec in specs}:
                raise WrongError(f"serving_default has {side} {', '.join(named[side])}")
        self.metadata = shown
        return str(expected.metadata_path)

    def _known(self) -> dict[str, Any]:
        """The printed metadata, which requests are made of."""
        if not self.metadata:
            raise SmokeError("no metadata to make a request of", found="the check `metadata` failed")
        return self.metadata

    def _round_trip(self) -> str:
        """A request made of the printed metadata, serialised, parsed, and answered by the SavedModel."""
        from pipeline.formats.saved_model import process

        child, samples = process.shared(), self.expectation.golden.samples[:_ROUND_TRIPS]
        for number, sample in enumerate(samples):
            _, request = child.call("request", {"metadata": self._known()}, sample.inputs)
            _, answer = child.call("answer", {"path": str(self.expectation.version_dir.absolute())}, request)
            _, outputs = child.call("response", {}, answer)
            self._hold(outputs, sample, number)
        return f"{len(samples)} requests"

    def _hold(self, outputs: Tensors, sample: Sample, number: int) -> None:
        self.judge.compare(outputs, sample, f"sample {number}", Tally())


def metadata(version_dir: Path, name: str, version: int) -> dict[str, Any]:
    """What TF-Serving answers to ``GET /v1/models/NAME/metadata``.

    Raises:
        MissingError: TensorFlow is not installed.
        StageError: not a SavedModel that can be served.
    """
    from pipeline.formats.saved_model import process

    request = {"path": str(version_dir.absolute()), "name": name, "version": version}
    values, _ = process.shared().call("metadata", request)
    shown: dict[str, Any] = values["metadata"]
    return shown
