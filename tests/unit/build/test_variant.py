"""What is skipped where the YAML allows it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.base.errors import MissingError
from pipeline.build import variant as make
from pipeline.formats.tensorrt.failures import absent
from pipeline.machine.tensorrt_flavours import flavour
from tests.unit.formats.tensorrt.test_spec import spec


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("lack", ["a library that does not load", "a full disk"])
def test_what_only_the_child_finds_missing_is_skipped_where_the_yaml_allows_it(
    monkeypatch, tmp_path, skip, lack
) -> None:
    told: dict[str, Any] = {}
    run: Any = SimpleNamespace(update=lambda variant, **changes: told.update(changes))
    engine: Any = SimpleNamespace(spec=spec(), step=object(), skip=skip)

    def fail(*_: Any) -> Any:
        if lack == "a full disk":
            raise MissingError("no space left on the disk")
        raise absent(flavour("tensorrt"), "import tensorrt: libnvinfer.so.10: cannot open")

    monkeypatch.setattr(make, "_made", fail)
    graph: Any = SimpleNamespace(properties={}, path=tmp_path)
    if skip and lack != "a full disk":
        assert make._engine(run, object(), engine, graph) is None
        assert told["skipped"] == "import tensorrt: libnvinfer.so.10: cannot open"
        assert (told["artifact"], told["parity"], told["accuracy"]) == (None, None, None)  # those of its graph
        return
    with pytest.raises(MissingError):
        make._engine(run, object(), engine, graph)
    assert not told
