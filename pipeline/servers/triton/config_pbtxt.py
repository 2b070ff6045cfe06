"""From a variant to its complete ModelConfig message, and to the files beside config.pbtxt that it names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.base import model_config, triton_facts
from pipeline.base.errors import ConfigError
from pipeline.base.values import Sample, Signature, TensorSpec
from pipeline.formats.table import BACKENDS

_DATA_TYPES = {dtype: name for name, dtype in triton_facts.NUMPY_TYPES.items()}
_SCHEDULERS = ("dynamic_batching", "sequence_batching", "ensemble_scheduling")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """What a model directory holds besides its versions.

    Attributes:
        config: the ModelConfig message.
        extra: bytes of label and warmup files, by path relative to the model directory.
    """

    config: Any
    extra: Mapping[str, bytes]

    @property
    def files(self) -> dict[str, bytes]:
        """``extra`` and config.pbtxt."""
        return {"config.pbtxt": model_config.to_text(self.config).encode(), **self.extra}


def describe(
    *,
    model_name: str,
    kind: str,
    signature: Signature,
    max_batch_size: int,
    fields: Mapping[str, Any],
    warmup: Sample | None,
    engines: Mapping[str, str] | None = None,
    profiles: int = 1,
) -> ModelFiles:
    """Build the complete configuration of one model.

    Complete means that Triton's auto-complete has nothing to add: all tensors, the instance group, the scheduler.

    Args:
        model_name: the model directory's name.
        kind: decides backend, platform and the instance group's default.
        signature: full shapes; the batch dimension is left out of ``dims`` when ``max_batch_size`` > 0.
        max_batch_size: 0 for no batching by Triton.
        fields: ModelConfig fields from the YAML, laid over the defaults; None removes a default.
        warmup: a golden sample that the server runs before a version is ready.
        engines: file name by compute capability (``{"8.0": "model_sm80.plan"}``), for engines that are named so.
        profiles: optimization profiles of a TensorRT engine; an instance group that names none gets all of them, since
            Triton would use the first alone.

    Raises:
        ConfigError: a field has a wrong type, or refines a tensor that the model does not have.
    """
    batched, extra = max_batch_size > 0, dict[str, bytes]()
    defaults = {"name": model_name, "max_batch_size": max_batch_size, **_defaults(kind, signature, batched, extra)}
    if engines:
        defaults["cc_model_filenames"] = dict(engines)
    if batched and not any(fields.get(name) for name in _SCHEDULERS[1:]):
        # No queue policy by default: with max_queue_size, 2.51 leaves some lone requests to its 500 ms wake-up.
        defaults["dynamic_batching"] = {}
    if warmup is not None and not fields.get("sequence_batching"):
        defaults["model_warmup"] = [_warmup(signature.inputs, warmup, batched, extra)]
    merged = model_config.overlay(
        defaults, {key: value for key, value in fields.items() if key not in ("input", "output")}
    )
    if kind == "tensorrt" and profiles > 1 and merged.get("instance_group"):
        every = [str(index) for index in range(profiles)]
        merged["instance_group"] = [{"profile": every, **group} for group in merged["instance_group"]]
    for key in ("input", "output"):
        merged[key] = _refined(key, defaults[key], fields.get(key) or ())
    if merged.get("model_warmup") is None:
        extra = {path: data for path, data in extra.items() if not path.startswith("warmup/")}
    return ModelFiles(config=model_config.build(merged), extra=extra)


def _defaults(kind: str, signature: Signature, batched: bool, extra: dict[str, bytes]) -> dict[str, Any]:
    """What every model of a kind has; label files go into ``extra``."""
    backend = BACKENDS[kind]
    return {
        "platform": backend.platform,
        "backend": backend.name,
        "version_policy": {"latest": {"num_versions": 1}},
        "input": [_tensor(spec, batched) for spec in signature.inputs],
        "output": _outputs(signature.outputs, batched, extra),
        "instance_group": [{"count": 1, "kind": backend.kind}],
    }


def _tensor(spec: TensorSpec, batched: bool) -> dict[str, Any]:
    shape = spec.shape[1:] if batched else spec.shape
    dims = [size if isinstance(size, int) else -1 for size in shape]
    tensor: dict[str, Any] = {"name": spec.name, "data_type": data_type(spec.dtype), "dims": dims or [1]}
    if not dims:
        tensor["reshape"] = {"shape": []}  # Triton's dims may not be empty; the backend still sees [N]
    if spec.layout and len(dims) == 3:
        tensor["format"] = f"FORMAT_{spec.layout}"
    return tensor


def data_type(dtype: str) -> str:
    """ModelConfig's name of a numpy dtype: float32 -> TYPE_FP32."""
    return _DATA_TYPES[dtype]


def _outputs(specs: Sequence[TensorSpec], batched: bool, extra: dict[str, bytes]) -> list[dict[str, Any]]:
    rows = []
    for spec in specs:
        row = _tensor(spec, batched)
        if spec.labels:
            name = "labels.txt" if not extra else f"{spec.name}_labels.txt"
            extra[name] = ("\n".join(spec.labels) + "\n").encode()
            row["label_filename"] = name
        rows.append(row)
    return rows


def _warmup(specs: Sequence[TensorSpec], sample: Sample, batched: bool, extra: dict[str, bytes]) -> dict[str, Any]:
    """One request of batch 1; a file per input in <model>/warmup, raw little-endian row-major bytes."""
    inputs = {}
    for spec in specs:
        array = np.ascontiguousarray(sample.inputs[spec.name])
        file_name = f"golden_{spec.name}"
        extra[f"warmup/{file_name}"] = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
        inputs[spec.name] = {
            "data_type": data_type(spec.dtype),
            "dims": list(array.shape[1:] if batched else array.shape) or [1],
            "input_data_file": file_name,
        }
    return {"name": "golden", "batch_size": 1, "inputs": inputs}


def _refined(
    key: str, tensors: Sequence[Mapping[str, Any]], refinements: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    by_name = {tensor["name"]: dict(tensor) for tensor in tensors}
    for refinement in refinements:
        name = refinement.get("name")
        if name not in by_name:
            raise ConfigError(
                f"triton.{key}: no tensor is called {name!r}",
                found=f"the model has {', '.join(by_name)}",
                hint="refine those of `inputs` and `outputs` by their names",
            )
        by_name[name] = model_config.overlay(by_name[name], refinement)
    return list(by_name.values())
