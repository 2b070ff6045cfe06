"""The few requests of Triton's HTTP protocol that tell whether a server serves, with the standard library alone.

Protocol: KServe v2 (Open Inference Protocol) with Triton's repository and binary-data extensions.
"""

from __future__ import annotations

import http.client
import json
import shlex
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

from pipeline.base import model_config, network
from pipeline.base.errors import ConfigError, SmokeError
from pipeline.servers.triton.client.messages import IndexRow

_SHORT_ELEMENTS = 16
_ELEMENT_BYTES = {
    "BOOL": 1, "UINT8": 1, "INT8": 1, "UINT16": 2, "INT16": 2, "FP16": 2, "BF16": 2, "UINT32": 4, "INT32": 4,
    "FP32": 4, "UINT64": 8, "INT64": 8, "FP64": 8,
    "BYTES": 4,  # a length of zero
}  # fmt: skip
_NO_JSON = ("FP16", "BF16")  # the server takes and gives these in binary only
_ZERO: Mapping[str, Any] = {"BOOL": False, "BYTES": "", "FP32": 0.0, "FP64": 0.0}
_STUB_DEAD = "Stub process"
_CURL = "curl -sS --noproxy '*'"


class NotAnswered(Exception):  # noqa: N818 - a state while a server starts, not an error
    """The server did not answer, or not yet with what was asked."""


class TooLate(NotAnswered):
    """The server is there, and its answer did not come in time."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """What the server said instead of doing what was asked: HTTP status and its own words."""

    status: int
    text: str

    @property
    def dead(self) -> bool:
        """Whether the model's process is gone; Triton does not start it again, whatever its health endpoints say."""
        return _STUB_DEAD in self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSpec:
    """An input as a request names it: protocol data type, and a full shape without dynamic dimensions."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """How many values the tensor holds."""
        return prod(self.shape)


def server_name(http_url: str, *, timeout_s: float) -> str:
    """The ``--id`` the server was started with.

    Raises:
        NotAnswered: nobody answers as Triton there.
    """
    return str(_ask(f"{http_url}/v2", timeout_s=timeout_s).get("name", ""))


def index(http_url: str, *, timeout_s: float) -> list[IndexRow]:
    """Versions the server has loaded or failed to load; models it never touched are left out.

    Raises:
        NotAnswered: no answer.
    """
    rows = _ask(f"{http_url}/v2/repository/index", data=b"", timeout_s=timeout_s)
    return [
        IndexRow(name=row["name"], version=row["version"], state=row["state"], reason=row.get("reason", ""))
        for row in rows
        if "state" in row
    ]


def inputs_of(http_url: str, model: str, version: str, *, timeout_s: float) -> list[InputSpec]:
    """The inputs of a version, with 1 for every dynamic dimension.

    Raises:
        NotAnswered: no answer, or no such version.
    """
    metadata = _ask(_version_url(http_url, model, version), timeout_s=timeout_s)
    return [
        InputSpec(name=item["name"], datatype=item["datatype"], shape=_fixed(item["shape"]))
        for item in metadata["inputs"]
    ]


def config(http_url: str, model: str, version: str, *, timeout_s: float) -> dict[str, Any]:
    """The configuration in force, as JSON values under the proto's field names.

    Raises:
        NotAnswered: no answer, or no such version.
    """
    fields: dict[str, Any] = _ask(f"{_version_url(http_url, model, version)}/config", timeout_s=timeout_s)
    return fields


def answered(http_url: str, model: str, version: str, *, timeout_s: float) -> int:
    """How many requests a version has answered since it was loaded.

    Raises:
        NotAnswered: no answer, or no such version.
    """
    statistics = _ask(f"{_version_url(http_url, model, version)}/stats", timeout_s=timeout_s)
    return int(statistics["model_stats"][0]["inference_stats"]["success"]["count"])


def infer(
    http_url: str,
    model: str,
    version: str,
    inputs: Sequence[InputSpec],
    data: Sequence[bytes],
    *,
    parameters: Mapping[str, Any] | None = None,
    timeout_s: float,
) -> Refusal | None:
    """Ask for one inference; None when it was answered.

    Args:
        http_url: ``http://host:port``.
        model: its name.
        version: its number.
        inputs: what is sent.
        data: each input's bytes (BYTES elements with their lengths before them).
        parameters: of the request, for example its place in a sequence.
        timeout_s: longest wait.

    Raises:
        TooLate: no answer within ``timeout_s``.
        NotAnswered: no connection.
    """
    header = _binary_header(inputs, [len(item) for item in data], {"binary_data_output": True, **(parameters or {})})
    headers = {"Inference-Header-Content-Length": str(len(header))}
    return _send(f"{_version_url(http_url, model, version)}/infer", b"".join([header, *data]), headers, timeout_s)


def infer_zeros(http_url: str, model: str, version: str, *, timeout_s: float) -> None:
    """Ask for one inference over zeros. A refusal by the model is an answer too: some models have no use for zeros.

    Raises:
        NotAnswered: no answer within ``timeout_s``.
        SmokeError: the model's process is dead.
    """
    inputs = inputs_of(http_url, model, version, timeout_s=timeout_s)
    refusal = infer(http_url, model, version, inputs, zeros(inputs), timeout_s=timeout_s)
    if refusal and refusal.dead:
        raise SmokeError(f"server[{model}]: the model's process died", found=refusal.text)


def zeros(inputs: Sequence[InputSpec]) -> list[bytes]:
    """As many zero bytes as each input holds: zeros, False and empty strings."""
    return [bytes(_byte_size(item)) for item in inputs]


def control(http_url: str, action: Literal["load", "unload"], model: str, *, timeout_s: float) -> Refusal | None:
    """Load or unload a model; loading returns when it has loaded, unloading at once.

    Raises:
        TooLate: it took longer than ``timeout_s``.
        NotAnswered: no connection.
    """
    return _send(f"{http_url}/v2/repository/models/{model}/{action}", b"{}", {}, timeout_s)


def _version_url(http_url: str, model: str, version: str) -> str:
    return f"{http_url}/v2/models/{model}/versions/{version}"


def _send(url: str, body: bytes, headers: Mapping[str, str], timeout_s: float) -> Refusal | None:
    request = urllib.request.Request(url, data=body, headers=dict(headers))  # noqa: S310 - http URL of our own making
    try:
        with network.opener.open(request, timeout=timeout_s) as answer:
            answer.read()
            return None
    except urllib.error.HTTPError as error:
        with error:
            return Refusal(error.code, error.read().decode(errors="replace"))
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        late = isinstance(reason, TimeoutError)
        raise (TooLate if late else NotAnswered)(f"{url}: {'no answer in time' if late else reason}") from error


def _ask(url: str, *, data: bytes | None = None, timeout_s: float) -> Any:
    try:
        with network.opener.open(urllib.request.Request(url, data=data), timeout=timeout_s) as answer:  # noqa: S310
            return json.loads(answer.read())
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise NotAnswered(f"{url}: {error}") from error


def _fixed(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(1 if size < 0 else int(size) for size in shape)


def _byte_size(item: InputSpec) -> int:
    return item.elements * _ELEMENT_BYTES[item.datatype]


def _binary_header(inputs: Sequence[InputSpec], sizes: Sequence[int], parameters: Mapping[str, Any]) -> bytes:
    """The JSON that precedes the inputs' bytes, so many of each (Triton's binary data extension)."""
    request: dict[str, Any] = {
        "inputs": [
            {
                "name": item.name,
                "shape": list(item.shape),
                "datatype": item.datatype,
                "parameters": {"binary_data_size": size},
            }
            for item, size in zip(inputs, sizes, strict=True)
        ]
    }
    if parameters:
        request["parameters"] = dict(parameters)
    return json.dumps(request, separators=(",", ":")).encode()


def curl_line(repository: Path, model: str, http_url: str) -> str:
    """A shell line that asks a running server for one inference: of a file where the model takes files, else of zeros.

    An ensemble of this tool brings an example image; elsewhere the line names a file to be put there.
    Small inputs are written out as JSON. Larger ones, and types JSON cannot carry, go as a JSON header with zero bytes
    behind it, so the line stays short; then an answer of such a type is written to ``answer.bin``.

    Raises:
        ConfigError: the model has no readable configuration in the repository.
    """
    path = repository / model / "config.pbtxt"
    try:
        config = model_config.parse_text(path.read_text(), str(path))
    except OSError as error:
        raise ConfigError(f"no model {model} in the repository", found=str(error), where=str(path)) from error
    fields = model_config.to_dict(config)
    url = f"{http_url}/v2/models/{model}/infer"
    if model_config.takes_files(config):
        examples = sorted((repository / model).glob("*/example.*"), key=lambda found: int(found.parent.name))
        file = shlex.quote(f"@{examples[-1] if examples else 'FILE'}")
        return (
            f"{_CURL} {url} --data-binary {file} -H 'Content-Type: application/octet-stream' "
            "-H 'Inference-Header-Content-Length: 0' --output -"  # the lengths in the answer are no text
        )
    batch = (1,) if fields.get("max_batch_size", 0) else ()
    inputs = [
        InputSpec(
            name=item["name"],
            datatype=_protocol_type(item["data_type"]),
            shape=batch + _fixed([int(size) for size in item["dims"]]),
        )
        for item in fields["input"]
    ]
    if all(item.elements <= _SHORT_ELEMENTS and item.datatype not in _NO_JSON for item in inputs):
        return f"{_CURL} {url} -H 'Content-Type: application/json' -d {shlex.quote(_json_request(inputs))}"
    binary_answer = any(_protocol_type(item["data_type"]) in _NO_JSON for item in fields["output"])
    sizes = [_byte_size(item) for item in inputs]
    header = _binary_header(inputs, sizes, {"binary_data_output": True} if binary_answer else {})
    total = sum(sizes)
    return (
        f"(printf %s {shlex.quote(header.decode())}; head -c {total} /dev/zero) | {_CURL} {url} --data-binary @- "
        f"-H 'Inference-Header-Content-Length: {len(header)}'{' --output answer.bin' if binary_answer else ''}"
    )


def _protocol_type(config_type: str) -> str:
    return "BYTES" if config_type == "TYPE_STRING" else config_type.removeprefix("TYPE_")


def _json_request(inputs: Sequence[InputSpec]) -> str:
    request = {
        "inputs": [
            {
                "name": item.name,
                "shape": list(item.shape),
                "datatype": item.datatype,
                "data": [_ZERO.get(item.datatype, 0)] * item.elements,
            }
            for item in inputs
        ]
    }
    return json.dumps(request, separators=(",", ":"))
