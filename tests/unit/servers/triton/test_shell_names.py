"""What is handed to a shell is a name that it takes as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.base.errors import ConfigError
from pipeline.servers.triton import shell_names


@pytest.mark.parametrize("name", ["a b", "a;b", "$HOME", "it's", "a&b", "[a]", "é", "a\nb", "`id`", "~", "#"])
def test_a_path_with_such_a_name_is_linked_to_and_the_link_goes(tmp_path: Path, name: str) -> None:
    plain, other = tmp_path / "plain", tmp_path / name / "repository"
    plain.mkdir()
    other.mkdir(parents=True)
    with shell_names.links([plain, other]) as found:
        assert found[0] == plain
        assert found[1].is_symlink()
        assert found[1].resolve() == other
        assert shell_names.is_plain(found[1])
        assert found[1].parent.stat().st_mode & 0o777 == 0o700
    assert not found[1].parent.exists()
    assert other.is_dir()


def test_plain_paths_need_no_folder(tmp_path: Path) -> None:
    with shell_names.links([tmp_path]) as found:
        assert found == [tmp_path]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('default_model_filename: "a b"', "default_model_filename is 'a b'"),
        ('instance_group { name: "x;y" }', "the name of an instance_group is 'x;y'"),
    ],
)
def test_a_configurations_names_are_held_to_it(tmp_path: Path, text: str, what: str) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.pbtxt").write_text(text)
    with pytest.raises(ConfigError) as caught:
        shell_names.require([tmp_path], ["m"])
    assert what in caught.value.found


def test_a_models_own_name_too_and_what_cannot_be_read_is_left_to_the_server(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.pbtxt").write_text("{ not text")
    shell_names.require([tmp_path], ["m", "absent"])
    with pytest.raises(ConfigError, match="cannot be served here"):
        shell_names.require([tmp_path], ["a b"])
