from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from pipeline.base.errors import StageError
from pipeline.base.step import Outcome
from pipeline.base.values import Signature, SourceModel
from pipeline.capture.quiet import no_deprecation_warnings
from pipeline.formats.onnx import export as onnx_export
from pipeline.formats.onnx.onnxruntime import OnnxRuntime
from pipeline.proof.comparison import FP32, compare
from tests.unit.formats import tiny

OPTIONS: dict[str, Any] = {"exporter": "auto", "opset": 20, "max_opset": 21, "max_ir_version": 10, "simplify": True}


def export(case: tiny.Case, out_dir: Path, **options: Any) -> Outcome:
    return onnx_export.export(
        case.source, signature=case.signature, golden=case.golden, out_dir=out_dir, **{**OPTIONS, **options}
    )


def shapes(file: Path) -> dict[str, list[int | str]]:
    graph = onnx.load(str(file)).graph
    return {
        item.name: [dim.dim_param or dim.dim_value for dim in item.type.tensor_type.shape.dim]
        for item in (*graph.input, *graph.output)
    }


def assert_answers(case: tiny.Case, file: Path) -> None:
    runtime = OnnxRuntime(file, case.signature)
    for sample in case.golden.samples:
        result = compare(runtime.run(sample.inputs), sample.outputs, FP32)
        assert result.passed, result.reason


def test_two_inputs_of_dynamic_batch_and_length(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    case = tiny.case(tiny.Text(), tiny.TEXT, tiny.text_rows(7, 7, 9, 5))
    outcome = export(case, tmp_path)
    assert outcome.file == "model.onnx"
    assert list(outcome.notes) == []
    properties = outcome.values
    assert properties["exporter"] == "dynamo"
    assert properties["opset"] == 20
    assert properties["ir_version"] <= 10
    assert shapes(tmp_path / "model.onnx") == {
        "ids": ["N", "L"], "mask": ["N", "L"], "scores": ["N", 3], "count": ["N"],
    }  # fmt: skip
    assert_answers(case, tmp_path / "model.onnx")
    assert [item.name for item in tmp_path.iterdir()] == ["model.onnx"]
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_no_batch_dimension(exporter: str, tmp_path: Path) -> None:
    case = tiny.case(tiny.Unbatched(), tiny.UNBATCHED, tiny.unbatched_rows())
    outcome = export(case, tmp_path, exporter=exporter)
    assert outcome.values["exporter"] == exporter
    assert shapes(tmp_path / "model.onnx") == {"signal": ["T"], "kernel": [3], "y": [3]}
    assert_answers(case, tmp_path / "model.onnx")


def test_a_data_dependent_loop_becomes_loop(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    case = tiny.case(tiny.Recurrent(), tiny.XY, tiny.floats(1, 4))
    outcome = export(case, tmp_path)
    assert outcome.values["exporter"] == "torchscript"
    assert outcome.notes[0].startswith("exported by the older exporter, because dynamo: Could not guard on data-dep")
    assert outcome.notes[1].startswith("scripted, because a trace would be frozen: ")
    assert all("\n" not in note for note in outcome.notes)
    assert "Loop" in {node.op_type for node in onnx.load(str(tmp_path / "model.onnx")).graph.node}
    assert shapes(tmp_path / "model.onnx") == {"x": ["N", 4], "y": ["N", 4]}
    runtime = OnnxRuntime(tmp_path / "model.onnx", tiny.XY)
    for scale in (0.01, 1.0, 50.0):
        x = np.full((3, 4), scale, np.float32)
        assert np.allclose(runtime.run({"x": x})["y"], case.source.runtime.run({"x": x})["y"], atol=1e-6)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_outputs_by_name_through_the_older_exporter(tmp_path: Path) -> None:
    case = tiny.case(tiny.Dictionary(), tiny.AB, tiny.floats(1, 4))
    export(case, tmp_path, exporter="torchscript")
    assert list(shapes(tmp_path / "model.onnx")) == ["x", "a", "b"]
    assert_answers(case, tmp_path / "model.onnx")


def test_dynamo_alone_refuses_data_dependent_control_flow(tmp_path: Path) -> None:
    case = tiny.case(tiny.Branch(), tiny.XY, tiny.floats(1, 4))
    with pytest.raises(StageError, match="cannot be exported to ONNX") as raised:
        export(case, tmp_path, exporter="dynamo")
    assert raised.value.found.startswith("dynamo: Could not guard on data-dependent expression")
    assert raised.value.where == tiny.line_of("# of Branch")
    assert raised.value.hint == "use `exporter: auto`"
    assert list(tmp_path.iterdir()) == []


def test_no_exporter_gives_both_reasons_and_the_line(tmp_path: Path) -> None:
    case = tiny.case(tiny.Unscriptable(), tiny.XY, tiny.floats(1, 4))
    with pytest.raises(StageError) as raised:
        export(case, tmp_path)
    first, second = raised.value.found.splitlines()[:2]
    assert first.startswith("dynamo: ")
    assert second.startswith("torchscript: the model can be neither traced nor scripted: trace: ")
    assert raised.value.where == tiny.line_of("# of Unscriptable")


def test_a_length_taken_another_way_is_not_narrowed_silently(tmp_path: Path) -> None:
    shaped = tiny.signature([tiny.spec("x", "N", "L", 4)], [tiny.spec("y", "N", "L", 4)])
    case = tiny.case(tiny.LongOnesDiffer(), shaped, tiny.floats(1, 6, 4))
    outcome = export(case, tmp_path)
    assert "captured the model for L from 0 to 16 only, and it also runs at 17" in outcome.notes[0]
    long = np.ones((2, 20, 4), np.float32)
    assert (OnnxRuntime(tmp_path / "model.onnx", shaped).run({"x": long})["y"] == 2).all()


def test_dynamo_that_stays_over_the_asked_opset_falls_back(tmp_path: Path) -> None:
    case = tiny.case(tiny.Mixed(), tiny.XY, tiny.floats(1, 4))
    outcome = export(case, tmp_path, opset=17)
    assert outcome.values["opset"] <= 17
    assert_answers(case, tmp_path / "model.onnx")


def test_the_ir_version_is_lowered_to_the_limit(tmp_path: Path) -> None:
    case = tiny.case(tiny.Mixed(), tiny.XY, tiny.floats(1, 4))
    outcome = export(case, tmp_path, exporter="torchscript", max_ir_version=8, opset=17)
    assert outcome.values["ir_version"] == 8
    assert onnx.load(str(tmp_path / "model.onnx")).ir_version == 8


def test_a_torchscript_source_goes_to_the_older_exporter(tmp_path: Path) -> None:
    with no_deprecation_warnings():
        scripted = torch.jit.script(tiny.Dictionary())
    case = tiny.case(scripted, tiny.AB, tiny.floats(1, 4))
    outcome = export(case, tmp_path)
    assert list(outcome.notes) == ["exported by the older exporter, because the source is TorchScript"]
    assert_answers(case, tmp_path / "model.onnx")


def test_equal_models_give_equal_bytes_whatever_was_compiled_before(tmp_path: Path) -> None:
    files = []
    for number in range(3):
        torch.manual_seed(0)
        case = tiny.case(tiny.Recurrent(), tiny.XY, tiny.floats(1, 4))
        folder = tmp_path / str(number)
        folder.mkdir()
        export(case, folder, exporter="torchscript")
        files.append((folder / "model.onnx").read_bytes())
    assert files[0] == files[1] == files[2]
    assert b"tiny.py" not in files[0]


class TestGiven:
    """An ONNX file as the source."""

    @staticmethod
    def model(
        path: Path, *, opset: int = 20, ir_version: int = 9, rows: int | str = "rows", external: bool = False
    ) -> Path:
        weight = numpy_helper.from_array(np.full((4, 4), 2, np.float32), "weight")
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "weight"], ["y"])],
            "given",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, 4])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, 4])],
            [weight],
            doc_string="as the user wrote it",
        )
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
        options = {"save_as_external_data": True, "location": "w/given.bin", "size_threshold": 0} if external else {}
        (path.parent / "w").mkdir(exist_ok=True)
        onnx.save_model(proto, str(path), **options)
        return path

    @staticmethod
    def copied(path: Path, out_dir: Path, signature: Signature = tiny.XY, **options: Any) -> Outcome:
        out_dir.mkdir(exist_ok=True)
        case = tiny.case(torch.nn.Identity(), tiny.XY, tiny.floats(1, 4))
        source = SourceModel(kind="onnx", module=None, path=path, runtime=case.source.runtime)
        return onnx_export.export(
            source, signature=signature, golden=case.golden, out_dir=out_dir, **{**OPTIONS, **options}
        )

    def test_copied_byte_for_byte(self, tmp_path: Path) -> None:
        path = self.model(tmp_path / "given.onnx")
        outcome = self.copied(path, tmp_path / "out")
        assert (tmp_path / "out/model.onnx").read_bytes() == path.read_bytes()
        facts = {"exporter": "as given", "opset": 20, "ir_version": 9, "nodes": 1, "external_data": False}
        assert outcome == Outcome(file="model.onnx", values=facts)

    def test_external_data_comes_along_in_tritons_layout(self, tmp_path: Path) -> None:
        path = self.model(tmp_path / "given.onnx", external=True)
        outcome = self.copied(path, tmp_path / "out")
        assert outcome.values["external_data"] is True
        folder = tmp_path / "out/model.onnx"
        assert sorted(item.relative_to(folder).as_posix() for item in folder.rglob("*")) == [
            "model.onnx", "w", "w/given.bin",
        ]  # fmt: skip
        x = np.ones((3, 4), np.float32)
        assert (OnnxRuntime(folder, tiny.XY).run({"x": x})["y"] == 8).all()

    @pytest.mark.parametrize(("opset", "ir_version"), [(22, 9), (20, 11)])
    def test_too_new_for_the_target(self, opset: int, ir_version: int, tmp_path: Path) -> None:
        path = self.model(tmp_path / "given.onnx", opset=opset, ir_version=ir_version)
        with pytest.raises(StageError, match="too new for the target's ONNX Runtime") as raised:
            self.copied(path, tmp_path / "out")
        assert raised.value.found == (
            f"opset {opset} and IR version {ir_version}; the target takes opset 21 and IR version 10 at most"
        )
        assert "convert_version" in raised.value.hint

    def test_a_fixed_batch_is_refused(self, tmp_path: Path) -> None:
        path = self.model(tmp_path / "given.onnx", rows=1)
        with pytest.raises(StageError, match="not what the configuration says") as raised:
            self.copied(path, tmp_path / "out")
        assert raised.value.found == "input x has shape [1, 4], not [N, 4]"

    def test_other_names_are_refused(self, tmp_path: Path) -> None:
        path = self.model(tmp_path / "given.onnx")
        named = tiny.signature([tiny.spec("image", "N", 4)], [tiny.spec("y", "N", 4)])
        with pytest.raises(StageError) as raised:
            self.copied(path, tmp_path / "out", named)
        assert raised.value.found == "its inputs are x, not image"

    def test_not_onnx_at_all(self, tmp_path: Path) -> None:
        path = tmp_path / "given.onnx"
        path.write_bytes(b"not a model" * 10)
        with pytest.raises(StageError, match="the ONNX file is not valid") as raised:
            self.copied(path, tmp_path / "out")
        assert raised.value.where == str(path)

    def test_missing_external_data(self, tmp_path: Path) -> None:
        path = self.model(tmp_path / "given.onnx", external=True)
        (tmp_path / "w/given.bin").unlink()
        with pytest.raises(StageError, match="the ONNX file is not valid"):
            self.copied(path, tmp_path / "out")

    def test_an_exporter_has_no_effect_and_says_so(self, tmp_path: Path) -> None:
        path = self.model(tmp_path / "given.onnx")
        outcome = self.copied(path, tmp_path / "out", exporter="dynamo")
        assert list(outcome.notes) == ["`exporter: dynamo` has no effect: the source is ONNX"]


def test_onnxruntime_is_quiet_about_our_graphs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    export(tiny.case(tiny.Mixed(), tiny.XY, tiny.floats(1, 4)), tmp_path, exporter="torchscript")
    onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    assert capfd.readouterr().err == ""
