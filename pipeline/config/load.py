"""A YAML file and its overrides -> a checked Config, or one error that holds everything wrong with them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.base.errors import ConfigError, Problem
from pipeline.config import checks, document, explain
from pipeline.config.document import Document, Key, dotted, shown
from pipeline.config.explain import json_schema
from pipeline.schema import Config
from pipeline.schema.model import Data

__all__ = ["LoadedConfig", "expand", "json_schema", "load"]

MAX_FILE_BYTES = 1 << 20
_SHORTEST_SECRET = 4  # masking shorter values would garble every message, and they protect nothing

_STAND_INS: Mapping[str, Any] = {
    "name": "x",
    "source": {"model": {"callable": "x:x"}},
    "inputs": {"x": {"shape": []}},
    "outputs": {"x": {"shape": []}},
    "variants": {"x": {"format": "onnx"}},
}
"""Valid sections that take the place of broken ones while the others are checked."""


_LEAF_DEPTH: Mapping[Key, int] = {("inputs",): 3, ("outputs",): 3, ("variants",): 3}
"""How deep a path must go for its value to be left out at no loss to the rest of the section; elsewhere 2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedConfig:
    """A checked configuration, and where each of its keys stands.

    Attributes:
        secrets: text that came from the environment -> the ``${env:NAME}`` that named it.
        overrides: the ``--set`` texts that were laid over it.
        places: path of a key -> ``file:line:column``.
    """

    path: Path
    config: Config
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    overrides: tuple[str, ...] = ()
    places: Mapping[Key, str] = field(default_factory=dict, repr=False)

    def where(self, *key: str | int) -> str:
        """``file:line:column`` of a key, or of the nearest of its parents that the YAML has."""
        while key and key not in self.places:
            key = key[:-1]
        return self.places.get(key, str(self.path))

    def resolve(self, relative: str) -> Path:
        """A path in the YAML, which is relative to the YAML's own folder."""
        return self.path.parent / relative

    @property
    def train_data(self) -> Data | None:
        """The training data, where the source trains."""
        training = self.config.source.training
        return training.data if training else None

    @property
    def samples_data(self) -> Data | None:
        """The data set of the golden samples when it is not the training data's test part."""
        origin = self.config.samples.from_
        return origin if isinstance(origin, Data) else None

    @property
    def train_seed(self) -> int:
        """The seed that fixed the split into training and held-out data."""
        training = self.config.source.training
        return training.seed if training else 0

    def masked(self, text: str) -> str:
        """``text`` with every value from the environment (from 4 characters on) put back to its reference."""
        return _masked(text, self.secrets)


def load(path: Path, overrides: Sequence[str] = ()) -> LoadedConfig:
    """Read one configuration, lay ``a.b.c=VALUE`` each over it, later ones over earlier, and check it.

    Raises:
        ConfigError: its ``problems`` are all that is wrong, in the order of the file.
    """
    found = document.read(_text(path), lambda line, column: f"{path}:{line}:{column}")
    unreadable = bool(found.problems) and found.value is None
    if not unreadable and not isinstance(found.value, dict):
        what = "nothing" if found.value is None else shown(found.value)
        found.report((), f"expected a mapping with name, source, inputs, outputs and variants; found {what}")
    if not isinstance(found.value, dict):
        raise _error(path, found)
    for override in overrides:
        _override(found, override)
    config = _validated(found, path)
    if found.problems or config is None:
        raise _error(path, found)
    return LoadedConfig(path=path, config=config, secrets=found.secrets, overrides=tuple(overrides), places=found.keys)


def expand(paths: Sequence[Path]) -> list[Path]:
    """The YAML files that paths stand for: a file for itself, a folder for its ``*.yaml`` and ``*.yml``.

    Raises:
        ConfigError: a path does not exist, or a folder has no such file.
    """
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            if not path.exists():
                raise ConfigError("no such configuration", where=str(path))
            found.append(path)
            continue
        inside = sorted(item for item in path.iterdir() if item.suffix in (".yaml", ".yml") and item.is_file())
        if not inside:
            raise ConfigError("no configuration in this folder", found="no *.yaml or *.yml file", where=str(path))
        found += inside
    return list({path.resolve(): path for path in found}.values())


def _text(path: Path) -> str:
    """The file's text, or a ConfigError of one problem."""
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise _unreadable(path, str(path), f"cannot be read: {reason}") from error
    if len(data) > MAX_FILE_BYTES:
        raise _unreadable(path, str(path), "larger than 1 MiB; expected a configuration, not data")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = len(data[data.rfind(b"\n", 0, error.start) + 1 : error.start].decode(errors="replace")) + 1
        message = f"not UTF-8 (byte 0x{data[error.start]:02x}); save the file as UTF-8"
        raise _unreadable(path, f"{path}:{line}:{column}", message) from error


def _unreadable(path: Path, where: str, message: str) -> ConfigError:
    return ConfigError(f"config: {path} cannot be used", problems=[Problem(where, "", message)])


def _override(found: Document, override: str) -> None:
    """Lay one ``--set`` over the document, or report why it cannot be."""
    label = f"--set {override if len(override) <= 60 else override[:59] + '…'}"
    name, equals, text = override.partition("=")
    parts = name.split(".")
    if not equals or not all(parts):
        found.report((), "expected KEY=VALUE, the key's parts joined by dots, e.g. source.train.epochs=2", label)
        return
    given = document.read(text if text.strip() else "null", lambda line, column: label)
    found.problems += [((), Problem(label, name, problem.message)) for _, problem in given.problems]
    if given.problems:
        return
    container: Any = found.value
    path: Key = ()
    for depth, part in enumerate(parts):
        step = _step(container, part)
        if step is None:
            kind = f"a list of {len(container)}" if isinstance(container, list) else shown(container)
            found.report((), f"{dotted(path)} is {kind}: it has no `{part}`", label)
            return
        path = (*path, step)
        if isinstance(container, dict):
            container.setdefault(step, None)
        elif step == len(container):
            container.append(None)
        if depth == len(parts) - 1:
            found.forget(path)
            container[step] = given.value
        elif container[step] is None:
            container[step] = {}
            found.keys[path] = found.values[path] = label
        container = container[step]
    for places, new in ((found.keys, given.keys), (found.values, given.values), (found.texts, given.texts)):
        places.update({(*path, *key): value for key, value in new.items()})
    found.secrets.update(given.secrets)


def _step(container: Any, part: str) -> Any:
    """The key or index that ``part`` is in a container, or of what can be added to it; None where it can be neither."""
    if isinstance(container, dict):
        return part
    is_index = isinstance(container, list) and re.fullmatch(r"[0-9]{1,7}", part)
    return int(part) if is_index and int(part) <= len(container) else None


def _validated(found: Document, path: Path) -> Config | None:
    """The configuration, or None; whatever is wrong, in one key or between several, is reported."""
    broken: frozenset[str] = frozenset()
    try:
        config: Config | None = _parsed(found.value)
    except ValidationError as error:
        explain.add_problems(error, found)
        config, broken = _salvaged(found.value, error)
    if config is not None:
        checks.add_problems(config, lambda relative: path.parent / relative, found, broken)
    return config


def _parsed(value: Any) -> Config:
    return Config.model_validate_json(json.dumps(value), strict=True)


def _salvaged(value: dict[str, Any], error: ValidationError) -> tuple[Config | None, frozenset[str]]:
    """A valid configuration out of the sound parts, so that rules between keys are checked all the same.

    Wrong values and unknown keys are left out; a section that cannot do without them gets a stand-in. None if even that
    fails; and the top-level keys that are not what the file says.
    """
    rest, broken = deepcopy(value), set()
    for _ in range(8):
        wrong: set[Key] = set()
        for details in error.errors(include_url=False, include_context=False, include_input=False):
            path = explain.real_path(details["loc"], rest)
            wrong.add(path[:-1] if path and isinstance(path[-1], int) else path)
            spanning = details["type"] in ("missing", "value_error")
            if details["type"] != "extra_forbidden" and (spanning or len(path) < _LEAF_DEPTH.get(path[:1], 2)):
                broken.add(str(path[0] if path else details["loc"][0]))
        for path in wrong - {()}:
            if not any(other != path and other[: len(path)] == path for other in wrong):  # else it may yet do
                explain.value_at(rest, path[:-1]).pop(path[-1])
        rest = {**{name: stand_in for name, stand_in in _STAND_INS.items() if name not in rest}, **rest}
        try:
            return _parsed(rest), frozenset(broken)
        except ValidationError as again:
            error = again
    return None, frozenset()


def _error(path: Path, found: Document) -> ConfigError:
    problems = sorted((problem for _, problem in found.problems), key=_order)
    problems = [Problem(row.where, row.key, _masked(row.message, found.secrets)) for row in problems]
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    unknown = any(row.message.startswith("unknown key") for row in problems)
    hint = "`python -m pipeline schema` prints every key with its meaning" if unknown else ""
    return ConfigError(f"config: {path} has {count}", problems=problems, hint=hint)


def _order(problem: Problem) -> tuple[int, int, int]:
    """Flags first, then by line and column."""
    match = re.search(r":(\d+):(\d+)$", problem.where)
    return (1, int(match[1]), int(match[2])) if match else (0, 0, 0)


def _masked(text: str, secrets: Mapping[str, str]) -> str:
    for value in sorted(secrets, key=len, reverse=True):
        if len(value) >= _SHORTEST_SECRET:
            text = text.replace(value, secrets[value])
    return text
