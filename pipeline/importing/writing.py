"""The YAML of an imported model, as text that a person goes on editing."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.base.errors import ConfigError
from pipeline.base.printing import printable

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_OTHER_MEANINGS = ("null", "true", "false", "yes", "no", "on", "off")


def block(name: str, rows: Mapping[str, Any], missing: Sequence[str] = ()) -> list[str]:
    """A section of the YAML: a line per key, its value on that line, and comments that say what is missing."""
    lines = [f"  {scalar(key)}: {flow(value)}" for key, value in rows.items()]
    return [f"{name}:", *lines, *(f"  # {printable(text)}" for text in missing)]


def flow(value: Any) -> str:
    """A value in YAML's flow style.

    Raises:
        ConfigError: as ``scalar``.
    """
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{scalar(key)}: {flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(flow, value)) + "]"
    return scalar(value)


def scalar(value: Any) -> str:
    """One value; text is quoted where YAML would read something else into it.

    Raises:
        ConfigError: text that the configuration would take for a reference to the environment, or that is none.
    """
    if not isinstance(value, str):
        return json.dumps(value)
    if "${" in value:
        raise _no_name(value, "`${` starts a reference to an environment variable there")
    if any(0xD800 <= ord(sign) <= 0xDFFF for sign in value):
        raise _no_name(value, "it has bytes that are no text in UTF-8")
    if _PLAIN.fullmatch(value) and value.lower() not in _OTHER_MEANINGS:
        return value
    quoted = json.dumps(value, ensure_ascii=False)  # JSON's escapes are YAML's, but for signs beyond 16 bits
    return "".join(sign if sign.isprintable() else f"\\U{ord(sign):08X}" for sign in quoted)


def _no_name(value: str, why: str) -> ConfigError:
    hint = f"{why}; rename the file, and pack it again if it is the archive's"
    return ConfigError("import-mar: a name that a configuration cannot have", found=repr(value), hint=hint)
