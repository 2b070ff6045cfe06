"""What TorchServe is given: the archive (.mar), with model-config.yaml in it, and config.properties beside it.

torch-model-archiver lays the archive out; its zip is written here. The archiver's own zip has its files in the order of
the disk's directory, with their times, and the moment of its making in MANIFEST.json: other bytes every time. Here
names are sorted, and all times are the zip format's first, so that equal models are equal files, and a build that
changed nothing makes no new version.
"""

from __future__ import annotations

import inspect
import json
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.base import command
from pipeline.base.errors import StageError
from pipeline.base.values import Signature
from pipeline.images import postprocessing, preprocessing
from pipeline.images.postprocessing import Postprocessing
from pipeline.schema.torchserve import TorchServe

ARCHIVE_TIMEOUT_S = 120.0
MODEL_VERSION = "1.0"
CONFIG = "model-config.yaml"
LABELS = "index_to_name.json"
_MANIFEST = "MAR-INF/MANIFEST.json"
_ARCHIVER = "0.12.0"  # as in pyproject.toml
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest a zip can say
_CREATED = "01/01/1980 00:00:00"  # TorchServe warns of an archive without a date, and reads no more of it
_MODE = 0o644 << 16
_HANDLER = Path(__file__).with_name("torchserve_handler.py")
_PROPERTIES = """\
# TorchServe's settings for the archive in model_store/; from this folder:
#   torchserve --start --foreground --model-store model_store --ts-config config.properties
inference_address=http://127.0.0.1:8080
management_address=http://127.0.0.1:8081
metrics_address=http://127.0.0.1:8082
grpc_inference_address=127.0.0.1
grpc_inference_port=7070
grpc_management_address=127.0.0.1
grpc_management_port=7071
model_store=model_store
load_models={name}.mar
# KServe's protocol v2, over HTTP and gRPC, beside TorchServe's own
ts_open_inference_protocol=true
# Prometheus metrics at the metrics address; without this they only go to log files
metrics_mode=prometheus
disable_system_metrics=true
# open to this machine's users: the addresses above are loopback; remove the line, and clients need the keys that
# TorchServe then writes to key_file.json
disable_token_authorization=true
# archives are only taken from the model store: this pattern fits no URL
allowed_urls=(?!)
# bytes of the largest request, and answer: tensors as JSON are large
max_request_size=67108864
max_response_size=67108864
"""


def properties(name: str) -> str:
    """config.properties: loopback, ports as TorchServe's documentation has them."""
    return _PROPERTIES.format(name=name)


def model_config(
    signature: Signature, settings: TorchServe, *, startup_timeout_s: int, scores: tuple[str, Postprocessing] | None
) -> str:
    """model-config.yaml: TorchServe's own keys, and what the handler must know.

    Args:
        signature: the model's tensors; ``image`` is how an image becomes the input.
        settings: all resolved.
        startup_timeout_s: a worker that takes longer to open the model is restarted.
        scores: the output that labels are made of, and how; None where answers are the outputs.
    """
    import yaml  # what the worker reads it with: YAML 1.1, where `on` and `no` need quotes

    handler: dict[str, Any] = {
        "batched": signature.batch is not None,
        "inputs": [{"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)} for spec in signature.inputs],
        "outputs": [{"name": spec.name} for spec in signature.outputs],
    }
    if signature.image is not None:
        handler["preprocess"] = _plain(asdict(signature.image))
    if scores is not None:
        handler["scores"] = scores[0]
        handler["postprocess"] = _plain({**asdict(scores[1]), "labels": []})  # those stand in index_to_name.json
    content = {
        "minWorkers": settings.workers,
        "maxWorkers": settings.workers,
        "batchSize": settings.batch_size,
        "maxBatchDelay": settings.max_batch_delay_ms,
        "responseTimeout": settings.response_timeout_s,
        "startupTimeout": startup_timeout_s,
        "handler": handler,
    }
    text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, default_flow_style=None)
    return text


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(value))  # tuples become lists, which YAML knows
    return plain


def archive(folder: Path, *, name: str, module: Path, config: str, labels: tuple[str, ...]) -> Path:
    """Write ``<folder>/<name>.mar``.

    Args:
        folder: exists.
        name: the model's name in TorchServe.
        module: a file of torch.jit.save.
        config: text of model-config.yaml.
        labels: class names by index; empty for none.

    Raises:
        MissingError: torch-model-archiver is not installed.
        StageError: it failed, or laid out other files than it was given.
    """
    with tempfile.TemporaryDirectory(dir=folder) as place:
        work = Path(place)
        settings, laid_out = work / CONFIG, work / "laid_out"
        settings.write_text(config, encoding="utf-8")
        laid_out.mkdir()
        options = {
            "model-name": name,
            "version": MODEL_VERSION,
            "serialized-file": module,
            "handler": _HANDLER,
            "config-file": settings,
            "export-path": laid_out,
            "archive-format": "no-archive",
        }
        _run_archiver([word for key, value in options.items() for word in (f"--{key}", str(value))], work)
        content = laid_out / name
        added = _add(content, labels)
        _check(content, {_MANIFEST, module.name, _HANDLER.name, CONFIG, *added})
        target = folder / f"{name}.mar"
        _zip(content, target)
    return target


def _add(content: Path, labels: tuple[str, ...]) -> tuple[str, ...]:
    """Put the handler's modules and the labels beside it; their names.

    Not by the archiver's --extra-files: it splits them at commas and takes `*`, `?` and `[` in a path for a pattern.
    """
    modules = [Path(inspect.getfile(module)) for module in (preprocessing, postprocessing)]
    for path in modules:
        shutil.copyfile(path, content / path.name)
    if labels:
        names = {str(index): label for index, label in enumerate(labels)}
        (content / LABELS).write_text(json.dumps(names, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return (*(path.name for path in modules), *((LABELS,) if labels else ()))


def _check(content: Path, expected: set[str]) -> None:
    found = {path.relative_to(content).as_posix() for path in content.rglob("*") if path.is_file()}
    if found != expected:
        raise StageError(
            "torchserve: torch-model-archiver laid out other files",
            found=f"{', '.join(sorted(found))}; expected {', '.join(sorted(expected))}",
            hint=f"pip install 'torch-model-archiver=={_ARCHIVER}'",
        )


def _run_archiver(options: list[str], work: Path) -> None:
    """In a process of its own: it empties ``<temporary folder>/<model name>``, which may be anybody's."""
    command.run(
        [sys.executable, "-m", "model_archiver.model_packaging", *options],
        timeout_s=ARCHIVE_TIMEOUT_S,
        env={"PATH": os.environ.get("PATH", ""), "TMPDIR": str(work)},
    )


def _zip(source: Path, target: Path) -> None:
    """Stored, not compressed: a TorchScript file does not shrink, and zlib's bytes differ between its versions."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as made:
        for path in sorted(item for item in source.rglob("*") if item.is_file()):
            data = path.read_bytes()
            if path == source / _MANIFEST:
                data = _undated(data)
            entry = zipfile.ZipInfo(path.relative_to(source).as_posix(), _EPOCH)
            entry.external_attr = _MODE
            made.writestr(entry, data)


def _undated(manifest: bytes) -> bytes:
    content = json.loads(manifest)
    content["createdOn"] = _CREATED
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()
