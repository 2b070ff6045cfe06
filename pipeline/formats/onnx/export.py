"""Source model -> ONNX file with the YAML's names and dynamic dimensions."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import onnx
import torch
from google.protobuf.message import DecodeError

from pipeline.base import files, signatures
from pipeline.base.errors import StageError, first_line
from pipeline.base.step import Outcome, Task
from pipeline.base.values import GoldenSamples, Progress, Signature, SourceModel
from pipeline.capture import capture, examples, lines, script, tracing
from pipeline.capture.examples import Examples
from pipeline.capture.quiet import quiet
from pipeline.capture.torch_module import NamedModule
from pipeline.data import samples
from pipeline.formats import opening
from pipeline.formats.onnx import graph, interface
from pipeline.formats.onnx.onnxruntime import OnnxRuntime

Exporter = Literal["auto", "dynamo", "torchscript"]
_OLDER_EXPORTER_MAX_OPSET = 20  # torch.onnx._constants.ONNX_TORCHSCRIPT_EXPORTER_MAX_OPSET, torch 2.13
_RNN_OPERATORS = (torch.ops.aten.lstm.input, torch.ops.aten.gru.input)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What both exporters are given, and where they write."""

    source: SourceModel
    module: NamedModule
    signature: Signature
    pair: Examples
    opset: int
    file: Path


class _RefusedError(Exception):
    """An exporter failed, or its graph is not the model's: the reason in one line, and the user's line where known.

    ``capturable`` is False when torch.export is what failed.
    """

    def __init__(self, reason: str, *, where: str = "", capturable: bool | None = None) -> None:
        super().__init__(reason)
        self.where, self.capturable = where, capturable


def make(task: Task, progress: Progress) -> Outcome:
    """The step; see ``export``."""
    signature = signatures.from_json(task.arguments["signature"])
    return export(
        opening.opened(task, signature),
        signature=signature,
        golden=samples.golden(task),
        out_dir=task.out_dir,
        **task.arguments["options"],
    )


def export(
    source: SourceModel,
    *,
    signature: Signature,
    golden: GoldenSamples,
    exporter: Exporter,
    opset: int,
    max_opset: int,
    max_ir_version: int,
    simplify: bool,
    out_dir: Path,
    external_data_threshold_bytes: int = graph.PROTOBUF_LIMIT_BYTES,
) -> Outcome:
    """Write ``out_dir/model.onnx``; equal models give equal bytes in any directory and process.

    Every exported graph is run on two examples of different data and sizes before it is accepted.

    Args:
        source: a torch module, a TorchScript file, or an ONNX file, which is checked and copied as it is.
        signature: names of inputs and outputs, and the names of dynamic dimensions.
        golden: what to export with; see examples.choose.
        exporter: ``dynamo`` (torch.export), ``torchscript`` (the older one), or ``auto``: dynamo, else the older one.
        opset: greatest version of the standard operators in the file.
        max_opset: limit for an ONNX file used as given.
        max_ir_version: limit of the file's IR version.
        simplify: see graph.finish.
        out_dir: existing directory.
        external_data_threshold_bytes: see graph.finish.

    Raises:
        StageError: no exporter gives a graph that answers as the model does, or the file is not what the YAML says.
    """
    if source.kind == "onnx":
        return _copied(source, signature, exporter, max_opset, max_ir_version, out_dir)
    module = NamedModule(source.module, signature).eval()
    pair = examples.choose(module, signature, golden)
    with tempfile.TemporaryDirectory(dir=out_dir, prefix=".raw") as raw:
        file = Path(raw) / "raw.onnx"
        job = _Job(source=source, module=module, signature=signature, pair=pair, opset=opset, file=file)
        used, notes = _export(job, exporter)
        finished = graph.finish(
            file,
            out_dir,
            simplify=simplify,
            max_ir_version=max_ir_version,
            external_data_threshold_bytes=external_data_threshold_bytes,
        )
    notes = [*pair.notes, *notes, *finished.notes]
    return replace(finished, notes=tuple(notes), values={"exporter": used, **finished.values})


def _export(job: _Job, exporter: Exporter) -> tuple[str, list[str]]:
    """Write ``job.file`` with the first exporter that succeeds; which one, and the notes."""
    refusals: dict[str, _RefusedError] = {}
    if exporter != "torchscript" and (exporter == "dynamo" or job.source.kind == "torch"):
        try:
            return "dynamo", _accept(job, _dynamo)
        except _RefusedError as refused:
            refusals["dynamo"] = refused
    if exporter != "dynamo":
        newer = refusals.get("dynamo")
        notes = [f"exported by the older exporter, because dynamo: {newer}"] if newer else []
        if job.source.kind == "torchscript" and exporter == "auto":
            notes = ["exported by the older exporter, because the source is TorchScript"]
        try:
            return "torchscript", notes + _accept(job, lambda job: _older(job, newer.capturable if newer else None))
        except _RefusedError as refused:
            refusals["torchscript"] = refused
    hint = "write that line with tensor operations, or export the model yourself and use `source.onnx`"
    raise StageError(
        "export: the model cannot be exported to ONNX",
        found="\n".join(f"{name}: {refused}" for name, refused in refusals.items()),
        where=next((refused.where for refused in refusals.values() if refused.where), ""),
        hint=hint if exporter == "auto" else "use `exporter: auto`",
    )


def _accept(job: _Job, write: Callable[[_Job], list[str]]) -> list[str]:
    """Run an exporter, check its graph, name its dimensions, and run it on both examples; returns its notes."""
    notes = write(job)
    model = onnx.load(str(job.file), load_external_data=False)
    if graph.opset(model) > job.opset:
        raise _RefusedError(f"its graph stayed at opset {graph.opset(model)}, over {job.opset}")
    if reason := interface.problem(model, job.signature):
        raise _RefusedError(reason)
    interface.name_dimensions(model, job.signature)
    job.file.write_bytes(model.SerializeToString())
    try:
        wrong = tracing.unlike(OnnxRuntime(job.file, job.signature), job.signature, job.pair)
    except StageError as error:
        raise _RefusedError(f"its graph does not run: {first_line(Exception(error.found))}") from error
    if wrong:
        sizes, reason = wrong
        raise _RefusedError(f"its graph does not answer as the model does ({sizes}): {reason}")
    return notes


def _dynamo(job: _Job) -> list[str]:
    """torch.export, then the new exporter."""
    for operator in _RNN_OPERATORS:
        # torch caches their first decomposition, which unrolls later sequences to one length
        operator._dispatch_cache.clear()
    dynamic = any(isinstance(dim, str) for spec in job.signature.inputs for dim in spec.shape)
    try:
        with quiet():
            program = torch.onnx.export(
                job.module,
                job.pair.first.inputs,
                dynamo=True,
                dynamic_shapes=capture.dynamic_shapes(job.signature) if dynamic else None,
                input_names=[spec.name for spec in job.signature.inputs],
                output_names=[spec.name for spec in job.signature.outputs],
                opset_version=job.opset,
                verbose=False,
            )
    except Exception as error:
        failed = type(error).__name__ == "TorchExportError"
        cause = error.__cause__ or error
        raise _RefusedError(
            first_line(cause), where=lines.of_error(cause), capturable=False if failed else None
        ) from error
    if dynamic:
        captured = program.exported_program
        if reason := capture.limit_problem(captured, job.module, job.signature, job.pair.first):
            raise _RefusedError(reason, capturable=False)
    program.save(job.file)
    return []


def _older(job: _Job, capturable: bool | None) -> list[str]:
    """Trace or script, then the exporter that reads TorchScript."""
    opset = min(job.opset, _OLDER_EXPORTER_MAX_OPSET)
    specs = (*job.signature.inputs, *job.signature.outputs)
    axes = {spec.name: {axis: dim for axis, dim in enumerate(spec.shape) if isinstance(dim, str)} for spec in specs}
    try:
        built = script.build(job.source, job.signature, job.pair, method="auto", capturable=capturable)
    except StageError as error:
        raise _RefusedError(f"{error.what.removeprefix('export: ')}: {error.found}", where=error.where) from error
    try:
        with quiet(), torch.no_grad():
            torch.onnx.export(
                built.module,
                job.pair.first.inputs,
                str(job.file),
                dynamo=False,
                input_names=[spec.name for spec in job.signature.inputs],
                output_names=[spec.name for spec in job.signature.outputs],
                dynamic_axes=axes,
                opset_version=opset,
                verbose=False,
            )
    except Exception as error:
        raise _RefusedError(first_line(error), where=lines.of_error(error)) from error
    lower = [f"opset {opset}, where the older exporter ends; {job.opset} was allowed"] if opset < job.opset else []
    return [*built.notes, *lower]


def _copied(
    source: SourceModel, signature: Signature, exporter: Exporter, max_opset: int, max_ir_version: int, out_dir: Path
) -> Outcome:
    """Check an ONNX file against the YAML and the target, and copy it with its external data."""
    assert source.path is not None
    path = graph.file_of(source.path)
    try:
        model = onnx.load(str(path), load_external_data=False)
        onnx.checker.check_model(str(path), full_check=True)
    except (DecodeError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError, RuntimeError) as error:
        what = "export: the ONNX file is not valid"
        hint = "export it again; `onnx.checker.check_model(path, full_check=True)` shows the same"
        raise StageError(what, found=first_line(error), where=str(path), hint=hint) from error
    opset = graph.opset(model)
    if opset > max_opset or model.ir_version > max_ir_version:
        raise StageError(
            "export: the ONNX file is too new for the target's ONNX Runtime",
            found=f"opset {opset} and IR version {model.ir_version}; the target takes opset {max_opset} and "
            f"IR version {max_ir_version} at most",
            where=str(path),
            hint=f"export it again with opset_version={min(opset, max_opset)}, convert it with "
            "onnx.version_converter.convert_version and a lower model.ir_version, or set a newer `triton.target`",
        )
    if reason := interface.problem(model, signature):
        what = "export: the ONNX file is not what the configuration says"
        hint = "correct `inputs` and `outputs`, or export the file again with these names and dynamic axes"
        raise StageError(what, found=reason, where=str(path), hint=hint)
    locations = graph.external_files(model)
    _copy(path, locations, out_dir)
    return Outcome(
        file=graph.FILE,
        notes=(f"`exporter: {exporter}` has no effect: the source is ONNX",) if exporter != "auto" else (),
        values={"exporter": "as given", **graph.properties(model, external=bool(locations))},
    )


def _copy(path: Path, locations: tuple[str, ...], out_dir: Path) -> None:
    if not locations:
        shutil.copyfile(path, out_dir / graph.FILE)
        return
    folder = out_dir / graph.FILE
    folder.mkdir()
    shutil.copyfile(path, folder / graph.FILE)
    for location in locations:
        target = files.inside(folder, location)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(files.inside(path.parent, location), target)
