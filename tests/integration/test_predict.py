"""`predict` against the real tritonserver."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.base.errors import ConfigError, SmokeError
from pipeline.servers.triton.client import prediction
from tests.integration.shop import LABELS, WEIGHTS, Shop, open_shop


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    with open_shop(tmp_path_factory.mktemp("shop")) as opened:
        yield opened


def test_predict_gives_labels_and_probabilities(shop: Shop, tmp_path: Path) -> None:
    row = np.array([1.0, 2.0, -1.0, 0.5], np.float64)
    np.save(tmp_path / "row.npy", row)
    rows = prediction.predict(shop.server.http_url, "good", tmp_path / "row.npy", top=2)
    scores = row @ WEIGHTS
    expected = np.exp(scores) / np.exp(scores).sum()
    order = np.argsort(-expected)
    assert [item["label"] for item in rows] == [LABELS[index] for index in order[:2]]
    assert [item["probability"] for item in rows] == pytest.approx(expected[order[:2]].tolist(), rel=1e-5)
    assert json.loads(json.dumps(rows)) == rows
    np.save(tmp_path / "many.npy", np.tile(row, (11, 1)))  # more than max_batch_size
    many = prediction.predict(shop.server.http_url.removeprefix("http://"), "good", tmp_path / "many.npy", top=1)
    assert [item["sample"] for item in many] == list(range(11))
    assert {item["label"] for item in many} == {LABELS[order[0]]}


def test_predict_sends_an_image_as_the_model_wants_it(shop: Shop, tmp_path: Path) -> None:
    Image.new("RGB", (40, 20), (255, 51, 102)).save(tmp_path / "red.png")
    rows = prediction.predict(shop.server.http_url, "colour", tmp_path / "red.png", top=3)
    scores = np.array([(1.0 - 0.5) / 0.25, 0.2, 0.4])
    expected = np.exp(scores) / np.exp(scores).sum()
    assert [item["label"] for item in rows] == ["0", "2", "1"]
    assert [item["probability"] for item in rows] == pytest.approx(expected[[0, 2, 1]].tolist(), rel=1e-4)


def test_predict_gives_raw_outputs_of_a_model_that_does_not_classify(shop: Shop, tmp_path: Path) -> None:
    np.savez(tmp_path / "pair.npz", ids=np.array([[4, 5, 6]], np.int32), mask=np.array([[1, 0, 1]]))
    rows = prediction.predict(shop.server.http_url, "pair", tmp_path / "pair.npz", top=5)
    assert rows[0] == {"output": "total", "dtype": "int64", "shape": [1, 1], "values": [[10]]}
    assert rows[1]["values"][0][0] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("model", "content", "text"),
    [
        ("absent", np.zeros(4, np.float32), "served there: colour, good, pair, plain, rows, swapped, two"),
        ("good", np.zeros(5, np.float32), "x takes \\[-1, 4\\], found \\[5\\]"),
        ("good", np.zeros(4, "U3"), "input x takes float32"),
        ("pair", np.zeros((1, 3), np.int64), "numpy.savez\\(file, ids=…, mask=…\\)"),
        ("pair", {"ids": np.zeros((1, 3)), "mask": np.zeros((1, 3))}, "input ids takes int64"),
        ("pair", {"ids": np.zeros((1, 3), int), "mask": np.zeros((2, 3), int)}, "differ in their number of samples"),
    ],
)
def test_predict_refuses_what_does_not_fit(shop: Shop, tmp_path: Path, model: str, content, text: str) -> None:
    file = tmp_path / ("data.npz" if isinstance(content, dict) else "data.npy")
    np.savez(file, **content) if isinstance(content, dict) else np.save(file, content)
    with pytest.raises(ConfigError, match=text):
        prediction.predict(shop.server.http_url, model, file, top=1)


def test_predict_without_a_server(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros(4, np.float32))
    with pytest.raises(SmokeError, match=r"predict: no answer from 127.0.0.1:9"):
        prediction.predict("127.0.0.1:9", "good", tmp_path / "x.npy", top=1)


def test_predict_refuses_files_before_sending_them(shop: Shop, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"\.txt is not supported"):
        prediction.predict(shop.server.http_url, "good", tmp_path / "note.txt", top=1)
    (tmp_path / "bad.npy").write_bytes(b"\x93NUMPY broken")
    with pytest.raises(ConfigError, match="not a readable array file"):
        prediction.predict(shop.server.http_url, "good", tmp_path / "bad.npy", top=1)
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(ConfigError, match="not a readable image"):
        prediction.predict(shop.server.http_url, "colour", tmp_path / "bad.png", top=1)
    with pytest.raises(ConfigError, match="no such file"):
        prediction.predict(shop.server.http_url, "good", tmp_path / "absent.npy", top=1)
    Image.new("L", (4, 4)).save(tmp_path / "grey.png")
    with pytest.raises(ConfigError, match="input x is no image"):
        prediction.predict(shop.server.http_url, "good", tmp_path / "grey.png", top=1)
