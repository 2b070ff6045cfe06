import os
import sys
from pathlib import Path

import pytest

from pipeline.base import reads
from pipeline.base.errors import ConfigError, StageError
from pipeline.data import torchvision_compat, user_code


def _resolver(folder: Path):
    return lambda name: folder / name


def test_load_and_call_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def double(value):\n    return 2 * value\n")
    assert user_code.call("mine.py:double", _resolver(tmp_path), {"value": 4}, "test") == 8


def test_neighbours_can_be_imported_and_two_folders_do_not_mix(tmp_path: Path) -> None:
    for name, number in (("a", 1), ("b", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "neighbour_of_user.py").write_text(f"NUMBER = {number}\n")
        (tmp_path / name / "main.py").write_text(
            "from neighbour_of_user import NUMBER\ndef number():\n    return NUMBER\n"
        )
    assert user_code.call("main.py:number", _resolver(tmp_path / "a"), {}, "test") == 1
    assert user_code.call("main.py:number", _resolver(tmp_path / "b"), {}, "test") == 2


def test_a_neighbour_imported_late_is_found(tmp_path: Path) -> None:
    (tmp_path / "late_neighbour_of_user.py").write_text("NUMBER = 5\n")
    (tmp_path / "main.py").write_text("def number():\n    import late_neighbour_of_user as n\n    return n.NUMBER\n")
    assert user_code.call("main.py:number", _resolver(tmp_path), {}, "test") == 5


def test_an_edited_file_is_loaded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)  # whatever the shell says: stale bytecode is the point
    path = tmp_path / "mine.py"
    path.write_text("def value():\n    return 1\n")
    assert user_code.call("mine.py:value", _resolver(tmp_path), {}, "test") == 1
    stamp = path.stat()
    path.write_text("def value():\n    return 2\n")
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # edited within the second that bytecode is matched by
    assert user_code.call("mine.py:value", _resolver(tmp_path), {}, "test") == 2


def test_module_name_depends_on_content_not_on_place(tmp_path: Path) -> None:
    names = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.py").write_text("class Thing:\n    pass\n")
        names.append(user_code.load_callable("same.py:Thing", _resolver(tmp_path / folder)).__module__)
    assert names[0] == names[1]


def test_a_files_module_has_a_name_that_torchscript_can_read(tmp_path: Path) -> None:
    (tmp_path / "test-net 2.py").write_text("class Net:\n    pass\n")
    module = user_code.load_callable("test-net 2.py:Net", _resolver(tmp_path)).__module__
    assert module.isidentifier()
    assert module.startswith("_user_test_net_2_")


def test_what_it_reads_in_a_step_is_seen_and_torchvision_may_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.setattr(sys, "meta_path", [item for item in sys.meta_path if item is not torchvision_compat._FINDER])
    (tmp_path / "weights.txt").write_text("3")
    (tmp_path / "mine.py").write_text(
        f"import pathlib\ndef weights():\n    return pathlib.Path({str(tmp_path / 'weights.txt')!r}).read_text()\n"
    )
    with reads.of_step([]) as found:
        assert user_code.call("mine.py:weights", _resolver(tmp_path), {}, "test") == "3"
        assert str(tmp_path / "weights.txt") in found()
    assert torchvision_compat._FINDER in sys.meta_path


def test_a_package_module_is_found_without_importing_its_parent(tmp_path: Path) -> None:
    package = tmp_path / "a_users_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('must not run while planning')\n")
    (package / "model.py").write_text("from .parts import make\n")
    (package / "parts.py").write_text("import os\ndef make():\n    return 3\n")
    found = user_code.digests("a_users_package.model:make", _resolver(tmp_path))
    assert sorted(found) == [f"a_users_package/{name}.py" for name in ("__init__", "model", "parts")]
    (package / "__init__.py").write_text("")
    assert user_code.call("a_users_package.model:make", _resolver(tmp_path), {}, "test") == 3


def test_digests_follow_imports_and_ignore_other_files(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text("import json\nfrom helper import thing\nfrom sub.deep import x\n")
    (tmp_path / "helper.py").write_text("import second\nthing = 1\n")
    (tmp_path / "second.py").write_text("import main\n")
    (tmp_path / "unrelated.py").write_text("x = 1\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "__init__.py").write_text("")
    (tmp_path / "sub" / "deep.py").write_text("from . import side\nx = 1\n")
    (tmp_path / "sub" / "side.py").write_text("")
    found = user_code.digests("main.py:x", _resolver(tmp_path))
    assert list(found) == ["helper.py", "main.py", "second.py", "sub/__init__.py", "sub/deep.py", "sub/side.py"]
    (tmp_path / "second.py").write_text("changed = 1\n")
    assert user_code.digests("main.py:x", _resolver(tmp_path)) != found


def test_errors_name_the_users_line(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import json\ndef broken():\n    return json.loads('{')\n")
    with pytest.raises(StageError) as caught:
        user_code.call("mine.py:broken", _resolver(tmp_path), {}, "source: mine failed")
    assert "JSONDecodeError" in caught.value.found
    assert caught.value.where == f"{tmp_path / 'mine.py'}:3"


def test_wrong_arguments_are_a_stage_error(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def make(width):\n    return width\n")
    with pytest.raises(StageError, match="mine failed") as caught:
        user_code.call("mine.py:make", _resolver(tmp_path), {"widht": 3}, "source: mine failed")
    assert "unexpected keyword argument 'widht'" in caught.value.found
    assert str(tmp_path / "mine.py") in caught.value.where


def test_code_that_exits_is_a_stage_error(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import sys\nsys.exit(0)\n")
    with pytest.raises(StageError, match="importing"):
        user_code.load_callable("mine.py:x", _resolver(tmp_path))


def test_a_wrong_name_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def make_model():\n    pass\nother = 3\n")
    with pytest.raises(ConfigError) as caught:
        user_code.load_callable("mine.py:make_modle", _resolver(tmp_path))
    assert caught.value.hint == "did you mean make_model?"
    with pytest.raises(ConfigError, match="no callable 'other'"):
        user_code.load_callable("mine.py:other", _resolver(tmp_path))


def test_missing_file_and_module(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        user_code.digests("absent.py:x", _resolver(tmp_path))
    with pytest.raises(ConfigError, match="no module no_such_package_here"):
        user_code.digests("no_such_package_here.model:x", _resolver(tmp_path))


def test_invalid_python_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("x = 1\ndef broken(:\n")
    with pytest.raises(ConfigError) as caught:
        user_code.digests("mine.py:x", _resolver(tmp_path))
    assert caught.value.where == f"{tmp_path / 'mine.py'}:2"
