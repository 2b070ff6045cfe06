import hashlib
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.base.errors import ConfigError, MissingError, StageError
from pipeline.base.values import Signature, TensorSpec
from pipeline.schema.model import Model
from pipeline.sources import library

from .tiny import Workshop

BERT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 50}
TOKENS = Signature(
    inputs=(
        TensorSpec(name="input_ids", dtype="int64", shape=("N", "L")),
        TensorSpec(name="attention_mask", dtype="int64", shape=("N", "L")),
    ),
    outputs=(TensorSpec(name="logits", dtype="float32", shape=("N", 2)),),
    batch="N",
)
PICTURE = Signature(
    inputs=(TensorSpec(name="image", dtype="float32", shape=("N", 3, 32, 32)),),
    outputs=(TensorSpec(name="logits", dtype="float32", shape=("N", 4)),),
    batch="N",
)


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch_home"))
    monkeypatch.setattr(library, "_reachable", lambda url: False)
    return Workshop(tmp_path)


def build(workshop: Workshop, **model) -> library.Built:
    return library.build(Model(**model), workshop.resolve)


def test_torchvision_by_name(workshop: Workshop) -> None:
    settings = {"model": {"library": "torchvision", "name": "squeezenet1_1", "args": {"num_classes": 4}}}
    values = workshop.prepare(settings, PICTURE)
    assert values["notes"] == ["no `weights`: the model has random ones"]
    first = hashlib.sha256((workshop.folder / "out/weights.safetensors").read_bytes()).hexdigest()
    workshop.prepare(settings, PICTURE)
    assert hashlib.sha256((workshop.folder / "out/weights.safetensors").read_bytes()).hexdigest() == first
    answer = workshop.open(settings, PICTURE).runtime.run({"image": np.ones((2, 3, 32, 32), np.float32)})
    assert answer["logits"].shape == (2, 4)


def test_torchvision_weights_from_its_local_cache(workshop: Workshop) -> None:
    from torchvision import models

    torch.manual_seed(0)
    module = models.squeezenet1_1().eval()
    enum = models.get_model_weights("squeezenet1_1")["IMAGENET1K_V1"]
    local = workshop.folder / "torch_home/hub/checkpoints" / Path(enum.url).name
    local.parent.mkdir(parents=True)
    torch.save(module.state_dict(), local)
    settings = {"model": {"library": "torchvision", "name": "squeezenet1_1", "weights": "DEFAULT"}}
    signature = Signature(
        inputs=PICTURE.inputs, outputs=(TensorSpec(name="logits", dtype="float32", shape=("N", 1000)),), batch="N"
    )
    values = workshop.prepare(settings, signature)
    assert (len(values["labels"]), values["labels"][1], values["notes"]) == (1000, "goldfish", [])
    local.unlink()  # opening needs neither the cache nor the network
    x = np.ones((1, 3, 32, 32), np.float32)
    found = workshop.open(settings, signature).runtime.run({"image": x})["logits"]
    np.testing.assert_array_equal(found, module(torch.from_numpy(x)).detach().numpy())


def test_torchvision_offline(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "urlopen", offline)
    with pytest.raises(MissingError, match="could not be fetched") as caught:
        build(workshop, library="torchvision", name="resnet18", weights="DEFAULT")
    assert caught.value.exit_code == 3
    assert str(workshop.folder / "torch_home/hub/checkpoints/resnet18-f37072fd.pth") in caught.value.hint
    assert "no network" in caught.value.found


@pytest.mark.parametrize(
    ("model", "message", "hint"),
    [
        ({"library": "torchvision", "name": "resnt18"}, "no model 'resnt18'", "did you mean resnet18"),
        ({"library": "timm", "name": "resnt18"}, "no model 'resnt18'", "did you mean resnet18"),
        ({"library": "transformers", "name": "brt"}, "no model 'brt'", "did you mean bert"),
        ({"library": "transformers", "name": "BertMdel"}, "no model 'BertMdel'", "did you mean BertModel"),
        ({"library": "torchvision", "name": "resnet18", "weights": "IMAGENET"}, "no weights 'IMAGENET'", ""),
        ({"library": "timm", "name": "resnet18", "weights": "V1"}, "no weights 'V1'", "write DEFAULT"),
        ({"library": "transformers", "name": "bert", "weights": "V1"}, "no weights 'V1'", "write DEFAULT"),
        ({"library": "torchvision", "name": "resnet18", "args": {"num_clases": 3}}, "cannot be built", ""),
    ],
)
def test_wrong_names_and_arguments(workshop: Workshop, model: dict, message: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build(workshop, **model)
    assert hint in caught.value.hint


def test_timm_by_name_and_offline(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    built = build(workshop, library="timm", name="resnet18.a1_in1k", args={"num_classes": 7})
    assert built.module.fc.out_features == 7
    with pytest.raises(MissingError, match="weights of timm's resnet18 could not be fetched") as caught:
        build(workshop, library="timm", name="resnet18", weights="DEFAULT")
    assert "timm/resnet18.a1_in1k" in caught.value.hint
    assert "$HF_HOME" in caught.value.hint
    from huggingface_hub import constants

    assert constants.HF_HUB_OFFLINE is False


def test_transformers_by_type_and_by_class(workshop: Workshop) -> None:
    settings = {"model": {"library": "transformers", "name": "bert", "args": BERT}}
    workshop.prepare(settings, TOKENS)
    ids = np.asarray([[1, 2, 3, 0], [4, 5, 0, 0]], np.int64)
    answer = workshop.open(settings, TOKENS).runtime.run(
        {"input_ids": ids, "attention_mask": (ids > 0).astype(np.int64)}
    )
    assert answer["logits"].shape == (2, 2)
    named = build(workshop, library="transformers", name="BertForMaskedLM", args=BERT)
    assert type(named.module).__name__ == "BertForMaskedLM"


def test_transformers_weights_from_a_folder(workshop: Workshop) -> None:
    made = build(
        workshop, library="transformers", name="bert", args={**BERT, "id2label": {0: "bad", 1: "good"}}
    ).module.eval()
    made.save_pretrained(workshop.folder / "local_bert")
    settings = {"model": {"library": "transformers", "name": "local_bert", "weights": "DEFAULT"}}
    assert workshop.prepare(settings, TOKENS)["labels"] == ["bad", "good"]
    ids = np.asarray([[1, 2, 3]], np.int64)
    found = workshop.open(settings, TOKENS).runtime.run({"input_ids": ids, "attention_mask": np.ones_like(ids)})[
        "logits"
    ]
    np.testing.assert_allclose(found, made(torch.from_numpy(ids)).logits.detach().numpy(), atol=1e-6)


def test_transformers_offline(workshop: Workshop) -> None:
    with pytest.raises(MissingError, match="could not be fetched") as caught:
        build(workshop, library="transformers", name="someone/no-such-model", weights="DEFAULT")
    assert "someone/no-such-model" in caught.value.hint


def test_a_library_that_is_not_installed(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(library.importlib, "import_module", absent)
    with pytest.raises(MissingError, match="timm is not installed") as caught:
        build(workshop, library="timm", name="resnet18")
    assert caught.value.hint == "pip install 'model-repository-pipeline[timm]'"


def test_user_callable(workshop: Workshop) -> None:
    settings = {"model": {"callable": "user.py:Net", "args": {"hidden": 5}}}
    assert workshop.prepare(settings)["notes"] == []
    assert workshop.open(settings).module.first.out_features == 5
    with pytest.raises(StageError, match="returned no module") as caught:
        build(workshop, callable="user.py:data")
    assert caught.value.found == "dict"


def test_a_constructor_that_changes_its_mind(workshop: Workshop) -> None:
    workshop.prepare({"model": {"callable": "user.py:Net"}})
    with pytest.raises(StageError, match="saved weights do not fit"):
        workshop.open({"model": {"callable": "user.py:Net", "args": {"hidden": 6}}})
