import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest

from pipeline.base import files
from pipeline.base.errors import StageError
from pipeline.base.step import Outcome
from pipeline.base.values import GoldenSamples
from pipeline.precision import blame, half, repair, simulate
from pipeline.precision.blame import Suspect
from pipeline.precision.repair import Budget, Verdict
from tests.unit.precision import blame_nets as nets

CONVS = nets.golden(12, 6, 6)
BUDGET = Budget(attempts=4, max_share=0.5)
Make = Callable[[Path, frozenset[str]], Outcome]


def made(kept: Collection[str]) -> Outcome:
    return Outcome(file="model.onnx", notes=("calibrated",), values={"opset": 20, "floats": sorted(kept)})


def quiet(_: str, __: float | None) -> None:
    """Nobody is told."""


def reduce_convs(tmp_path: Path, judge: Callable[[Path], Verdict], budget: Budget | None = BUDGET) -> Outcome:
    source = nets.uneven_convs(tmp_path / "fp32.onnx")
    (tmp_path / "out").mkdir()

    def make(folder: Path, keep: frozenset[str]) -> Outcome:
        nets.to_int8(source, folder, keep, CONVS)
        return made(keep)

    return repair.reduce(
        source, tmp_path / "out", make=make, judge=judge, samples=CONVS, budget=budget, progress=quiet
    )  # fmt: skip


def close(source: Path, samples: GoldenSamples, least_db: float) -> Callable[[Path], Verdict]:
    """Gates on real answers: SQNR in dB, and accuracy as a share that grows with it."""

    def judge(path: Path) -> Verdict:
        ratio = nets.sqnr_db(nets.answers(source, samples), nets.answers(path, samples))
        figures = {"accuracy": round(min(ratio, 100) / 100, 3), "max_abs": 10 ** (-ratio / 20)}
        passed = ratio >= least_db
        return Verdict(passed=passed, figures=figures, reason="" if passed else f"only {ratio:.1f} dB")

    return judge


class FakeBoard:
    """A hundred convertible nodes, n0 the worst."""

    samples: GoldenSamples

    def __init__(self, source: Path, reduced: Path, samples: GoldenSamples, work: Path, *, runnable: Any) -> None:
        FakeBoard.samples = samples
        assert reduced.read_text() == "[]"
        assert list(work.iterdir()) == []
        self.nodes = tuple(f"n{number}" for number in range(100))

    def worst_first(self) -> Iterator[Suspect]:
        for number in range(100):
            yield Suspect(name=f"n{number}", op="Conv", sqnr_db=float(number))


@pytest.fixture
def scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Runs reduce() with verdicts by the number of nodes kept; leaves what was made in ``scripted.kept``."""
    monkeypatch.setattr(blame, "Switchboard", FakeBoard)
    (tmp_path / "out").mkdir()

    def run(verdicts: Mapping[int, Verdict], budget: Budget, samples: GoldenSamples = CONVS) -> Outcome:
        def make(folder: Path, keep: frozenset[str]) -> Outcome:
            (folder / "model.onnx").write_text(str(sorted(keep)))
            return made(keep)

        def judge(path: Path) -> Verdict:
            return verdicts[path.read_text().count("n")]

        return repair.reduce(
            tmp_path / "fp32.onnx", tmp_path / "out", make=make, judge=judge, samples=samples, budget=budget,
            progress=quiet,
        )  # fmt: skip

    return run


def refused(**figures: float) -> Verdict:
    return Verdict(passed=False, figures=figures, reason="too bad")


PASSED = Verdict(passed=True, figures={"accuracy": 0.5}, reason="")


def test_the_layer_to_blame_is_kept_and_the_graph_passes(tmp_path: Path) -> None:
    source = tmp_path / "fp32.onnx"
    outcome = reduce_convs(tmp_path, close(source, CONVS, 30))
    properties = outcome.values
    (kept,) = properties["repair"].pop("kept")
    assert kept["node"] == "b"
    assert kept["op"] == "Conv"
    assert kept["sqnr_db"] < 5
    before, after = properties["repair"].pop("before"), properties["repair"].pop("after")
    assert before["accuracy"] < 0.05
    assert 0.3 < after["accuracy"] < 0.4
    assert properties == {"opset": 20, "floats": ["b"], "repair": {"attempts": 1, "passed": True, "convertible": 4}}
    change = f"accuracy {before['accuracy']:.2%} -> {after['accuracy']:.2%}".replace("%", " %")
    assert outcome.notes[0] == "calibrated"
    assert outcome.notes[1].startswith(f"repair: kept 1 of 4 nodes in fp32 (b Conv): {change}, max_abs ")
    assert [item.name for item in (tmp_path / "out").iterdir()] == ["model.onnx"]
    assert close(source, CONVS, 30)(tmp_path / "out/model.onnx").passed


def test_a_cancellation_in_half_precision_needs_both_its_nodes(tmp_path: Path) -> None:
    samples = nets.golden(5)
    source = nets.cancellation(tmp_path / "fp32.onnx")
    (tmp_path / "out").mkdir()
    told: list[str] = []

    def make(folder: Path, keep: frozenset[str]) -> Outcome:
        nets.to_half(source, folder, keep)
        return made(keep)

    def judge(path: Path) -> Verdict:
        return close(source, samples, 50)(nets.simulated(path, path.parent.parent))

    outcome = repair.reduce(
        source, tmp_path / "out", make=make, judge=judge, samples=samples, budget=BUDGET, runnable=nets.simulated,
        progress=lambda text, _: told.append(text),
    )  # fmt: skip
    assert [item["node"] for item in outcome.values["repair"]["kept"]] == ["sub", "add"]
    assert outcome.values["repair"]["attempts"] == 2
    assert outcome.notes[-1].startswith("repair: kept 2 of 5 nodes in fp32 (sub Sub, add Add): accuracy 1.")
    assert told == [
        "repair: comparing the fp32 and the reduced graph",
        "repair: attempt 1 of 4, 1 node in fp32",
        "repair: attempt 2 of 4, 2 nodes in fp32",
    ]
    assert [item.name for item in (tmp_path / "out").iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_nodes_without_names_are_repaired_too(precision: Any, tmp_path: Path) -> None:
    samples = nets.golden(5)
    source = nets.cancellation(tmp_path / "fp32.onnx")
    model = onnx.load(str(source))
    for node in model.graph.node:
        node.name = ""
    onnx.save(model, str(source))
    (tmp_path / "out").mkdir()

    def make(folder: Path, keep: frozenset[str]) -> Outcome:
        return half.convert(source, folder, precision=precision, keep_nodes=keep)

    def judge(path: Path) -> Verdict:
        played = Path(tempfile.mkdtemp(dir=tmp_path))
        return close(source, samples, 30)(simulate.half(path, played))

    outcome = repair.reduce(
        source, tmp_path / "out", make=make, judge=judge, samples=samples, budget=BUDGET, progress=quiet,
        runnable=simulate.half,
    )  # fmt: skip
    done = outcome.values["repair"]
    assert (done["passed"], done["convertible"]) == (True, 5)
    assert [item["node"] for item in done["kept"]] == ["sub", "add"]
    assert outcome.values["kept"] == ["add", "sub"]


def test_a_graph_that_passes_is_not_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(blame, "Switchboard")
    outcome = reduce_convs(tmp_path, lambda _: PASSED)
    assert outcome == made(())
    assert [item.name for item in (tmp_path / "out").iterdir()] == ["model.onnx"]


def test_without_a_budget_nobody_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(blame, "Switchboard")

    def judge(_: Path) -> Verdict:
        raise AssertionError("asked")

    assert reduce_convs(tmp_path, judge, None) == made(())
    assert (tmp_path / "out/model.onnx").is_file()


def test_same_input_same_bytes(tmp_path: Path) -> None:
    outcomes = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        outcome = reduce_convs(tmp_path / name, close(tmp_path / name / "fp32.onnx", CONVS, 90))
        outcomes.append((outcome, files.sha256_tree(tmp_path / name / "out")))
    assert outcomes[0] == outcomes[1]
    assert outcomes[0][0].values["repair"]["attempts"] == 2  # half of four nodes


def test_attempts_double_what_is_kept(tmp_path: Path, scripted: Callable[..., Outcome]) -> None:
    verdicts = {0: refused(accuracy=0.9), 1: refused(accuracy=0.91), 2: refused(accuracy=0.92)}
    verdicts |= {4: refused(accuracy=0.93), 8: PASSED}
    outcome = scripted(verdicts, Budget(attempts=9, max_share=1.0))
    assert outcome.values["floats"] == [f"n{number}" for number in range(8)]
    assert outcome.values["repair"]["attempts"] == 4
    assert outcome.values["repair"]["after"] == {"accuracy": 0.5}  # passing comes before accuracy
    assert list(outcome.notes) == [
        "calibrated",
        "repair: kept 8 of 100 nodes in fp32 (n0 Conv, n1 Conv, n2 Conv, n3 Conv, n4 Conv, …): "
        "accuracy 90.00 % -> 50.00 %",
    ]
    assert (tmp_path / "out/model.onnx").read_text() == str([f"n{number}" for number in range(8)])


def test_when_the_attempts_are_spent_the_most_accurate_try_is_taken(
    tmp_path: Path, scripted: Callable[..., Outcome]
) -> None:
    verdicts = {
        0: refused(accuracy=0.9, max_abs=0.1),
        1: refused(accuracy=0.942, max_abs=0.3),
        2: refused(accuracy=0.942, max_abs=0.2),
        4: refused(accuracy=0.94, max_abs=0.001),
    }
    outcome = scripted(verdicts, Budget(attempts=3, max_share=1.0))
    assert outcome.notes[-1] == (
        "repair: not enough after 3 attempts; kept 2 of 100 nodes in fp32 (n0 Conv, n1 Conv): "
        "accuracy 90.00 % -> 94.20 %, max_abs 0.1 -> 0.2"
    )
    assert outcome.values["repair"] == {
        "attempts": 3,
        "passed": False,
        "convertible": 100,
        "kept": [{"node": "n0", "op": "Conv", "sqnr_db": 0.0}, {"node": "n1", "op": "Conv", "sqnr_db": 1.0}],
        "before": {"accuracy": 0.9, "max_abs": 0.1},
        "after": {"accuracy": 0.942, "max_abs": 0.2},
    }
    assert (tmp_path / "out/model.onnx").read_text() == "['n0', 'n1']"


def test_without_labels_the_closest_try_is_taken_and_of_equals_the_one_that_keeps_least(
    tmp_path: Path, scripted: Callable[..., Outcome]
) -> None:
    verdicts = {0: refused(max_abs=0.3), 1: refused(max_abs=0.2), 2: refused(max_abs=0.2), 4: refused(max_abs=0.25)}
    outcome = scripted(verdicts, Budget(attempts=3, max_share=1.0))
    assert outcome.values["floats"] == ["n0"]
    assert (tmp_path / "out/model.onnx").read_text() == "['n0']"


def test_a_repair_that_only_harms_is_not_taken_and_is_told(tmp_path: Path, scripted: Callable[..., Outcome]) -> None:
    outcome = scripted({0: refused(accuracy=0.9), 1: refused(accuracy=0.8)}, Budget(attempts=1, max_share=1.0))
    assert outcome.notes[-1] == (
        "repair: not enough after 1 attempt; kept 0 of 100 nodes in fp32: accuracy 90.00 % -> 90.00 %"
    )
    assert (tmp_path / "out/model.onnx").read_text() == "[]"


@pytest.mark.parametrize(
    ("share", "tries"), [(0.0, []), (0.009, []), (0.01, [1]), (0.03, [1, 2, 3]), (0.29, [1, 2, 4, 8, 16, 29])]
)
def test_no_more_than_the_share_is_kept(share: float, tries: list[int], scripted: Callable[..., Outcome]) -> None:
    verdicts = {kept: refused(accuracy=kept / 100) for kept in (0, *tries)}
    outcome = scripted(verdicts, Budget(attempts=9, max_share=share))
    assert outcome.values["repair"]["attempts"] == len(tries)
    assert len(outcome.values["floats"]) == max(tries, default=0)
    assert outcome.values["repair"]["passed"] is False


def test_a_few_samples_from_all_over_are_compared(scripted: Callable[..., Outcome]) -> None:
    samples = nets.golden(1, count=100)
    scripted({0: refused(), 1: PASSED}, BUDGET, samples)
    numbers = [
        next(n for n, row in enumerate(samples.samples) if row is sample) for sample in FakeBoard.samples.samples
    ]
    assert numbers == list(range(0, 96, 12))


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    def judge(_: Path) -> Verdict:
        raise StageError("parity: the accuracy gate cannot be judged")

    with pytest.raises(StageError, match="cannot be judged"):
        reduce_convs(tmp_path, judge)
    assert list((tmp_path / "out").iterdir()) == []
