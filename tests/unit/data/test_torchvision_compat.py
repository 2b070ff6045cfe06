import importlib.util
import socket
import sys
from importlib.machinery import ModuleSpec

import pytest

from pipeline.base.errors import MissingError
from pipeline.data import torchvision_compat


def test_load_gives_working_models() -> None:
    import torch

    module = torchvision_compat.load()
    assert torchvision_compat.load() is module
    from torchvision import models

    assert models.get_model("squeezenet1_1", weights=None, num_classes=3)(torch.zeros(1, 3, 32, 32)).shape == (1, 3)


def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingError, match="not installed") as caught:
        torchvision_compat.load()
    assert caught.value.hint == "pip install 'model-repository-pipeline[torchvision]'"


def test_operators_are_declared_only_where_the_extension_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    declared = []
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: ModuleSpec(name, None, origin="/x/__init__.py"))
    monkeypatch.setattr(torchvision_compat, "_declare_operators", lambda: declared.append(1))
    monkeypatch.setattr(importlib, "import_module", lambda name: sys)
    for loads, expected in ((True, []), (False, [1])):
        monkeypatch.setattr(torchvision_compat, "_extension_loads", lambda package, loads=loads: loads)
        assert torchvision_compat.load() is sys
        assert declared == expected


def test_they_are_declared_when_another_imports_it(monkeypatch: pytest.MonkeyPatch) -> None:
    declared = []
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(torchvision_compat, "_declare_operators", lambda: declared.append(1))
    monkeypatch.setattr(torchvision_compat, "_extension_loads", lambda package: False)
    before = list(sys.meta_path)
    torchvision_compat.prepare()
    torchvision_compat.prepare()
    assert importlib.util.find_spec("json") is not None
    assert (declared, len(sys.meta_path)) == ([], len(before) + 1)
    assert importlib.util.find_spec("torchvision") is not None  # as an import does
    assert (declared, sys.meta_path) == ([1], before)


def test_an_import_that_fails_is_the_machines_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: ModuleSpec(name, None, origin="/x/__init__.py"))
    monkeypatch.setattr(torchvision_compat, "_extension_loads", lambda package: True)
    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(MissingError, match="cannot be imported"):
        torchvision_compat.load()


def test_fetching_bounds_the_wait(capsys: pytest.CaptureFixture[str]) -> None:
    with torchvision_compat.fetching():
        print("a progress bar")
        assert socket.getdefaulttimeout() == 15.0
    assert socket.getdefaulttimeout() is None
    assert capsys.readouterr().out == ""
