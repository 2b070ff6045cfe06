"""What TorchServe was told about serving the model, in the words of this pipeline's YAML."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.importing.manifest import Manifest, model_config, parsed_json

IMAGE_CLASSIFIER = "image_classifier"
IMAGE_SHAPE = ("N", 3, 224, 224)
PREPROCESS: Mapping[str, Any] = {
    "color": "rgb", "resize": 256, "crop": [224, 224], "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
}  # fmt: skip
POSTPROCESS: Mapping[str, Any] = {"activation": "softmax", "top_k": 5}
"""The image_classifier handler: ts/torch_handler/image_classifier.py of TorchServe 0.12.0, ``image_processing`` (Resize
256, CenterCrop 224, ToTensor, Normalize) and ``postprocess`` (softmax, topk of 5)."""


def labels(folder: Path) -> tuple[tuple[str, ...], str]:
    """Class names in the order of their indices, and why there are none where there is a file of them.

    The file maps ``"0"`` to a name, or to a list whose last entry is the name, or holds a list under
    ``object_type_names`` (ts/utils/util.py of TorchServe 0.12.0, ``load_label_mapping``).
    """
    path = folder / "index_to_name.json"
    if not path.is_file():
        return (), ""
    mapping = parsed_json(path)
    if not isinstance(mapping, dict) or not mapping:
        return (), "not a JSON mapping with each key once"
    listed = mapping.get("object_type_names")
    if isinstance(listed, list):
        mapping = {str(number): name for number, name in enumerate(listed)}
    if set(mapping) != {str(number) for number in range(len(mapping))}:
        return (), f"its keys are not 0 to {len(mapping) - 1}, each once"
    values = [mapping[str(number)] for number in range(len(mapping))]
    names = [value[-1] if isinstance(value, list) and value else value for value in values]
    if not all(isinstance(name, str) and name.isprintable() for name in names):
        return (), "a label is no text of one line"
    return tuple(names), ""


def triton(folder: Path, manifest: Manifest, *, batched: bool) -> tuple[dict[str, Any], list[str], list[str]]:
    """``model-config.yaml`` as ``triton`` settings.

    TorchServe's maxBatchDelay is in milliseconds, Triton's max_queue_delay in microseconds; minWorkers processes of
    one model are instances. With one line for each key that was carried, and for each that was not.
    """
    if not manifest.config_file:
        return {}, [], []
    content = model_config(folder / manifest.config_file)
    if content is None:
        return {}, [], [f"{manifest.config_file}: not a YAML mapping"]
    settings, carried, left = dict[str, Any](), [], []
    kind = "KIND_GPU" if content.get("deviceType") == "gpu" else "KIND_CPU"
    for key, value in content.items():
        number = value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 65_536 else None
        if key in ("batchSize", "maxBatchDelay") and number is not None and not batched:
            left.append(f"{key} {number}: the model has no batch dimension")
        elif key == "batchSize" and number:
            settings["max_batch_size"] = number
            carried.append(f"batchSize {number}: max_batch_size")
        elif key == "maxBatchDelay" and number is not None:
            settings["dynamic_batching"] = {"max_queue_delay_microseconds": number * 1000}
            carried.append(f"maxBatchDelay {number} ms: max_queue_delay_microseconds {number * 1000}")
        elif key == "minWorkers" and number:
            settings["instance_group"] = [{"count": number, "kind": kind}]
            carried.append(f"minWorkers {number}: {number} instances, {kind}")
        else:
            left.append(f"{key}: nothing in the YAML says this")
    return settings, carried, left
