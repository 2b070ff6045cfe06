from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from pipeline.base.errors import ConfigError, StageError
from pipeline.base.values import Signature, TensorSpec
from pipeline.data import datasets
from pipeline.schema.model import Data

IMAGE = Signature(
    inputs=(TensorSpec(name="image", dtype="float32", shape=("N", 1, 8, 8), layout="NCHW"),),
    outputs=(TensorSpec(name="logits", dtype="float32", shape=("N", 10)),),
    batch="N",
)
TEXT = Signature(
    inputs=(
        TensorSpec(name="ids", dtype="int64", shape=("N", "L")),
        TensorSpec(name="mask", dtype="int64", shape=("N", "L")),
    ),
    outputs=(TensorSpec(name="logits", dtype="float32", shape=("N", 2)),),
    batch="N",
)
SEQUENCE = Signature(
    inputs=(TensorSpec(name="rows", dtype="float32", shape=("T", 8)),),
    outputs=(TensorSpec(name="logits", dtype="float32", shape=(10,)),),
    batch=None,
)


def load(data: Data, signature: Signature, folder: Path = Path(), **kwargs) -> datasets.Dataset:
    return datasets.load(data, signature=signature, resolve=lambda name: folder / name, seed=0, **kwargs)


def test_digits() -> None:
    found = load(Data(dataset="digits"), IMAGE)
    assert found.train is not None
    assert (len(found.train.inputs), len(found.test.inputs), found.labels) == (1438, 359, tuple("0123456789"))
    sample = found.test.inputs[0]["image"]
    assert (sample.shape, sample.dtype) == ((1, 1, 8, 8), np.float32)
    assert 0 <= sample.min() < sample.max() <= 1
    from sklearn.datasets import load_digits

    row = datasets.stratified_split(load_digits().target, 0.2, 0)[1][0]
    assert_array_equal(sample[0, 0], np.rint(load_digits().images[row] * 255 / 16).astype(np.float32) / 255)
    assert found.test.targets is not None
    assert found.test.targets[0] == load_digits().target[row]


def test_digits_stay_split_for_judging_alone() -> None:
    assert len(load(Data(dataset="digits"), IMAGE, split=False).test.inputs) == 359


def test_split_is_stratified_disjoint_and_seeded() -> None:
    targets = np.repeat([0, 1, 2, 3], [50, 10, 2, 1])
    train, test = datasets.stratified_split(targets, 0.2, 3)
    assert sorted([*train, *test]) == list(range(63))
    assert np.bincount(targets[test], minlength=4).tolist() == [10, 2, 1, 0]
    assert test.tolist() == datasets.stratified_split(targets, 0.2, 3)[1].tolist()
    assert test.tolist() != datasets.stratified_split(targets, 0.2, 4)[1].tolist()


def test_arrays_of_two_inputs(tmp_path: Path) -> None:
    ids = np.arange(40, dtype=np.int64).reshape(10, 4)
    np.savez(tmp_path / "a.npz", ids=ids, mask=np.ones_like(ids), target=np.repeat([0, 1], 5))
    data = Data(arrays="a.npz")
    found = load(data, TEXT, tmp_path)
    assert found.train is not None
    assert (len(found.train.inputs), len(found.test.inputs)) == (8, 2)
    assert found.test.inputs[0]["ids"].shape == (1, 4)
    whole = load(data, TEXT, tmp_path, split=False)
    assert (whole.train, len(whole.test.inputs)) == (None, 10)
    assert whole.test.targets is not None
    assert whole.test.targets.tolist() == [0] * 5 + [1] * 5


def test_one_npy_without_targets(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((3, 5, 8), np.float32))
    found = load(Data(arrays="a.npy"), SEQUENCE, tmp_path)
    assert (found.train, found.test.targets, len(found.test.inputs)) == (None, None, 3)
    assert found.test.inputs[2]["rows"].shape == (5, 8)
    with pytest.raises(ConfigError, match="holds one array and the model has 2 inputs"):
        load(Data(arrays="a.npy"), TEXT, tmp_path)


def test_arrays_that_do_not_fit_are_all_listed(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "a.npz",
        ids=np.zeros((3, 4), np.int32),
        mask=np.zeros((3, 5), np.int64),
        target=np.zeros(3, np.float32),
    )
    with pytest.raises(StageError) as caught:
        load(Data(arrays="a.npz"), TEXT, tmp_path)
    assert caught.value.found.splitlines() == [
        "target is float32; expected integers, one class index per sample",
        "ids is int32; expected int64",
        "mask has shape [5] per sample; expected [L]",
    ]
    np.savez(tmp_path / "b.npz", ids=np.zeros((3, 4), np.int64), extra=np.zeros(3))
    with pytest.raises(StageError) as caught:
        load(Data(arrays="b.npz"), TEXT, tmp_path)
    assert caught.value.found.splitlines() == ["no array for input mask", "extra is not an input (they are ids, mask)"]
    np.savez(tmp_path / "c.npz", ids=np.zeros((3, 4), np.int64), mask=np.zeros((2, 4), np.int64))
    with pytest.raises(StageError, match="numbers of samples differ: ids 3, mask 2"):
        load(Data(arrays="c.npz"), TEXT, tmp_path)


def test_unreadable_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "pickled.npz", ids=np.asarray([{}], object), mask=np.zeros((1, 1), np.int64))
    (tmp_path / "text.npz").write_text("no zip")
    (tmp_path / "text.npy").write_text("no array")
    for name, signature in (("pickled.npz", TEXT), ("text.npz", TEXT), ("text.npy", SEQUENCE)):
        with pytest.raises(StageError, match="not a readable array file") as caught:
            load(Data(arrays=name), signature, tmp_path)
        assert caught.value.where == str(tmp_path / name)
    with pytest.raises(ConfigError, match="no such file"):
        load(Data(arrays="absent.npz"), TEXT, tmp_path)


def _images(folder: Path, names: list[str]) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((10, 10), 20 * number, np.uint8)).save(folder / name)


def test_image_folder_of_classes(tmp_path: Path) -> None:
    _images(tmp_path, [f"{label}/{number}.png" for label in ("b", "a") for number in range(5)])
    found = load(Data(images="."), IMAGE, tmp_path)
    assert found.train is not None
    assert (len(found.train.inputs), len(found.test.inputs), found.labels) == (8, 2, ("a", "b"))
    assert found.test.inputs[0]["image"].shape == (1, 1, 8, 8)
    whole = load(Data(images="."), IMAGE, tmp_path, split=False)
    assert whole.test.targets is not None
    assert whole.test.targets.tolist() == [0] * 5 + [1] * 5
    assert float(whole.test.inputs[0]["image"].max()) == pytest.approx(100 / 255)


def test_image_folder_with_parts_and_flat(tmp_path: Path) -> None:
    _images(tmp_path / "parts", ["train/a/1.png", "train/b/1.png", "test/b/2.png"])
    found = load(Data(images="parts"), IMAGE, tmp_path)
    assert found.train is not None
    assert found.train.targets is not None
    assert found.test.targets is not None
    assert (found.train.targets.tolist(), found.test.targets.tolist()) == ([0, 1], [1])
    _images(tmp_path / "flat", ["1.png", "2.png"])
    flat = load(Data(images="flat"), IMAGE, tmp_path)
    assert (flat.train, flat.test.targets, flat.labels, len(flat.test.inputs)) == (None, None, (), 2)


def test_only_the_chosen_images_are_read(tmp_path: Path) -> None:
    _images(tmp_path, ["1.png"])
    (tmp_path / "2.png").write_text("broken")
    found = load(Data(images="."), IMAGE, tmp_path)
    assert found.test.inputs[0]["image"].shape == (1, 1, 8, 8)
    with pytest.raises(StageError, match="not a readable image"):
        found.test.inputs[1]


def _user(tmp_path: Path, body: str, signature: Signature = SEQUENCE) -> datasets.Dataset:
    (tmp_path / "mine.py").write_text(f"import numpy as np\ndef data(**args):\n    {body}\n")
    return load(Data(callable="mine.py:data", args={"n": 2}), signature, tmp_path)


def test_callable_with_a_list_of_samples(tmp_path: Path) -> None:
    found = _user(
        tmp_path,
        "r = [{'rows': np.zeros((t, 8), np.float32)} for t in (5, 6)]; "
        "return {'train': (r, [0, 1]), 'test': (r[:args['n'] - 1], np.array([1])), 'labels': ['x', 'y']}",
    )
    assert found.train is not None
    assert [found.train.inputs[row]["rows"].shape for row in (0, 1)] == [(5, 8), (6, 8)]
    assert (len(found.test.inputs), found.labels) == (1, ("x", "y"))


def test_callable_samples_gain_the_batch_dimension(tmp_path: Path) -> None:
    row = "np.zeros(4, np.int64)"
    found = _user(tmp_path, f"return {{'test': ([{{'ids': {row}, 'mask': {row}}}], None)}}", TEXT)
    assert found.test.inputs[0]["mask"].shape == (1, 4)
    found = _user(tmp_path, "a = np.zeros((3, 4), np.int64); return {'test': ({'ids': a, 'mask': a}, [0, 1, 0])}", TEXT)
    assert (len(found.test.inputs), found.test.inputs[2]["ids"].shape) == (3, (1, 4))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 3", "returned something else than a data set"),
        ("return {'tset': 3}", "keys tset"),
        ("return {'test': 3}", r"a part is \(inputs, targets\)"),
        ("return {'test': ([], None)}", "no samples"),
        ("return {'test': ([{'rows': np.zeros((5, 7), np.float32)}], None)}", r"sample 0: rows has shape \[5, 7\]"),
        ("return {'test': ([{'rows': np.zeros((5, 8))}], [0])}", "sample 0: rows is float64; expected float32"),
        ("return {'test': ([{'rows': np.zeros((5, 8), np.float32)}], [0, 1])}", "expected 1 integers"),
        ("return {'test': ([{'row': 1}], None)}", "sample 0: no array for input rows"),
    ],
)
def test_callable_that_returns_nonsense(tmp_path: Path, body: str, message: str) -> None:
    with pytest.raises(StageError, match=message):
        _user(tmp_path, body)


def test_digests(tmp_path: Path) -> None:
    def digests(data: Data) -> dict[str, str]:
        return datasets.digests(data, lambda name: tmp_path / name)

    assert digests(Data(dataset="mnist")) == {}
    np.save(tmp_path / "a.npy", np.zeros(3))
    assert list(digests(Data(arrays="a.npy"))) == ["a.npy"]
    _images(tmp_path / "photos", ["x/1.png", "x/2.png"])
    before = digests(Data(images="photos"))
    assert list(before) == ["photos/x/1.png", "photos/x/2.png"]
    (tmp_path / "photos/README.md").write_text("no image")
    assert digests(Data(images="photos")) == before
    (tmp_path / "photos/x/1.png").rename(tmp_path / "photos/x/3.png")
    assert digests(Data(images="photos")) != before
    with pytest.raises(ConfigError):
        digests(Data(arrays="absent.npy"))


def test_tools() -> None:
    assert "scikit-learn" in datasets.tools(Data(dataset="digits"))
    assert "torchvision" in datasets.tools(Data(dataset="cifar10"))
    assert "pillow" in datasets.tools(Data(images="x"))
