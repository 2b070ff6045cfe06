"""What ``--report`` takes, before anything is built."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.base.errors import ConfigError
from pipeline.report import output
from pipeline.report.summary import BuildReport


def test_a_file_in_a_folder_that_exists_or_can_be_made_is_taken(tmp_path: Path) -> None:
    output.check(None)
    for name in ("report.json", "report", "a.b.json", "absent/report.json", "absent/as/well/report.json"):
        output.check(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_what_could_not_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "taken.html").mkdir()
    (tmp_path / "file").touch()
    for path, found in (
        (tmp_path / "report.html", "would replace it"),
        (tmp_path, "a folder has that name"),
        (tmp_path / "folder.json", "a folder has that name"),
        (tmp_path / "taken.json", "a folder has that name"),
        (tmp_path / "file" / "report.json", "Not a directory"),
        (tmp_path / "file" / "absent" / "report.json", "Not a directory"),
        (Path("/proc/report.json"), "/proc"),
        (Path("/proc/absent/report.json"), "/proc"),
    ):
        with pytest.raises(ConfigError, match="--report: the report cannot be written there") as caught:
            output.check(path)
        assert found in caught.value.found
        assert caught.value.hint.startswith("--report FILE.json")


def test_its_folder_is_made_when_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = BuildReport(
        run_id="r", config="m.yaml", environment={}, durations_s={}, exit_code=0, variants=(), run_dir=Path("runs/r")
    )
    output.check(Path("out/of/r.json"))
    output.write(Path("out/of/r.json"), [done])
    assert sorted(item.name for item in (tmp_path / "out" / "of").iterdir()) == ["r.html", "r.json"]
