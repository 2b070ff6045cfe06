from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from typer.testing import CliRunner

from pipeline import __main__ as main_module
from pipeline import __version__
from pipeline.base.errors import ConfigError
from pipeline.cli import commands
from pipeline.cli.app import app, cache
from pipeline.importing import manifest as manifests
from tests.unit.importing.mar import mar

runner = CliRunner()
CONFIGS = Path(__file__).parents[3] / "configs"
COMMANDS = ["build", "plan", "serve", "smoke", "predict", "load", "lint", "import-mar", "schema", "doctor", "cache"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    shown = runner.invoke(app, [command, "--help"])
    assert shown.exit_code == 0
    assert "Usage" in shown.output


def test_help_lists_the_commands_and_exit_codes() -> None:
    shown = runner.invoke(app, ["--help"], env={"COLUMNS": "200"}).output
    for word in (*COMMANDS, "Exit codes"):
        assert word in shown


def test_the_version_is_printed() -> None:
    assert __version__ in runner.invoke(app, ["--version"]).output


def test_the_schema_in_the_repository_is_the_current_one() -> None:
    printed = json.loads(runner.invoke(app, ["schema"]).output)
    assert printed == json.loads((CONFIGS / "schema.json").read_text())


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_plans_and_names_its_schema(path: Path, tmp_path: Path) -> None:
    assert path.read_text().startswith("# yaml-language-server: $schema=./schema.json\n")
    shown = runner.invoke(app, ["plan", str(path), "--json", "--work-dir", str(tmp_path)])
    assert shown.exit_code == 0, shown.output
    plan = json.loads(shown.output)
    assert plan["missing"] == []
    assert not any(step["cached"] for step in plan["steps"])


def test_a_wrong_configuration_exits_with_2_and_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.yaml").write_text("name: a/b\nsoruce: {}\n")
    monkeypatch.setattr(
        "sys.argv", ["pipeline", "build", str(tmp_path / "bad.yaml"), "--work-dir", str(tmp_path / "w")]
    )
    assert main_module.main() == 2
    text = capsys.readouterr().err
    assert "bad.yaml:1:7: name" in text
    assert "bad.yaml:2:1: soruce" in text
    assert "source" in text
    assert "Traceback" not in text
    assert sorted(item.name for item in tmp_path.iterdir()) == ["bad.yaml"]


def test_the_problems_of_all_files_come_together(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text("name: [\n")
    shown = runner.invoke(app, ["plan", str(tmp_path)])
    assert isinstance(shown.exception, ConfigError)
    assert {Path(problem.where.split(":")[0]).name for problem in shown.exception.problems} == {"a.yaml", "b.yaml"}


def test_two_configurations_may_not_make_the_same_model(tmp_path: Path) -> None:
    text = (CONFIGS / "from_onnx.yaml").read_text().replace("models/", f"{CONFIGS}/models/")
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text(text)
    shown = runner.invoke(app, ["plan", str(tmp_path)])
    assert isinstance(shown.exception, ConfigError)
    assert "digits_onnx" in str(shown.exception)


@pytest.mark.parametrize("command", ["build", "smoke"])
@pytest.mark.parametrize("report", ["x.html", ".", "/proc/absent/x.json"])
def test_a_report_that_could_not_be_written_is_refused_before_anything_is_done(
    command: str, report: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["pipeline", command, str(CONFIGS / "from_onnx.yaml"), "--report", report])
    assert main_module.main() == 2
    assert "error: --report: the report cannot be written there" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        ["build", "URL"],
        ["plan", "URL"],
        *(
            [command, "m.yaml", option, "URL"]
            for command in ("build", "smoke")
            for option in ("--repository", "--work-dir", "--report")
        ),
        ["plan", "m.yaml", "--repository", "URL"],
        ["smoke", "URL"],
        ["serve", "URL"],
        ["serve", ".", "--work-dir", "URL"],
        ["lint", "URL"],
        ["predict", "m", "--input", "URL"],
        ["load", "m", "--image", "a.png", "--image", "URL"],
        ["load", "m", "--input", "URL"],
        ["import-mar", "URL"],
        ["import-mar", "m.mar", "--out", "URL"],
        ["import-mar", "m.mar", "--samples", "URL"],
        ["metadata", "URL"],
        ["doctor", "--work-dir", "URL"],
        *(["cache", command, "--work-dir", "URL"] for command in ("ls", "gc", "clear")),
    ],
)
def test_no_path_is_a_url(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("sys.argv", ["pipeline", *("s3://bucket/x" if word == "URL" else word for word in words)])
    assert main_module.main() == 2
    told = capsys.readouterr().err
    assert "'s3://bucket/x' is a URL" in told
    assert words[-2] in told or words[-2] in COMMANDS or words[-2] == "metadata"
    assert list(tmp_path.iterdir()) == []


def test_every_path_of_the_command_line_is_looked_at() -> None:
    """None is left to typer, which takes an URL for a folder."""
    looked_at = {}
    for command in (*app.registered_commands, *cache.registered_commands):
        for name, hint in get_type_hints(command.callback, include_extras=True).items():
            if "Path" in str(get_args(hint)[:1]):
                looked_at[command.callback, name] = hint.__metadata__[0].parser
    assert len(looked_at) > 20
    assert None not in looked_at.values()


@pytest.mark.parametrize(
    "words", [["load", "m"], ["predict", "m", "--input", "x.png"], ["smoke", str(CONFIGS / "from_onnx.yaml")]]
)
def test_a_mistyped_address_exits_with_2(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["pipeline", *words, "--url", "127.0.0.1:abc"])
    assert main_module.main() == 2
    text = capsys.readouterr().err
    assert "error: --url: not the address of a server" in text
    assert "found: '127.0.0.1:abc'" in text
    assert "Traceback" not in text


def test_load_waits_as_long_as_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.load import run

    orders: list[run.Order] = []

    def fails(order: run.Order, progress: object) -> None:
        orders.append(order)
        raise ConfigError("enough")

    monkeypatch.setattr(run, "run", fails)
    for words in ([], ["--timeout-s", "300"]):
        runner.invoke(app, ["load", "m", *words])
    assert [order.timeout_s for order in orders] == [60.0, 300.0]


def test_ports_beyond_the_range_are_refused(tmp_path: Path) -> None:
    assert runner.invoke(app, ["serve", str(tmp_path), "--http-port", "70000"]).exit_code == 2


def test_no_archive_and_no_path_steers_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    escape = "\x1b]0;owned\x07\x9b2J\u202e"
    settings = {"model-config.yaml": json.dumps({f"key{escape}": 1})}
    keys = {"modelVersion": escape, "handler": f"handler{escape}", "configFile": "model-config.yaml"}
    path = mar(tmp_path / "tiny.mar", settings, **keys)
    for arguments in ([str(path), "--out", str(tmp_path / "out")], [str(tmp_path / f"none{escape}\udcff")]):
        monkeypatch.setattr("sys.argv", ["pipeline", "import-mar", *arguments])
        assert main_module.main() == 2
        told = capsys.readouterr()
        assert not set(escape) & set(told.out + told.err) - set("]0;owned2J")
        assert "�" in told.out + told.err
    assert (tmp_path / "out" / "tiny.yaml").exists()


def test_an_import_that_is_ended_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = manifests.read

    def ended(*arguments: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return read(*arguments)

    monkeypatch.setattr(manifests, "read", ended)
    path = mar(tmp_path / "tiny.mar")
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what is not handled must not end the tests
    try:
        with pytest.raises(KeyboardInterrupt):
            commands.import_mar(path, tmp_path / "out", (), (), None)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
    assert list(tmp_path.iterdir()) == [path]
