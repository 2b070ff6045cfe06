import hashlib
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from pipeline.base import signatures
from pipeline.base.errors import ConfigError, StageError
from pipeline.base.step import Made, Outcome, Step, Task
from pipeline.base.values import GoldenSamples, Sample, Signature, TensorSpec
from pipeline.data import images, samples
from pipeline.images import preprocessing
from pipeline.schema.images import Preprocess
from pipeline.schema.model import Data, Samples

SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=("N", "L")),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=("N", 2)), TensorSpec(name="n", dtype="int64", shape=("N",))),
    batch="N",
)
UNBATCHED = Signature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=("T", 2)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=("T",)),),
    batch=None,
)


class Sums:
    """Answers with the sum and the length of each row."""

    def run(self, inputs):
        x = inputs["x"]
        assert len(x) == 1
        return {"y": np.stack([x.sum(1), -x.sum(1)], 1), "n": np.full(len(x), x.shape[1], np.int64)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "def data():\n"
        "    rows = [{'x': np.arange(3 + n % 2, dtype=np.float32) + n} for n in range(9)]\n"
        "    return {'train': (rows[:1], [0]), 'test': (rows[1:], np.arange(8) % 3), 'labels': ['a', 'b', 'c']}\n"
    )
    np.save(tmp_path / "x.npy", np.arange(24, dtype=np.float32).reshape(4, 6))
    return tmp_path


def make(folder: Path, *, count=5, seed=0, runtime=None, data="mine.py:data", signature=SIGNATURE, **kwargs):
    (folder / "out").mkdir(exist_ok=True)
    train = Data(callable=data) if data else None
    made = samples.make(
        Samples.model_construct(from_=kwargs.get("from_", "data.test"), count=count, seed=seed),
        train,
        signature=signature,
        resolve=lambda name: folder / name,
        runtime=runtime or Sums(),
        seed=0,
        out_dir=folder / "out",
    )
    return {**made.values, "notes": list(made.notes)}


def test_make_and_read(folder: Path) -> None:
    values = make(folder)
    assert (values["count"], values["batched"], values["labels"], values["notes"]) == (5, True, ["a", "b", "c"], [])
    golden = samples.read(folder / "out" / samples.FILE_NAME)
    assert (len(golden.samples), golden.batched, golden.sha256) == (5, True, values["sha256"])
    for sample in golden.samples:
        first = int(sample.inputs["x"][0, 0])  # the data's row number
        assert sample.target == (first - 1) % 3
        assert sample.inputs["x"].shape == (1, 3 + first % 2)
        assert_array_equal(sample.outputs["y"][0, 0], sample.inputs["x"].sum())
        assert sample.outputs["n"].dtype == np.int64
    assert len({int(sample.inputs["x"][0, 0]) for sample in golden.samples}) == 5


def test_bytes_are_the_same_whenever_it_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = []
    for _ in range(2):
        make(folder)
        digests.append(hashlib.sha256((folder / "out" / samples.FILE_NAME).read_bytes()).hexdigest())
        now = time.time()
        monkeypatch.setattr(time, "time", lambda now=now: now + 1e6)
        os.environ["TZ"] = "Asia/Tokyo"
    assert digests[0] == digests[1]


def test_the_digest_covers_every_value(folder: Path) -> None:
    first = make(folder)["sha256"]
    assert make(folder)["sha256"] == first
    assert make(folder, seed=1)["sha256"] != first
    sample = samples.read(folder / "out" / samples.FILE_NAME).samples[0]
    targets = np.zeros(1, np.int64)
    base = samples.digest([sample], targets, True)
    other = Sample(inputs=sample.inputs, outputs={**sample.outputs, "n": sample.outputs["n"] + 1})
    renamed = Sample(inputs={"z": sample.inputs["x"]}, outputs=sample.outputs)
    others = [
        ([other], targets, True),
        ([renamed], targets, True),
        ([sample], targets, False),
        ([sample], targets + 1, True),
    ]
    assert len({base, *(samples.digest(*changed) for changed in others)}) == 5


def test_more_than_there_are(folder: Path) -> None:
    values = make(folder, count=100)
    assert values["count"] == 8
    assert values["notes"] == ["all 8 held-out samples are used; `samples.count` asks for 100"]


def test_a_data_set_of_its_own_is_used_whole_and_has_no_targets(folder: Path) -> None:
    values = make(folder, count=100, data=None, from_=Data(arrays="x.npy"))
    assert values["count"] == 4
    assert {sample.target for sample in samples.read(folder / "out" / samples.FILE_NAME).samples} == {None}


def test_no_data(folder: Path) -> None:
    with pytest.raises(ConfigError, match="this source does not train"):
        make(folder, data=None)


def _labelled(*labels: str) -> Signature:
    output = TensorSpec(name="y", dtype="float32", shape=("N", 2), labels=labels)
    return Signature(inputs=SIGNATURE.inputs, outputs=(output, SIGNATURE.outputs[1]), batch="N")


def test_classes_are_matched_to_labels_by_name(folder: Path) -> None:
    assert make(folder, count=8, signature=_labelled("c", "x", "b", "a"))["notes"] == []
    targets = [sample.target for sample in samples.read(folder / "out" / samples.FILE_NAME).samples]
    assert targets == [3, 2, 0, 3, 2, 0, 3, 2]
    assert "sorted order" in make(folder, signature=_labelled("p", "q", "r"))["notes"][0]
    assert "accuracy is not measured" in make(folder, signature=_labelled("a", "b"))["notes"][0]
    assert samples.read(folder / "out" / samples.FILE_NAME).samples[0].target is None


def test_answers_that_do_not_fit_are_all_listed(folder: Path) -> None:
    class Wrong:
        def run(self, inputs):
            return {"y": np.zeros((1, 3), np.float32), "n": np.zeros((2,), np.int64)}

    with pytest.raises(StageError) as caught:
        make(folder, runtime=Wrong())
    assert caught.value.found.splitlines() == [
        "y has shape [1, 3]; the YAML says [N, 2]",
        "n has shape [2]; the YAML says [N]",
    ]
    assert "x float32[1," in caught.value.where


def test_nan_is_refused(folder: Path) -> None:
    class Nan(Sums):
        def run(self, inputs):
            return {**super().run(inputs), "y": np.full((1, 2), np.nan, np.float32)}

    with pytest.raises(StageError, match="y holds NaN"):
        make(folder, runtime=Nan())


def test_unreadable_files(folder: Path) -> None:
    make(folder)
    path = folder / "out" / samples.FILE_NAME
    whole = path.read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(StageError, match="not a readable samples file"):
            samples.read(path)
    with pytest.raises(StageError, match="not a readable samples file"):
        samples.read(folder / "absent.npz")
    np.savez(path, targets=np.zeros(2, np.int64), batched=True, sha256="x")
    with pytest.raises(StageError, match="0 of 2 samples"):
        samples.read(path)


def test_batches_cover_every_sample_and_are_full(folder: Path) -> None:
    make(folder, count=8)
    golden = samples.read(folder / "out" / samples.FILE_NAME)
    batches = list(samples.batches(golden, 3))
    assert {len(batch.inputs["x"]) for batch in batches} == {3}
    assert {float(row[0]) for batch in batches for row in batch.inputs["x"]} == {float(n) for n in range(1, 9)}
    for batch in batches:
        assert batch.target is None
        assert_array_equal(batch.outputs["y"][:, 0], batch.inputs["x"].sum(1))
    assert len(list(samples.batches(golden, 1))) == 8
    large = list(samples.batches(golden, 32))
    assert [batch.inputs["x"].shape for batch in large] == [(32, 4), (32, 3)]


def test_batches_without_a_batch_dimension() -> None:
    sample = Sample(inputs={"x": np.zeros((3, 2), np.float32)}, outputs={"y": np.zeros(3, np.float32)})
    golden = GoldenSamples(samples=(sample, sample), batched=False, sha256="")
    assert len(list(samples.batches(golden, 1))) == 2
    with pytest.raises(ValueError, match="no batch dimension"):
        list(samples.batches(golden, 2))


def test_unbatched_shapes_are_checked_too(folder: Path) -> None:
    np.save(folder / "u.npy", np.ones((2, 5, 2), np.float32))

    class RowSums:
        def run(self, inputs):
            return {"y": inputs["x"].sum(1)}

    values = make(folder, data=None, from_=Data(arrays="u.npy"), signature=UNBATCHED, runtime=RowSums())
    assert (values["count"], values["batched"]) == (2, False)
    assert samples.read(folder / "out" / samples.FILE_NAME).samples[0].outputs["y"].tolist() == [2.0] * 5


def calibrate(folder: Path, *, count: int, golden: GoldenSamples, trained: bool = True, own: str = ""):
    (folder / "many.py").write_text(
        "import numpy as np\n"
        "def data():\n"
        "    rows = [{'x': np.full(3, n, np.float32)} for n in range(60)]\n"
        "    return {'train': (rows[:40], np.zeros(40, np.int64)), 'test': (rows[20:], np.zeros(40, np.int64))}\n"
        "def few():\n"
        "    return {'test': ([{'x': np.full(3, n, np.float32)} for n in range(6)], None)}\n"
    )
    out = folder / "calibration"
    out.mkdir(exist_ok=True)
    judges = folder / "golden"
    samples.write(judges, golden.samples, np.full(len(golden.samples), -1), golden.batched)
    step = Step(
        name="calibration",
        function="pipeline.data.samples:calibration",
        arguments={
            "data": Data(callable=own or "many.py:data").model_dump(mode="json"),
            "count": count,
            "trained": trained,
            "own": bool(own),
            "seed": 3,
            "signature": signatures.to_json(SIGNATURE),
        },
        unkeyed={"folder": str(folder), "where": "m.yaml:9:5"},
    )
    upstream = {"samples": Made(directory=judges, outcome=Outcome(), digest="", cached=False)}
    task = Task(step=step, upstream=upstream, out_dir=out, partial_dir=out, log_path=folder / "log")
    made = samples.calibration(task, lambda text, share: None)
    return {**made.values, "notes": list(made.notes)}, samples.read(out / samples.FILE_NAME)


def judging(*rows: int) -> GoldenSamples:
    chosen = tuple(Sample(inputs={"x": np.full((1, 3), row, np.float32)}, outputs={}) for row in rows)
    return GoldenSamples(samples=chosen, batched=True, sha256="")


def test_calibration_samples_come_from_the_training_part_and_never_judge(folder: Path) -> None:
    golden = judging(*range(20, 36))
    values, found = calibrate(folder, count=20, golden=golden)
    rows = [int(sample.inputs["x"][0, 0]) for sample in found.samples]
    assert (values["count"], len(set(rows)), values["notes"]) == (20, 20, [])
    assert set(rows) <= {*range(20), *range(36, 40)}
    assert all(sample.outputs == {} and sample.inputs["x"].shape == (1, 3) for sample in found.samples)
    assert calibrate(folder, count=20, golden=golden)[0] == values
    values, found = calibrate(folder, count=100, golden=golden)
    assert (len(found.samples), values["notes"]) == (24, ["all 24 samples are used; 100 were asked for"])


def test_too_few_calibration_samples_are_an_error_and_leave_nothing(folder: Path) -> None:
    with pytest.raises(StageError, match="15 samples are left to calibrate on; 16 are the least"):
        calibrate(folder, count=128, golden=judging(*range(25)))
    assert list((folder / "calibration").iterdir()) == []


@pytest.mark.parametrize(
    ("own", "golden", "found", "hint"),
    [
        ("many.py:few", judging(100), "6 in all", "name a larger data set under `calibration.from`"),
        ("many.py:few", judging(3), "6 in all, 1 of them golden samples", "name a larger data set"),
        ("", judging(*range(25)), "40 in all, 25 of them golden samples", "give the variant data of its own"),
    ],
)
def test_too_few_calibration_samples_are_told_as_what_they_are(
    folder: Path, own: str, golden: GoldenSamples, found: str, hint: str
) -> None:
    with pytest.raises(StageError) as caught:
        calibrate(folder, count=20, golden=golden, own=own, trained=not own)
    assert caught.value.found.partition(":")[0] == found
    assert caught.value.hint.startswith(hint)
    assert caught.value.where == "m.yaml:9:5"


def test_chunks_hold_every_sample_once_in_runs_of_equal_shape() -> None:
    widths = (2, 3, 2, 2, 3)
    rows = tuple(Sample(inputs={"x": np.full((1, width), row)}, outputs={}) for row, width in enumerate(widths))
    golden = GoldenSamples(samples=rows, batched=True, sha256="")
    found = [[int(sample.inputs["x"][0, 0]) for sample in chunk] for chunk in samples.chunks(golden, 2)]
    assert found == [[0, 2], [3], [1, 4]]
    alone = samples.chunks(GoldenSamples(samples=rows, batched=False, sha256=""), 2)
    assert [len(chunk) for chunk in alone] == [1, 1, 1, 1, 1]


def test_image_files_stay_with_their_samples(tmp_path: Path) -> None:
    shapes = Signature(
        inputs=(TensorSpec(name="image", dtype="float32", shape=("N", 1, 8, 8)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("N", 1)),),
        batch="N",
    )
    how = images.of_section(Preprocess(mean=(0.5,)), shapes)

    class Mean:
        def run(self, inputs):
            return {"y": inputs["image"].mean(axis=(1, 2, 3))[:, None]}

    golden = []
    for signature in (shapes, replace(shapes, image=how)):
        samples.make(
            Samples.model_construct(from_=Data(dataset="digits"), count=7, seed=0),
            None,
            signature=signature,
            resolve=lambda name: tmp_path / name,
            runtime=Mean(),
            seed=0,
            out_dir=tmp_path,
        )
        golden.append(samples.read(tmp_path / samples.FILE_NAME))
    assert {sample.image for sample in golden[0].samples} == {b""}
    assert len({sample.image for sample in golden[1].samples}) == 7
    assert golden[0].sha256 != golden[1].sha256
    for sample in golden[1].samples:
        assert_array_equal(preprocessing.tensor(sample.image, how)[np.newaxis], sample.inputs["image"])
