"""What repositories on disk hold: its models, those of them that need a GPU, and those that take files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.base import model_config
from pipeline.base.errors import ConfigError
from pipeline.base.triton_facts import BACKENDS, ENGINE_BACKENDS


def models_of(*repositories: Path) -> tuple[str, ...]:
    """Names of the models in repositories: folders with a config.pbtxt and a numbered version, sorted.

    Raises:
        ConfigError: a repository is not a directory, or holds no such folder; or two hold a model of the same name.
    """
    homes: dict[str, Path] = {}
    for repository in repositories:
        for name in _models_of(repository):
            if name in homes:
                raise ConfigError(
                    "server: two repositories hold a model of the same name, of which Triton serves neither",
                    found=f"{name}: {homes[name]}, {repository}",
                    hint="remove the one that is out of date, or serve one repository alone",
                )
            homes[name] = repository
    return tuple(sorted(homes))


def home(repositories: Sequence[Path], model: str) -> Path:
    """The repository that holds a model; the first where none does."""
    return next((root for root in repositories if (root / model).is_dir()), repositories[0])


def _models_of(repository: Path) -> list[str]:
    if not repository.is_dir():
        raise ConfigError("no such model repository", found=str(repository), hint="build one, or name another")
    names = [
        folder.name
        for folder in repository.iterdir()
        if (folder / "config.pbtxt").is_file()
        and any(item.name.isdecimal() and item.is_dir() for item in folder.iterdir())
    ]
    if not names:
        raise ConfigError(
            "the repository holds no model",
            found=f"no folder with a config.pbtxt and a numbered version in {repository}",
            hint="python -m pipeline build CONFIG",
        )
    return names


def engines_of(repositories: Sequence[Path], names: Sequence[str]) -> tuple[str, ...]:
    """Those of the models that only a GPU runs: TensorRT engines, and ensembles that ask one."""
    configs = _configs(repositories, names)
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


def ensembles_of(repositories: Sequence[Path], names: Sequence[str]) -> tuple[str, ...]:
    """Those of the models that are ensembles taking files as they are."""
    configs = _configs(repositories, names)
    return tuple(
        name for name, config in configs.items() if config.platform == "ensemble" and model_config.takes_files(config)
    )


def _configs(repositories: Sequence[Path], names: Sequence[str]) -> dict[str, Any]:
    paths = {name: home(repositories, name) / name / "config.pbtxt" for name in names}
    return {name: model_config.parse_text(path.read_text(encoding="utf-8"), str(path)) for name, path in paths.items()}
