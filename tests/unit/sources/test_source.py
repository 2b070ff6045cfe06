from pathlib import Path

import pytest

from pipeline.base.errors import ConfigError
from pipeline.schema.model import Source

from .tiny import Workshop, digests, tools


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path)


def test_digests_name_every_file(workshop: Workshop) -> None:
    (workshop.folder / "w.pt").write_bytes(b"x")
    model = {"callable": "user.py:Net"}
    for settings, expected in (
        ({"checkpoint": {"file": "w.pt", "model": model}}, ["w.pt", "user.py"]),
        ({"train": {"model": model, "data": {"dataset": "digits"}}}, ["user.py"]),
        ({"torchscript": {"file": "w.pt"}}, ["w.pt"]),
        ({"model": {"library": "torchvision", "name": "resnet18"}}, []),
    ):
        assert list(digests(Source.model_validate(settings), workshop.resolve)) == expected
    (workshop.folder / "w.pt").unlink()
    with pytest.raises(ConfigError, match="no such file"):
        digests(Source.model_validate({"checkpoint": {"file": "w.pt", "model": model}}), workshop.resolve)


def test_tools_name_what_decides_the_result() -> None:
    resnet = {"library": "torchvision", "name": "resnet18"}
    trained = {"train": {"model": resnet, "data": {"dataset": "digits"}}}
    assert tools(Source.model_validate(trained)) == (
        "numpy", "pillow", "safetensors", "scikit-learn", "torch", "torchvision",
    )  # fmt: skip
    assert tools(Source.model_validate({"onnx": {"file": "x"}})) == ("onnx",)
    assert tools(Source.model_validate({"model": {**resnet, "library": "timm"}})) == ("safetensors", "timm", "torch")


def test_weights_are_readable_by_others(workshop: Workshop) -> None:
    workshop.prepare({"model": {"callable": "user.py:Net"}})
    assert (workshop.folder / "out/weights.safetensors").stat().st_mode & 0o777 == 0o644
