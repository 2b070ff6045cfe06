from __future__ import annotations

from pipeline.base.printing import printable


def test_what_steers_a_terminal_or_hides_is_replaced() -> None:
    hostile = "a\x1b[2J\x9b2J\u202etxt\udcff\n\0"
    assert printable(hostile) == "a�[2J�2J�txt���"
    assert printable("模型😀 é 'x'") == "模型😀 é 'x'"
