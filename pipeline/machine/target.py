"""What each Triton release can load: dated facts with their sources, and nothing guessed.

Read in November 2026 from:

* server and ONNX Runtime versions: files ``TRITON_VERSION`` and ``build.py`` on the branches r24.01 to r26.08
  of github.com/triton-inference-server/server. Its ``docs/introduction/compatibility.md`` says the same, but
  for 24.08, where it prints 1.18.1 and the branch builds 1.19.0; both have the same limits.
* Python: the same compatibility.md, from its vllm and trtllm rows, since it has none for the plain ``-py3``
  image. Where the two rows differ (24.11) or there is none (before 24.04) it is unknown.
* opset and IR: see ``_ONNX_LIMITS``.
* TensorRT: see ``_TENSORRT``.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from packaging.version import InvalidVersion, Version

from pipeline.base.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one Triton release can load.

    Attributes:
        release: container tag, ``YY.MM``.
        triton: server version that ``/v2`` reports.
        onnxruntime: version of the ONNX Runtime in its onnxruntime backend.
        max_opset: highest version of the default ONNX operator set that it is known to load.
        max_ir_version: highest ONNX file format version likewise.
        python: Python of its container, ``major.minor``; None where no source says.
        tensorrt: TensorRT of its ``-py3`` container; None where no source says.
    """

    release: str
    triton: str
    onnxruntime: str
    max_opset: int
    max_ir_version: int
    python: str | None
    tensorrt: str | None


# ONNX Runtime -> (opset, IR). It accepts what the ONNX it is built with had released, and refuses a model
# above either at load ("Current official support for domain ai.onnx is till opset 21", "max supported IR
# version: 10"). Numbers with # are pull requests and issues of github.com/microsoft/onnxruntime.
# 1.16-1.20: onnxruntime.ai/docs/reference/compatibility.html.
# 1.21, 1.22: ONNX 1.17 (#21897, #23162); users of 1.22.1 meet "max supported IR version: 10".
# 1.23: ONNX 1.18 (#24945); users of 1.23.2 meet "max supported IR version: 11" and "till opset 23".
# 1.24: ONNX 1.19.1 was merged before it (#26202). Whether it accepts the IR 13 of ONNX 1.20 was not found:
#   this is the proven part, the true limit may be higher, never lower.
# 1.27, 1.28: ONNX 1.21 (#27601). 1.28 and 1.31.1 refuse opset 27 with "till opset 26"; 1.30 and 1.31.1 refuse
#   IR 14 with "max supported IR version: 13" (1.31.1 measured here).
# ONNX release -> opset and IR: docs/Versioning.md and onnx/helper.py of github.com/onnx/onnx.
_ONNX_LIMITS = {
    "1.16": (19, 9), "1.17": (20, 9), "1.18": (21, 10), "1.19": (21, 10), "1.20": (21, 10), "1.21": (22, 10),
    "1.22": (22, 10), "1.23": (23, 11), "1.24": (24, 12), "1.27": (26, 13), "1.28": (26, 13),
}  # fmt: skip

# release -> TensorRT of its -py3 container, by docs/introduction/release_notes.md of the server's repository: commits
# 76693215 (24.08) and c89a66f2 (24.10), branches r24.12 and r25.01. Later notes list no contents, and NVIDIA's support
# matrix could not be read. The versions in compatibility.md are those of the trtllm images, which pin theirs separately
# (24.10: 10.4.0).
_TENSORRT = {"24.08": "10.3.0.26", "24.10": "10.5.0.18", "24.12": "10.7.0.23", "25.01": "10.8.0.43"}

LAST_WITH_TENSORFLOW = "25.02"
"""The last release with a TensorFlow backend: the last branch of triton-inference-server/tensorflow_backend."""

CONTAINER_BACKENDS = frozenset({
    "dali", "fil", "identity", "onnxruntime", "openvino", "python", "pytorch", "repeat", "square", "tensorflow",
    "tensorrt", "vllm", "tensorrtllm",
})  # fmt: skip
"""Backends that one of NVIDIA's containers has; tensorflow up to LAST_WITH_TENSORFLOW.

Those of ``-py3`` by ``enable_all`` in build.py, which names the same on the branches r24.01 to r26.08 but for
TensorFlow; then those that ``-vllm-python-py3`` and ``-trtllm-python-py3`` are for.
"""

_PY310, _PY312, _UNKNOWN = "3.10", "3.12", None

# release, server, ONNX Runtime, Python
_RELEASES = (
    ("24.01", "2.42.0", "1.16.3", _UNKNOWN),
    ("24.02", "2.43.0", "1.16.3", _UNKNOWN),
    ("24.03", "2.44.0", "1.17.2", _UNKNOWN),
    ("24.04", "2.45.0", "1.17.3", _PY310),
    ("24.05", "2.46.0", "1.18.0", _PY310),
    ("24.06", "2.47.0", "1.18.0", _PY310),
    ("24.07", "2.48.0", "1.18.1", _PY310),
    ("24.08", "2.49.0", "1.19.0", _PY310),
    ("24.09", "2.50.0", "1.19.2", _PY310),
    ("24.10", "2.51.0", "1.19.2", _PY310),
    ("24.11", "2.52.0", "1.19.2", _UNKNOWN),
    ("24.12", "2.53.0", "1.20.1", _PY312),
    ("25.01", "2.54.0", "1.20.1", _PY312),
    ("25.02", "2.55.0", "1.20.1", _PY312),
    ("25.03", "2.56.0", "1.21.0", _PY312),
    ("25.04", "2.57.0", "1.21.0", _PY312),
    ("25.05", "2.58.0", "1.22.0", _PY312),
    ("25.06", "2.59.0", "1.22.0", _PY312),
    ("25.07", "2.59.1", "1.22.0", _PY312),
    ("25.08", "2.60.0", "1.23.0", _PY312),
    ("25.09", "2.61.0", "1.23.0", _PY312),
    ("25.10", "2.62.0", "1.23.1", _PY312),
    ("25.11", "2.63.0", "1.23.2", _PY312),
    ("25.12", "2.64.0", "1.23.2", _PY312),
    ("26.01", "2.65.0", "1.23.2", _PY312),
    ("26.02", "2.66.0", "1.24.1", _PY312),
    ("26.03", "2.67.0", "1.24.2", _PY312),
    ("26.04", "2.68.0", "1.24.4", _PY312),
    ("26.05", "2.69.0", "1.24.4", _PY312),
    ("26.06", "2.70.0", "1.24.4", _PY312),
    ("26.07", "2.71.0", "1.27.0", _PY312),
    ("26.08", "2.72.0", "1.28.0", _PY312),
)


def _limits(release: str, triton: str, onnxruntime: str, python: str | None) -> Limits:
    opset, ir_version = _ONNX_LIMITS[onnxruntime.rpartition(".")[0]]
    return Limits(
        release=release,
        triton=triton,
        onnxruntime=onnxruntime,
        max_opset=opset,
        max_ir_version=ir_version,
        python=python,
        tensorrt=_TENSORRT.get(release),
    )


_TABLE = MappingProxyType({row[0]: _limits(*row) for row in _RELEASES})


def releases() -> tuple[str, ...]:
    """Releases this tool knows, oldest first."""
    return tuple(_TABLE)


def limits(release: str) -> Limits:
    """Facts about one Triton release, by its container tag such as ``24.10``; a ConfigError where it is not known."""
    found = _TABLE.get(release)
    if found is None:
        known = releases()
        # An unquoted 24.10 in YAML is the number 24.1.
        before = [name for name in known if name <= release]
        nearest = f"{release}0" if f"{release}0" in _TABLE else before[-1] if before else known[0]
        raise ConfigError(
            "the target is not a Triton release this tool knows",
            found=f"{release}; known are {known[0]} to {known[-1]}",
            hint=f'set triton.target to one of those, for example "{nearest}"',
        )
    return found


def has_later_tensorrt(limits: Limits, version: str) -> bool:
    """Whether a release's TensorRT is known and later than a version: it loads what is built version-compatible."""
    theirs, built = _numbers(limits.tensorrt or ""), _numbers(version)
    return bool(built) and theirs > built


def _numbers(version: str) -> tuple[int, ...]:
    """The numbers of a version, ``(10, 7, 0)`` of PyPI's ``10.7.0.post1``; none of what is no version (``unknown``)."""
    try:
        return Version(version).release
    except InvalidVersion:
        return ()


def tensorrt_requirement(limits: Limits) -> str:
    """What to install with pip to build engines for a release: its TensorRT where it is known, any where not.

    PyPI's versions have the build number from 10.8.0.43 on only; ``.*`` matches both.
    """
    return f"tensorrt=={'.'.join(limits.tensorrt.split('.')[:3])}.*" if limits.tensorrt else "tensorrt"


def tensorrt_image(limits: Limits) -> str:
    """The container to build engines for a release in: NVIDIA's TensorRT of the same month."""
    return f"nvcr.io/nvidia/tensorrt:{limits.release}-py3"


def tensorrt_conflict(limits: Limits, version: str, *, is_built: Literal["was", "would be"] = "was") -> str:
    """Why a release cannot load an engine, in a sentence without its full stop.

    Empty where the versions are the same as far as both are told, and where the release's is not known.

    Args:
        limits: the release that shall load it.
        version: TensorRT that builds the engine, ``10.16.1`` or with the build number ``10.16.1.11``; may be unknown.
        is_built: whether it has done so.

    Rule: an engine loads in the TensorRT that built it. A version-compatible one loads in later ones too, where the
    server runs with ``--backend-config=tensorrt,version-compatible=true``, which no file of a repository shows.
    """
    if limits.tensorrt is None:
        return ""
    pairs = zip(_numbers(limits.tensorrt), _numbers(version), strict=False)
    if all(theirs == built for theirs, built in pairs):
        return ""
    return (
        f"the engine {is_built} built by TensorRT {version}, and Triton {limits.release}'s container has "
        f"{limits.tensorrt}; an engine loads only in the TensorRT that built it"
    )
