from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipeline.base.errors import ConfigError, StageError
from pipeline.data.user_code import load_callable

from .tiny import Workshop


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path)


def net(workshop: Workshop, **kwargs) -> torch.nn.Module:
    torch.manual_seed(3)
    return load_callable("user.py:Net", workshop.resolve)(**kwargs).eval()


def settings(**changes) -> dict:
    return {"checkpoint": {"file": "w.pt", "model": {"callable": "user.py:Net"}} | changes}


def answer(workshop: Workshop, changed: dict) -> np.ndarray:
    return workshop.open(changed).runtime.run({"x": np.ones((2, 4), np.float32)})["y"]


def expected(module: torch.nn.Module) -> np.ndarray:
    return module(torch.ones(2, 4)).detach().numpy()


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.safetensors"])
def test_state_dict(workshop: Workshop, name: str) -> None:
    module = net(workshop)
    (save_file if name.endswith("s") else torch.save)(module.state_dict(), workshop.folder / name)
    values = workshop.prepare(settings(file=name))
    assert values == {"kind": "torch", "labels": [], "accuracy": None, "notes": []}
    np.testing.assert_array_equal(answer(workshop, settings(file=name)), expected(module))


def test_tied_weights(workshop: Workshop) -> None:
    changed = settings(model={"callable": "user.py:Net", "args": {"tied": True}})
    module = net(workshop, tied=True)
    torch.save(module.state_dict(), workshop.folder / "w.pt")
    workshop.prepare(changed)
    opened = workshop.open(changed)
    assert opened.module.twin.weight is opened.module.second.weight
    np.testing.assert_array_equal(answer(workshop, changed), expected(module))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_of_wrappers(workshop: Workshop, prefix: str) -> None:
    module = net(workshop)
    torch.save({prefix + name: tensor for name, tensor in module.state_dict().items()}, workshop.folder / "w.pt")
    notes = workshop.prepare(settings())["notes"]
    assert len(notes) == prefix.count(".")
    assert "was removed from every key" in notes[0]
    np.testing.assert_array_equal(answer(workshop, settings()), expected(module))


@pytest.mark.parametrize("key", ["model_state_dict", "a.b.weights", "dotted.name"])
def test_nested_key(workshop: Workshop, key: str) -> None:
    module = net(workshop)
    content: dict = {"epoch": 3, "model_state_dict": module.state_dict()}
    if key == "a.b.weights":
        content = {"a": {"b": {"weights": module.state_dict()}}}
    elif key == "dotted.name":
        content = {"dotted.name": module.state_dict()}
    torch.save(content, workshop.folder / "w.pt")
    workshop.prepare(settings(key=key))
    np.testing.assert_array_equal(answer(workshop, settings(key=key)), expected(module))


def test_a_missing_key_lists_what_there_is_and_suggests(workshop: Workshop) -> None:
    torch.save({"epoch": 3, "outer": {"net": net(workshop).state_dict()}}, workshop.folder / "w.pt")
    with pytest.raises(StageError, match="no state dict itself") as caught:
        workshop.prepare(settings())
    assert (caught.value.found, caught.value.hint) == ("keys epoch, outer", "write key: outer.net")
    with pytest.raises(StageError, match="has no key 'model'") as caught:
        workshop.prepare(settings(key="model"))
    assert caught.value.hint == "write key: outer.net"
    with pytest.raises(StageError, match="leads nowhere"):
        workshop.prepare(settings(key="epoch.deeper"))


def test_keys_that_do_not_fit_are_listed_and_counted(workshop: Workshop) -> None:
    state = net(workshop).state_dict()
    del state["second.bias"]
    state |= {f"extra{number:02}": torch.zeros(1) for number in range(12)}
    torch.save(state, workshop.folder / "w.pt")
    with pytest.raises(StageError, match="does not fit the model") as caught:
        workshop.prepare(settings())
    lines = [line.strip() for line in caught.value.found.splitlines()]
    assert lines[:4] == ["1 missing:", "second.bias", "12 unexpected:", "extra00"]
    assert lines[-2:] == ["extra09", "and 2 more"]
    assert "strict: false" in caught.value.hint
    notes = workshop.prepare(settings(strict=False))["notes"]
    assert notes[0] == "1 missing:   second.bias"
    assert notes[1].startswith("12 unexpected:")


def test_shapes_must_fit_even_when_not_strict(workshop: Workshop) -> None:
    torch.save(net(workshop, hidden=9).state_dict(), workshop.folder / "w.pt")
    for strict in (True, False):
        with pytest.raises(StageError) as caught:
            workshop.prepare(settings(strict=strict))
        assert "first.weight: [9, 4], the model has [8, 4]" in caught.value.found
        assert "7 of another shape" in caught.value.found


def test_nothing_in_common_is_refused_even_when_not_strict(workshop: Workshop) -> None:
    torch.save({"a": torch.zeros(1)}, workshop.folder / "w.pt")
    with pytest.raises(StageError, match="no key of the checkpoint is the model's"):
        workshop.prepare(settings(strict=False))


def test_half_precision_is_converted_and_noted(workshop: Workshop) -> None:
    torch.save({name: tensor.half() for name, tensor in net(workshop).state_dict().items()}, workshop.folder / "w.pt")
    assert workshop.prepare(settings())["notes"] == ["weights of torch.float16 were converted to the model's dtypes"]
    assert answer(workshop, settings()).dtype == np.float32


def test_a_whole_module_needs_consent(workshop: Workshop) -> None:
    module = net(workshop)
    torch.save(module, workshop.folder / "w.pt")
    with pytest.raises(StageError, match="more than tensors") as caught:
        workshop.prepare(settings())
    assert ".Net" in caught.value.found
    assert "runs whatever code" in caught.value.hint
    assert "allow_pickle: true" in caught.value.hint
    alone = {"checkpoint": {"file": "w.pt", "allow_pickle": True}}
    for changed in (settings(allow_pickle=True), alone):
        workshop.prepare(changed)
        np.testing.assert_array_equal(answer(workshop, changed), expected(module))


def test_an_allowed_pickle_without_architecture_must_be_a_module(workshop: Workshop) -> None:
    torch.save({"a": 1}, workshop.folder / "w.pt")
    with pytest.raises(StageError, match="holds no module"):
        workshop.prepare({"checkpoint": {"file": "w.pt", "allow_pickle": True}})


def test_damaged_files(workshop: Workshop) -> None:
    torch.save(net(workshop).state_dict(), workshop.folder / "w.pt")
    whole = (workshop.folder / "w.pt").read_bytes()
    save_file(net(workshop).state_dict(), workshop.folder / "w.safetensors")
    safe = (workshop.folder / "w.safetensors").read_bytes()
    for name, content in (
        ("w.pt", whole[: len(whole) // 2]),
        ("w.pt", b""),
        ("w.pt", b"no checkpoint at all"),
        ("w.safetensors", safe[:-9]),
        ("w.safetensors", b"{}"),
    ):
        (workshop.folder / name).write_bytes(content)
        for pickled in (False, True):
            with pytest.raises(StageError, match="the checkpoint cannot be read") as caught:
                workshop.prepare(settings(file=name, allow_pickle=pickled))
            assert caught.value.where == str(workshop.folder / name)
    with pytest.raises(ConfigError, match="no such checkpoint"):
        workshop.prepare(settings(file="absent.pt"))


def test_a_torchscript_archive_is_pointed_elsewhere(workshop: Workshop) -> None:
    from pipeline.capture.quiet import no_deprecation_warnings

    with no_deprecation_warnings():
        torch.jit.trace(net(workshop), torch.ones(2, 4)).save(workshop.folder / "w.pt")
    with pytest.raises(StageError, match="is a TorchScript archive") as caught:
        workshop.prepare(settings())
    assert caught.value.hint == "use it as it is: source: {torchscript: {file: w.pt}}"


def test_a_file_without_a_state_dict(workshop: Workshop) -> None:
    torch.save([1, 2], workshop.folder / "w.pt")
    with pytest.raises(StageError, match="holds no state dict") as caught:
        workshop.prepare(settings())
    assert caught.value.found == "list"
