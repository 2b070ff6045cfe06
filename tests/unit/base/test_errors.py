from __future__ import annotations

from pipeline.base.errors import (
    ConfigError,
    GateError,
    MissingError,
    PipelineError,
    Problem,
    SmokeError,
    StageError,
    first_line,
    listed,
)


def test_the_error_form_names_everything_a_person_needs() -> None:
    error = StageError("export[m_onnx]: refused", found="two\nlines", where="m.yaml:3:1", hint="do this", log="m.log")
    assert str(error).splitlines() == [
        "export[m_onnx]: refused",
        "  found: two",
        "         lines",
        "  where: m.yaml:3:1",
        "  try:   do this",
        "  log:   m.log",
    ]


def test_empty_parts_are_left_out() -> None:
    assert str(MissingError("no java")) == "no java"


def test_a_config_error_lists_all_its_problems() -> None:
    problems = [Problem("m.yaml:1:2", "name", "wrong"), Problem("m.yaml:9:1", "", "tab")]
    assert str(ConfigError("config: 2 problems", problems=problems)).splitlines() == [
        "config: 2 problems",
        "  m.yaml:1:2: name: wrong",
        "  m.yaml:9:1: tab",
    ]


def test_exit_codes_are_those_of_the_contract() -> None:
    codes = {kind: kind.exit_code for kind in (ConfigError, MissingError, StageError, GateError, SmokeError)}
    assert codes == {ConfigError: 2, MissingError: 3, StageError: 4, GateError: 4, SmokeError: 5}
    assert all(issubclass(kind, PipelineError) for kind in codes)


def test_the_first_line_of_an_error_is_one_with_text_or_its_class() -> None:
    assert first_line(OSError(" \n two words \nmore")) == "two words"
    assert first_line(OSError(" \n")) == "OSError"


def test_the_first_of_many_are_listed_and_the_rest_counted() -> None:
    assert listed(["a", "b"], 2) == "a, b"
    assert listed(["a", "b", "c", "d"], 2) == "a, b and 2 more"
    assert listed(["a", "b", "c"], 2, "\n") == "a\nb\nand 1 more"
    assert listed(list("abcdef"), between="; ") == "a; b; c; d; e; and 1 more"
