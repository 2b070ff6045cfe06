from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.base.errors import StageError
from pipeline.base.step import Outcome
from pipeline.base.values import Signature, SourceModel
from pipeline.capture.quiet import no_deprecation_warnings
from pipeline.formats.torchscript import export as torchscript
from pipeline.formats.torchscript.runtime import TorchScriptRuntime
from pipeline.proof.comparison import FP32, compare
from tests.unit.formats import tiny


def export(case: tiny.Case, out_dir: Path, method: torchscript.Method = "auto") -> Outcome:
    return torchscript.export(case.source, signature=case.signature, golden=case.golden, method=method, out_dir=out_dir)


def assert_answers(case: tiny.Case, file: Path) -> None:
    """The file gives the source model's answer to each golden sample."""
    runtime = TorchScriptRuntime(file, case.signature)
    for sample in case.golden.samples:
        result = compare(runtime.run(sample.inputs), sample.outputs, FP32)
        assert result.passed, result.reason


CASES = [
    (tiny.Mixed, tiny.signature([tiny.spec("x", "N", 4)], [tiny.spec("y", "N", 4), tiny.spec("hidden", "N", 3)]),
     lambda: tiny.floats(1, 4), "trace"),
    (tiny.Text, tiny.TEXT, lambda: tiny.text_rows(7, 7, 9, 5), "trace"),
    (tiny.DataClass, tiny.AB, lambda: tiny.floats(1, 4), "trace"),
    (tiny.Recurrent, tiny.XY, lambda: tiny.floats(1, 4), "script"),
    (tiny.Named, tiny.AB, lambda: tiny.floats(1, 4), "script"),
    (tiny.Dictionary, tiny.AB, lambda: tiny.floats(1, 4), "script"),
    (tiny.PythonSize, tiny.XY, lambda: tiny.floats(1, 4), "script"),
    (tiny.Unbatched, tiny.UNBATCHED, tiny.unbatched_rows, "trace"),
]  # fmt: skip


@pytest.mark.parametrize(("module", "signature", "rows", "method"), CASES, ids=[case[0].__name__ for case in CASES])
def test_auto(module: Any, signature: Signature, rows: Any, method: str, tmp_path: Path) -> None:
    case = tiny.case(module(), signature, rows())
    outcome = export(case, tmp_path)
    assert outcome.file == "model.pt"
    assert outcome.values == {"method": method}
    assert [item.name for item in tmp_path.iterdir()] == ["model.pt"]
    assert_answers(case, tmp_path / "model.pt")


def test_the_saved_forward_has_the_yamls_names_and_order(tmp_path: Path) -> None:
    case = tiny.case(tiny.Text(), tiny.TEXT, tiny.text_rows(7, 9))
    export(case, tmp_path)
    with no_deprecation_warnings():
        loaded = torch.jit.load(str(tmp_path / "model.pt"))
    arguments = loaded._c._get_method("forward").schema.arguments
    assert [item.name for item in arguments] == ["self", "ids", "mask"]
    ids = torch.ones(2, 4, dtype=torch.int64)
    scores, count = loaded(mask=ids, ids=ids)
    assert scores.shape == (2, 3)
    assert count.tolist() == [4, 4]


def test_one_output_is_a_tensor_not_a_tuple(tmp_path: Path) -> None:
    export(tiny.case(tiny.Mixed(), tiny.XY, tiny.floats(1, 4)), tmp_path)
    with no_deprecation_warnings():
        loaded = torch.jit.load(str(tmp_path / "model.pt"))
    assert isinstance(loaded(torch.ones(5, 4)), torch.Tensor)


def test_a_scripted_loop_runs_as_long_as_the_data_needs(tmp_path: Path) -> None:
    case = tiny.case(tiny.Recurrent(), tiny.XY, tiny.floats(1, 4))
    outcome = export(case, tmp_path)
    assert "Converting a tensor to a Python boolean" in outcome.notes[0] or "two traces differ" in outcome.notes[0]
    runtime = TorchScriptRuntime(tmp_path / "model.pt", tiny.XY)
    for scale in (0.01, 1.0, 50.0):
        x = np.full((3, 4), scale, np.float32)
        assert np.allclose(runtime.run({"x": x})["y"], case.source.runtime.run({"x": x})["y"], atol=1e-6)


def test_a_branch_that_all_samples_take_alike_is_found_by_its_warning(tmp_path: Path) -> None:
    positive = [{"x": np.abs(row["x"])} for row in tiny.floats(1, 4)]
    case = tiny.case(tiny.Branch(), tiny.XY, positive)
    outcome = export(case, tmp_path)
    assert outcome.values == {"method": "script"}
    assert outcome.notes[0].startswith(
        "scripted, because a trace would be frozen: Converting a tensor to a Python bool"
    )
    assert tiny.line_of("# of Branch") in outcome.notes[0]
    runtime = TorchScriptRuntime(tmp_path / "model.pt", tiny.XY)
    assert runtime.run({"x": -np.ones((1, 4), np.float32)})["y"].tolist() == [[-2.0] * 4]


def test_method_trace_refuses_a_frozen_branch_and_names_the_line(tmp_path: Path) -> None:
    case = tiny.case(tiny.Branch(), tiny.XY, tiny.floats(1, 4))
    with pytest.raises(StageError, match="tracing would freeze the model") as raised:
        export(case, tmp_path, "trace")
    assert raised.value.where == tiny.line_of("# of Branch")


def test_method_trace_refuses_a_frozen_batch_size_and_names_the_line(tmp_path: Path) -> None:
    case = tiny.case(tiny.PythonSize(), tiny.XY, tiny.floats(1, 4))
    with pytest.raises(StageError) as raised:
        export(case, tmp_path, "trace")
    assert raised.value.where == tiny.line_of("int(x.shape[0])")
    assert "the trace does not answer as the model" in raised.value.found


def test_method_script_is_honoured(tmp_path: Path) -> None:
    outcome = export(tiny.case(tiny.Recurrent(), tiny.XY, tiny.floats(1, 4)), tmp_path, "script")
    assert outcome == Outcome(file="model.pt", values={"method": "script"})


def test_neither_way_gives_both_reasons(tmp_path: Path) -> None:
    case = tiny.case(tiny.Unscriptable(), tiny.XY, tiny.floats(1, 4))
    with pytest.raises(StageError, match="neither traced nor scripted") as raised:
        export(case, tmp_path)
    assert "trace: " in raised.value.found
    assert "script: " in raised.value.found
    assert raised.value.where == tiny.line_of("# of Unscriptable")


def test_a_warning_that_torch_export_explains_away_is_noted(tmp_path: Path) -> None:
    shaped = tiny.signature([tiny.spec("x", "N", "L", 4)], [tiny.spec("y", "N", "L", 4)])
    case = tiny.case(tiny.AtMost16(), shaped, tiny.floats(1, 6, 4))
    outcome = export(case, tmp_path)
    assert outcome.values == {"method": "trace"}
    assert outcome.notes[0].startswith("the tracer warned, harmlessly as torch.export shows: Converting a tensor to")


def test_a_length_taken_another_way_is_not_explained_away(tmp_path: Path) -> None:
    shaped = tiny.signature([tiny.spec("x", "N", "L", 4)], [tiny.spec("y", "N", "L", 4)])
    case = tiny.case(tiny.LongOnesDiffer(), shaped, tiny.floats(1, 6, 4))
    outcome = export(case, tmp_path)
    assert outcome.values == {"method": "script"}
    assert "for L from 0 to 16 only, and it also runs at 17" in outcome.notes[0]
    long = np.ones((2, 20, 4), np.float32)
    assert (TorchScriptRuntime(tmp_path / "model.pt", shaped).run({"x": long})["y"] == 2).all()


def test_a_torchscript_source_is_wrapped_as_it_is(tmp_path: Path) -> None:
    with no_deprecation_warnings():
        scripted = torch.jit.script(tiny.Dictionary())
    case = tiny.case(scripted, tiny.AB, tiny.floats(1, 4))
    outcome = export(case, tmp_path, "trace")
    assert outcome.values == {"method": "as given"}
    assert list(outcome.notes) == ["`method: trace` has no effect: the source is TorchScript"]
    assert_answers(case, tmp_path / "model.pt")


def test_an_onnx_source_cannot_become_torchscript(tmp_path: Path) -> None:
    case = tiny.case(tiny.Mixed(), tiny.XY, tiny.floats(1, 4))
    source = SourceModel(kind="onnx", module=None, path=tmp_path / "x.onnx", runtime=case.source.runtime)
    with pytest.raises(StageError, match="cannot be made into TorchScript"):
        torchscript.export(source, signature=tiny.XY, golden=case.golden, method="auto", out_dir=tmp_path)


@pytest.mark.parametrize("name", ["pixel-values", "0", "class", "self"])
def test_names_that_cannot_be_arguments(name: str, tmp_path: Path) -> None:
    shaped = tiny.signature([tiny.spec(name, "N", 4)], [tiny.spec("y", "N", 4)])
    case = tiny.case(torch.nn.ReLU(), shaped, tiny.floats(1, 4, name=name))
    with pytest.raises(StageError, match="cannot be the name of a TorchScript argument") as raised:
        export(case, tmp_path)
    assert "rename the input, for example to input_" in raised.value.hint


def test_equal_models_give_equal_bytes_whatever_was_compiled_before(tmp_path: Path) -> None:
    files = []
    for number in range(3):
        torch.manual_seed(0)
        case = tiny.case(tiny.Mixed(), tiny.XY, tiny.floats(1, 4))
        folder = tmp_path / str(number)
        folder.mkdir()
        export(case, folder, "script" if number == 2 else "auto")
        files.append((folder / "model.pt").read_bytes())
    assert files[0] == files[1]
    assert files[0] != files[2]  # scripted: the comparison is not of empty files
    assert b"torch_mangle" not in files[0]
    assert b"debug_pkl" not in files[0]
    assert str(tmp_path).encode() not in files[0]
    assert b"tiny" not in files[0]


class Clamp(torch.autograd.Function):
    """A user's own function, which a trace can only call back."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clamp(min=0)


class Calls(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = Clamp.apply(x)
        return result


def test_what_torchscript_cannot_hold_is_the_models_fault(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="cannot be saved as TorchScript") as caught:
        export(tiny.case(Calls(), tiny.XY, tiny.floats(1, 4)), tmp_path)
    assert "Could not export Python function call 'Clamp'" in caught.value.found
