"""What a repository on disk holds: its models, those of them that need a GPU, and those that take files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.base import model_config
from pipeline.base.errors import ConfigError
from pipeline.base.triton_facts import BACKENDS, ENGINE_BACKENDS


def models_of(repository: Path) -> tuple[str, ...]:
    """Names of the models in a repository: folders with a config.pbtxt and a numbered version, sorted.

    Raises:
        ConfigError: the repository is not a directory, or holds no such folder.
    """
    if not repository.is_dir():
        raise ConfigError("no such model repository", found=str(repository), hint="build one, or name another")
    names = sorted(
        folder.name
        for folder in repository.iterdir()
        if (folder / "config.pbtxt").is_file()
        and any(item.name.isdecimal() and item.is_dir() for item in folder.iterdir())
    )
    if not names:
        raise ConfigError(
            "the repository holds no model",
            found=f"no folder with a config.pbtxt and a numbered version in {repository}",
            hint="python -m pipeline build CONFIG",
        )
    return tuple(names)


def engines_of(repository: Path, names: Sequence[str]) -> tuple[str, ...]:
    """Those of the models that only a GPU runs: TensorRT engines, and ensembles that ask one."""
    configs = {name: _config(repository / name / "config.pbtxt") for name in names}
    engines = {
        name
        for name, config in configs.items()
        if config.backend in ENGINE_BACKENDS or config.platform == BACKENDS["tensorrt"].platform
    }
    return tuple(
        name
        for name in names
        if name in engines or any(step.model_name in engines for step in configs[name].ensemble_scheduling.step)
    )


def ensembles_of(repository: Path, names: Sequence[str]) -> tuple[str, ...]:
    """Those of the models that are ensembles taking files as they are."""
    configs = {name: _config(repository / name / "config.pbtxt") for name in names}
    return tuple(
        name for name, config in configs.items() if config.platform == "ensemble" and model_config.takes_files(config)
    )


def _config(path: Path) -> Any:
    return model_config.parse_text(path.read_text(encoding="utf-8"), str(path))
