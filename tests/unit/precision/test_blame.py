import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from pipeline.base.errors import StageError
from pipeline.base.values import GoldenSamples, Sample
from pipeline.formats.onnx import graph
from pipeline.precision.blame import Runnable, Suspect, Switchboard
from tests.unit.precision import blame_nets as nets


def board(source: Path, reduced: Path, samples: GoldenSamples, runnable: Runnable = nets.as_is) -> Switchboard:
    work = reduced.parent / "work"
    work.mkdir()
    return Switchboard(source, reduced, samples, work, runnable=runnable)


def half_board(source: Path, samples: GoldenSamples, kind: int = TensorProto.FLOAT16) -> Switchboard:
    folder = source.parent / "half"
    folder.mkdir()
    return board(source, nets.to_half(source, folder, (), kind), samples, nets.simulated)


def int8_board(source: Path, samples: GoldenSamples, *, outputs: bool = False) -> Switchboard:
    folder = source.parent / "int8"
    folder.mkdir()
    return board(source, nets.to_int8(source, folder, (), samples, outputs=outputs), samples)


def names(suspects: Sequence[Suspect]) -> list[str]:
    return [suspect.name for suspect in suspects]


def chain(path: Path, ops: Sequence[tuple[str, str, list[str]]], **weights: np.ndarray) -> Path:
    nodes = [helper.make_node(op, inputs, [name]) for op, name, inputs in ops]
    return nets.write(path, nodes, [5], **weights)


@pytest.mark.parametrize("outputs", [False, True])
def test_all_switches_on_give_the_quantised_graphs_answers_and_none_the_fp32_ones(
    outputs: bool, tmp_path: Path
) -> None:
    samples = nets.golden(12, 6, 6)
    source = nets.uneven_convs(tmp_path / "fp32.onnx")
    switches = int8_board(source, samples, outputs=outputs)
    reduced = nets.answers(tmp_path / "int8/model.onnx", samples)
    expected = nets.sqnr_db(nets.answers(source, samples), reduced)
    assert expected < 2
    assert switches.sqnr_db(range(len(switches.nodes))) == pytest.approx(expected, abs=1e-6)
    assert switches.sqnr_db(()) == math.inf


@pytest.mark.parametrize("kind", nets.HALF)
def test_all_switches_on_give_the_half_precision_graphs_answers(kind: int, tmp_path: Path) -> None:
    samples = nets.golden(5)
    ops = [("Abs", "a", ["x"]), ("Sqrt", "b", ["a"]), ("Mul", "c", ["a", "b"]), ("Neg", "y", ["c"])]
    source = chain(tmp_path / "fp32.onnx", ops)
    switches = half_board(source, samples, kind)
    reduced = nets.answers(nets.simulated(tmp_path / "half/model.onnx", tmp_path), samples)
    expected = nets.sqnr_db(nets.answers(source, samples), reduced)
    assert expected == pytest.approx(50 if kind == TensorProto.BFLOAT16 else 68, abs=3)
    assert [node.name for node in switches.nodes] == ["a", "b", "c", "y"]
    assert switches.sqnr_db(range(4)) == pytest.approx(expected, abs=0.05)  # but for the rounding of what is passed on


def test_a_layer_with_uneven_weights_is_blamed_and_the_layers_after_it_are_not(tmp_path: Path) -> None:
    switches = int8_board(nets.uneven_convs(tmp_path / "fp32.onnx"), nets.golden(12, 6, 6))
    assert [node.name for node in switches.nodes] == ["a", "b", "c", "d"]  # Mul is not quantised
    first, *others = switches.worst_first()
    assert (first.name, first.op) == ("b", "Conv")
    assert first.sqnr_db < 2
    assert sorted(names(others)) == ["a", "c", "d"]
    assert all(35 < suspect.sqnr_db < 41 for suspect in others)


def test_a_tensor_quantised_for_its_reader_is_blamed_on_its_writer_as_well(tmp_path: Path) -> None:
    """``wide`` has one channel 4000 times the others, and one scale: it spoils ``b``, and so does writing it."""
    weight = (np.random.default_rng(1).normal(size=(4, 4, 3, 3)) / 6).astype(np.float32)
    up = np.array([1, 1, 4000, 1], np.float32).reshape(1, 4, 1, 1)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1] * 4),
        helper.make_node("Mul", ["a", "up"], ["wide"]),
        helper.make_node("Conv", ["wide", "unit"], ["b"]),
        helper.make_node("Mul", ["b", "down"], ["even"]),
        helper.make_node("Conv", ["even", "w"], ["y"], pads=[1] * 4),
    ]
    unit = np.eye(4, dtype=np.float32).reshape(4, 4, 1, 1)
    source = nets.write(tmp_path / "fp32.onnx", nodes, [4, 6, 6], w=weight, unit=unit, up=up, down=1 / up)
    switches = int8_board(source, nets.golden(4, 6, 6), outputs=True)
    alone = {node.name: switches.sqnr_db([number]) for number, node in enumerate(switches.nodes)}
    assert list(alone) == ["a", "wide", "b", "even", "y"]
    assert max(alone["wide"], alone["b"], alone["even"]) < 3
    assert min(alone["a"], alone["y"]) > 30


@pytest.mark.parametrize("kind", nets.HALF)
def test_both_ends_of_a_cancellation_are_blamed_the_reader_first(kind: int, tmp_path: Path) -> None:
    ranking = list(half_board(nets.cancellation(tmp_path / "fp32.onnx"), nets.golden(5), kind).worst_first())
    assert names(ranking)[:2] == ["sub", "add"]
    assert ranking[1].sqnr_db < 2
    assert ranking[2].sqnr_db > 50
    assert sorted(names(ranking)) == ["abs", "add", "mul", "sqrt", "sub"]


def test_an_overflow_is_the_worst_there_is(tmp_path: Path) -> None:
    source = chain(
        tmp_path / "fp32.onnx",
        [("Abs", "a", ["x"]), ("Mul", "big", ["a", "up"]), ("Mul", "small", ["big", "down"]), ("Sqrt", "y", ["small"])],
        up=np.float32(3e6), down=np.float32(1 / 3e6),
    )  # fmt: skip
    ranking = list(half_board(source, nets.golden(5)).worst_first())
    assert names(ranking)[:2] == ["small", "big"]
    assert [suspect.sqnr_db for suspect in ranking[:2]] == [-300, -300]
    assert all(suspect.sqnr_db > 60 for suspect in ranking[2:])


def test_an_error_that_the_graph_swallows_costs_nothing(tmp_path: Path) -> None:
    """An attention mask: -1e38 is not in float16's range, and does not matter after a softmax."""
    source = chain(
        tmp_path / "fp32.onnx",
        [("Add", "masked", ["x", "mask"]), ("Softmax", "soft", ["masked"]), ("Sqrt", "y", ["soft"])],
        mask=np.array([0, 0, -1e38, 0, -1e38], np.float32),
    )
    ranking = list(half_board(source, nets.golden(5)).worst_first())
    assert sorted(names(ranking)) == ["masked", "soft", "y"]
    assert all(suspect.sqnr_db > 60 for suspect in ranking)


def test_the_worst_output_counts(tmp_path: Path) -> None:
    source = nets.cancellation(tmp_path / "fp32.onnx")
    model = onnx.load(str(source))
    model.graph.output.append(helper.make_tensor_value_info("abs", TensorProto.FLOAT, ["N", 5]))
    onnx.save(model, str(source))
    ranking = list(half_board(source, nets.golden(5)).worst_first())
    assert names(ranking)[:2] == ["sub", "add"]
    assert ranking[0].sqnr_db < 2
    assert len(ranking) == 5


def test_a_node_that_changes_nothing_is_no_suspect(tmp_path: Path) -> None:
    ops = [("Abs", "a", ["x"]), ("Sqrt", "b", ["a"]), ("Mul", "nothing", ["b", "zero"]), ("Add", "y", ["a", "nothing"])]
    switches = half_board(chain(tmp_path / "fp32.onnx", ops, zero=np.float32(0)), nets.golden(5))
    assert [node.name for node in switches.nodes] == ["a", "b", "nothing", "y"]
    assert sorted(names(list(switches.worst_first()))) == ["a", "y"]


def with_branches(path: Path) -> Path:
    """y = |x + 4096| - 4096 computed in both branches of an If, after a Neg of a Neg outside."""

    def branch(name: str) -> onnx.GraphProto:
        nodes = [
            helper.make_node("Add", ["b", f"{name}.c"], [f"{name}.sum"], name=f"{name}.sum"),
            helper.make_node("Sub", [f"{name}.sum", f"{name}.c"], [f"{name}.y"], name=f"{name}.y"),
        ]
        constant = helper.make_tensor(f"{name}.c", TensorProto.FLOAT, [], [4096.0])
        output = helper.make_tensor_value_info(f"{name}.y", TensorProto.FLOAT, ["N", 5])
        return helper.make_graph(nodes, name, [], [output], [constant])

    nodes = [
        helper.make_node("Neg", ["x"], ["a"]),
        helper.make_node("Neg", ["a"], ["b"]),
        helper.make_node("If", ["yes"], ["chosen"], then_branch=branch("then"), else_branch=branch("else")),
        helper.make_node("Identity", ["chosen"], ["y"]),
    ]
    return nets.write(path, nodes, [5], yes=np.bool_(True))


def test_a_body_is_blamed_as_a_whole(tmp_path: Path) -> None:
    source = with_branches(tmp_path / "fp32.onnx")
    (tmp_path / "half").mkdir()
    reduced = nets.to_half(source, tmp_path / "half", ())

    def rounded(_: Path, folder: Path) -> Path:
        """What a device computes: what the If reads and its sum are rounded, the rest is left as it is."""
        model = onnx.load(str(source))
        model.graph.node.insert(2, helper.make_node("Cast", ["b"], ["b.half"], to=TensorProto.FLOAT16))
        model.graph.node.insert(3, helper.make_node("Cast", ["b.half"], ["b.back"], to=TensorProto.FLOAT))
        for attribute in model.graph.node[4].attribute:
            name = attribute.g.name
            nodes = list(attribute.g.node)
            nodes[0].input[0] = "b.back"
            nodes[1].input[0] = f"{name}.back"
            nodes[1:1] = [
                helper.make_node("Cast", [f"{name}.sum"], [f"{name}.half"], to=TensorProto.FLOAT16),
                helper.make_node("Cast", [f"{name}.half"], [f"{name}.back"], to=TensorProto.FLOAT),
            ]
            del attribute.g.node[:]
            attribute.g.node.extend(nodes)
        onnx.save(model, str(folder / "rounded.onnx"))
        return folder / "rounded.onnx"

    switches = board(source, reduced, nets.golden(5), rounded)
    assert [node.name for node in switches.nodes] == ["a", "b", "chosen", "y"]
    ranking = list(switches.worst_first())
    assert ranking[0].name == "chosen"
    assert ranking[0].op == "If"
    assert ranking[0].sqnr_db < 5
    assert all(suspect.sqnr_db > 60 for suspect in ranking[1:])


def test_only_as_many_runs_as_the_suspects_asked_for_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ops = [("Neg", f"n{number}" if number < 63 else "y", [f"n{number - 1}" if number else "x"]) for number in range(64)]
    ops[40:42] = [("Add", "n40", ["n39", "c"]), ("Sub", "n41", ["n40", "c"])]
    switches = half_board(chain(tmp_path / "fp32.onnx", ops, c=np.float32(4096)), nets.golden(5))
    measured: list[int] = []
    real: Callable[..., float] = Switchboard.sqnr_db

    def counting(self: Switchboard, on: Sequence[int]) -> float:
        measured.append(len(on))
        return real(self, on)

    monkeypatch.setattr(Switchboard, "sqnr_db", counting)
    ranking = switches.worst_first()
    assert next(ranking).name == "n41"
    assert next(ranking).name == "n40"
    assert measured == [8] * 8 + [1] * 8
    assert len(list(ranking)) == 62
    assert len(measured) == 8 + 64


def test_the_same_graphs_give_the_same_ranking(tmp_path: Path) -> None:
    rankings = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        switches = int8_board(nets.uneven_convs(tmp_path / name / "fp32.onnx"), nets.golden(12, 6, 6))
        rankings.append(list(switches.worst_first()))
    assert rankings[0] == rankings[1]


def test_weights_in_external_files(tmp_path: Path) -> None:
    samples = nets.golden(12, 6, 6)
    inline = nets.uneven_convs(tmp_path / "fp32.onnx")
    reduced = nets.to_int8(inline, tmp_path, (), samples)
    for name, model in (("source", inline), ("reduced", reduced)):
        (tmp_path / name).mkdir()
        graph.save(onnx.load(str(model)), tmp_path / name, external_data_threshold_bytes=0)
        assert (tmp_path / name / "model.onnx").is_dir()
    switches = board(tmp_path / "source/model.onnx", tmp_path / "reduced/model.onnx", samples)
    assert next(switches.worst_first()).name == "b"


def test_samples_of_several_shapes_and_without_a_batch_dimension(tmp_path: Path) -> None:
    samples = nets.golden(12, 6, 6)
    taller = nets.golden(12, 9, 6, count=3)
    source = nets.uneven_convs(tmp_path / "fp32.onnx")
    model = onnx.load(str(source))
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "H"
    del model.graph.value_info[:]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(model, str(source))
    mixed = replace(samples, samples=samples.samples + taller.samples)
    together = int8_board(source, mixed).sqnr_db([1])
    reduced = tmp_path / "int8/model.onnx"
    (reduced.parent / "work").rename(tmp_path / "first")
    alone = board(source, reduced, replace(mixed, batched=False)).sqnr_db([1])
    assert alone == pytest.approx(together, abs=1e-6)


def test_a_graph_that_was_not_converted_has_nothing_to_blame(tmp_path: Path) -> None:
    source = nets.uneven_convs(tmp_path / "fp32.onnx")
    switches = board(source, source, nets.golden(12, 6, 6))
    assert switches.nodes == ()
    assert list(switches.worst_first()) == []


def test_a_node_without_a_name_cannot_be_kept_and_gets_no_switch(tmp_path: Path) -> None:
    source = nets.cancellation(tmp_path / "fp32.onnx")
    model = onnx.load(str(source))
    model.graph.node[0].name = ""
    onnx.save(model, str(source))
    switches = half_board(source, nets.golden(5))
    assert [node.name for node in switches.nodes] == ["add", "sub", "mul", "sqrt"]


def test_a_graph_that_onnx_runtime_cannot_run_is_an_error(tmp_path: Path) -> None:
    source = nets.cancellation(tmp_path / "fp32.onnx")
    reduced = nets.to_half(source, tmp_path, (), TensorProto.BFLOAT16)
    with pytest.raises(StageError, match="cannot be run as one") as raised:
        board(source, reduced, nets.golden(5))
    assert "NOT_IMPLEMENTED" in raised.value.found


def test_a_sample_that_does_not_fit_is_an_error(tmp_path: Path) -> None:
    source = nets.cancellation(tmp_path / "fp32.onnx")
    wrong = GoldenSamples(
        samples=(Sample(inputs={"x": np.zeros((1, 7), np.float32)}, outputs={}),), batched=True, sha256=""
    )
    with pytest.raises(StageError, match="fail as one") as raised:
        board(source, nets.to_half(source, tmp_path, ()), wrong, nets.simulated)
    assert "Got: 7 Expected: 5" in raised.value.found
