"""The source of a C++ program around a TorchScript file: fixed files, and a header with what is the model's own."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from pipeline.base.values import Signature
from pipeline.images.postprocessing import Postprocessing
from pipeline.images.preprocessing import Preprocessing

MODEL_FILE = "model.pt"
_FOLDER = Path(__file__).with_name("program")
_TEMPLATES = ("CMakeLists.txt", "README.md")
_FORMAT_NAMES = {"jpeg": "JPEG", "png": "PNG", "webp": "WebP"}


def sources(
    name: str, signature: Signature, output: str, answers: Postprocessing, *, torch_version: str
) -> dict[str, bytes]:
    """Every file of the program but the model, by name.

    Args:
        name: the program's.
        signature: one input, with ``image`` saying how it is made of an image file.
        output: the output that holds the scores.
        answers: how they become labels.
        torch_version: of the torch that wrote the TorchScript file, for the README.
    """
    how = signature.image
    assert how is not None  # config/deployment_checks.py
    words = {
        "@NAME@": name,
        "@TORCH@": torch_version,
        "@FORMATS@": _listed([_FORMAT_NAMES[one] for one in how.formats]),
        "@MAX_PIXELS@": f"{how.max_pixels:,}",
    }
    found = {path.name: path.read_text(encoding="utf-8") for path in sorted(_FOLDER.iterdir()) if path.is_file()}
    for template in _TEMPLATES:
        for word, text in words.items():
            found[template] = found[template].replace(word, text)
    found["settings.hpp"] = settings(name, signature, output, answers)
    return {file: text.encode() for file, text in found.items()}


def _listed(names: Sequence[str]) -> str:
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def settings(name: str, signature: Signature, output: str, answers: Postprocessing) -> str:
    """The text of settings.hpp, the only file that differs between models."""
    how = signature.image
    assert how is not None
    (spec,) = signature.inputs
    size = how.resize if isinstance(how.resize, tuple) else (0, 0)
    crop = how.crop or (0, 0)
    outputs = [item.name for item in signature.outputs]
    pillow = [int(part) for part in importlib.metadata.version("pillow").split(".")[:2]]  # resamples as this one does
    constants = [
        ("const char*", "name", _text(name)),
        (f"std::array<std::string_view, {len(how.formats)}>", "formats", _braced(map(_text, how.formats))),
        ("int", "channels", str(how.channels)),
        ("int", "resize_height", str(size[0])),
        ("int", "resize_width", str(size[1])),
        ("int", "resize_shorter", str(how.resize if isinstance(how.resize, int) else 0)),
        ("int", "crop_height", str(crop[0])),
        ("int", "crop_width", str(crop[1])),
        ("std::string_view", "interpolation", _text(how.interpolation)),
        ("int", "pillow", str(100 * pillow[0] + pillow[1])),
        ("float", "scale", _float(how.scale)),
        (f"std::array<float, {how.channels}>", "mean", _per_channel(how.mean, how)),
        (f"std::array<float, {how.channels}>", "deviation", _per_channel(how.std, how)),
        ("std::uint64_t", "max_pixels", str(how.max_pixels)),
        ("std::string_view", "dtype", _text(how.dtype)),
        ("std::string_view", "layout", _text(how.layout)),
        ("bool", "batched", _bool(signature.batch is not None)),
        ("bool", "leading_dimension", _bool(signature.batch is not None or len(spec.shape) == 4)),
        ("std::size_t", "output_index", str(outputs.index(output))),
        ("std::string_view", "activation", _text(answers.activation)),
        ("std::size_t", "top_k", str(answers.top_k)),
        ("double", "threshold", repr(float(answers.threshold))),
    ]
    lines = [f"inline constexpr {kind} {key} = {value};" for kind, key, value in constants]
    labels = "".join(f"    {_text(label)},\n" for label in answers.labels)
    return _HEADER.format(constants="\n".join(lines), labels=f"{{\n{labels}}}" if labels else "{}")


_HEADER = """\
// How an image becomes the model's input, and its scores an answer. Written by the build; a size of 0 is none.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace settings {{

{constants}
inline const std::vector<std::string> labels = {labels};

}}  // namespace settings
"""


def _text(value: str) -> str:
    """A C++ string literal of the UTF-8 bytes; escapes are octal, since those end after three digits."""
    letters = []
    for byte in value.encode():
        plain = 0x20 <= byte < 0x7F and chr(byte) not in '"\\?'
        letters.append(chr(byte) if plain else f"\\{byte:03o}")
    return f'"{"".join(letters)}"'


def _float(value: float) -> str:
    """A C++ float literal that gives exactly numpy's float32 of a number."""
    return f"{np.float32(value)!s}f"


def _per_channel(values: Sequence[float], how: Preprocessing) -> str:
    return _braced(_float(value) for value in (values if len(values) > 1 else (*values,) * how.channels))


def _braced(items: Iterable[str]) -> str:
    return "{" + ", ".join(items) + "}"


def _bool(value: bool) -> str:
    return "true" if value else "false"
