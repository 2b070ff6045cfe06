"""Which folders of a repository are models."""

from __future__ import annotations

import pytest

from pipeline.base.errors import ConfigError
from pipeline.servers.triton.models import models_of


def test_models_are_folders_with_a_config_and_a_numbered_version(tmp_path):
    for folder in ("b/1", "a/2", "no_config/1", "no_version/assets", ".git/1"):
        (tmp_path / folder).mkdir(parents=True)
    for folder in ("b", "a", "no_version"):
        (tmp_path / folder / "config.pbtxt").write_text("")
    (tmp_path / "README.md").write_text("")
    assert models_of(tmp_path) == ("a", "b")


def test_a_repository_that_is_not_there_or_empty_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no such model repository"):
        models_of(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="holds no model"):
        models_of(tmp_path)
