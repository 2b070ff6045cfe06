"""A bench that others rely on for an answer runs to its table; of so few requests its figures mean nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.bench import protocols


def test_http_and_grpc_are_compared_in_one_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = tuple(replace(item, requests={"tiny": (4, 32)}) for item in protocols.PROTOCOLS)
    monkeypatch.setattr(protocols, "PROTOCOLS", few)
    monkeypatch.setattr(protocols, "INPUTS", {"tiny": (1, 28, 28)})
    monkeypatch.setattr(protocols, "ROUNDS", 1)
    head, _, *lines = protocols._protocols(tmp_path).splitlines()
    assert head == "| input | protocol | p50 ms, alone | ratio | requests/s, 16 at once | ratio |"
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [row[1] for row in rows] == ["HTTP, binary", "HTTP, JSON", "gRPC", "gRPC, system shared memory"]
    assert {row[0] for row in rows} == {"tiny, 1x28x28 (3 KiB)"}
    assert rows[0][3::2] == ["1.00", "1.000"]
    assert all(float(cell) > 0 for row in rows for cell in row[2:])
