"""The public function: what it refuses, how it sorts, and that nothing in a repository makes it fail."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.base.errors import ConfigError
from pipeline.lint import lint
from pipeline.lint import model as lint_model
from pipeline.lint import tree as lint_tree

from .lint_repository import (
    ONNX_CONFIG,
    check,
    ensemble,
    onnx_bytes,
    python_model,
    replaced,
    rules,
    tiny,
    torch_model,
    torchscript_bytes,
    write,
)


def test_a_good_repository_has_no_findings(tmp_path: Path) -> None:
    assert (
        check(tmp_path, {**ensemble(), **torch_model(), **python_model(), "README.md": "loose files are ignored"}) == []
    )


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda path: None, "nothing"),
        (lambda path: path.write_text("x"), "a file"),
        (lambda path: path.mkdir(), "no directory in it"),
        (lambda path: (path.mkdir(), (path / "README").write_text("x")), "no directory in it"),
        (lambda path: path.symlink_to("elsewhere"), "nothing"),
    ],
    ids=["missing", "file", "empty", "only files", "dangling"],
)
def test_what_is_no_repository_is_refused(tmp_path: Path, make: object, what: str) -> None:
    root = tmp_path / "repository"
    make(root)  # type: ignore[operator]
    with pytest.raises(ConfigError) as caught:
        lint(root)
    assert caught.value.exit_code == 2
    assert caught.value.found == what
    assert caught.value.where == str(root)


def test_an_unknown_target_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="release this tool knows"):
        check(tmp_path, tiny(), target="19.03")


def test_an_unreadable_root_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(_: Path) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path))

    monkeypatch.setattr(Path, "iterdir", forbidden)
    with pytest.raises(ConfigError, match="cannot be read"):
        lint(tmp_path)


def test_findings_of_all_models_are_sorted_by_path(tmp_path: Path) -> None:
    found = check(tmp_path, {**tiny(model=b"junk"), "a/1/x": "", ".git/x": "", "z/config.pbtxt": "nonsense: 1"})
    assert [item.path for item in found] == sorted(item.path for item in found)
    assert {item.path.split("/")[0].split(":")[0] for item in found} == {".git", "a", "tiny", "z"}


def test_nothing_is_changed(tmp_path: Path) -> None:
    write(tmp_path, {**ensemble(), **torch_model(), ".git/x": "y"})
    before = {path: (path.stat().st_mtime_ns, path.stat().st_mode) for path in tmp_path.rglob("*")}
    lint(tmp_path)
    assert {path: (path.stat().st_mtime_ns, path.stat().st_mode) for path in tmp_path.rglob("*")} == before


# The configuration's text


def test_a_parse_error_has_line_and_column(tmp_path: Path) -> None:
    found = check(tmp_path, tiny('backend: "onnxruntime"\n\n  max_batch_sise: 4\n'))
    (item,) = [item for item in found if item.rule == "config-parse"]
    assert item.path == "tiny/config.pbtxt:3:3"
    assert "max_batch_sise" in item.reason


def test_a_template_is_named_instead_of_its_parse_error(tmp_path: Path) -> None:
    text = replaced(ONNX_CONFIG, "max_batch_size: 8", "# was ${old}\nmax_batch_size: ${batch}")
    found = check(tmp_path, tiny(text))
    line = text.split("\n").index("max_batch_size: ${batch}") + 1
    assert rules(found) == {("unfilled-template", f"tiny/config.pbtxt:{line}:17")}


def test_alternative_configurations_are_parsed_too(tmp_path: Path) -> None:
    files = {**tiny(), "tiny/configs/gpu.pbtxt": "a_typo: 1", "tiny/configs/notes.txt": "not a config"}
    assert rules(check(tmp_path, files)) == {("config-parse", "tiny/configs/gpu.pbtxt:1:1")}


@pytest.mark.parametrize(
    ("target", "rule", "severity"),
    [("24.10", "field-unknown-to-release", "error"), ("24.11", "config-not-checked", "warning")],
)
def test_a_field_younger_than_the_message(tmp_path: Path, target: str, rule: str, severity: str) -> None:
    found = check(tmp_path, tiny(ONNX_CONFIG + "model_metrics { }"), target=target)
    assert [(item.rule, item.severity) for item in found] == [(rule, severity)]
    assert found[0].path == f"tiny/config.pbtxt:{len(ONNX_CONFIG.splitlines()) + 1}:1"


def test_a_field_younger_than_an_old_target(tmp_path: Path) -> None:
    text = 'backend: "tensorrt" input { name: "x" data_type: TYPE_FP32 dims: [1,2,3] is_non_linear_format_io: true }'
    files = {"trt/config.pbtxt": text, "trt/1/model.plan": "x"}
    assert ("field-unknown-to-release", "trt/config.pbtxt") in rules(check(tmp_path / "a", files, target="24.07"))
    assert ("field-unknown-to-release", "trt/config.pbtxt") not in rules(check(tmp_path / "b", files, target="24.08"))


# Hostile repositories


def test_a_huge_config_is_not_read(tmp_path: Path) -> None:
    root = write(tmp_path, tiny())
    with (root / "tiny/config.pbtxt").open("r+b") as stream:
        stream.truncate(100 << 20)
    assert rules(lint(root)) == {("config-not-text", "tiny/config.pbtxt")}


def test_a_pipe_or_a_directory_for_a_config_does_not_block(tmp_path: Path) -> None:
    root = write(tmp_path, {"a/1/x": "", "b/1/x": "", "b/config.pbtxt/": ""})
    os.mkfifo(root / "a/config.pbtxt")
    found = rules(lint(root))
    assert {("config-not-text", "a/config.pbtxt"), ("config-not-text", "b/config.pbtxt")} <= found


def test_links_that_dangle_loop_or_leave(tmp_path: Path) -> None:
    outside = write(tmp_path / "outside", {"labels": "a\nb\nc\nd\n", "model/config.pbtxt": "", "model/1/x": ""})
    root = write(tmp_path / "root", tiny(labels=None))
    (root / "gone").symlink_to("nowhere")
    (root / "tiny/loop").symlink_to("loop")
    (root / "tiny/labels.txt").symlink_to(outside / "labels")
    (root / "far").symlink_to(outside / "model")
    (root / "near").symlink_to("tiny")
    found = lint(root)
    assert {
        ("dangling-link", "gone"), ("dangling-link", "tiny/loop"),
        ("link-leaves-repository", "tiny/labels.txt"), ("link-leaves-repository", "far"),
    } <= rules(found)  # fmt: skip
    assert not [item for item in found if item.path == "near" and item.rule.endswith("repository")]
    assert next(item for item in found if item.path == "gone").reason.endswith("the whole repository fails to load.")


def test_a_config_that_links_to_itself(tmp_path: Path) -> None:
    root = write(tmp_path, {"m/1/x": ""})
    (root / "m/config.pbtxt").symlink_to("config.pbtxt")
    assert ("dangling-link", "m/config.pbtxt") in rules(lint(root))


def test_a_linked_version_directory_is_read(tmp_path: Path) -> None:
    root = write(tmp_path, tiny(model=None))
    write(root, {"tiny/store/model.onnx": b"junk"})
    (root / "tiny/1").symlink_to("store")
    assert ("onnx-corrupt", "tiny/1/model.onnx") in rules(lint(root))


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[Path]:
    """A repository with a tree deeper than a path may be long, and than Python recurses."""
    root = write(tmp_path, tiny())
    top, rest = root / "tiny" / "deeper", root / "tiny" / "rest"
    folder = os.open(top.parent, os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("deeper", dir_fd=folder)
        below = os.open("deeper", os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = below
    os.close(folder)
    yield root
    while (top / "deeper").is_dir():  # pytest removes old folders by recursion: a later run would fail at this one
        (top / "deeper").rename(rest)
        top.rmdir()
        rest.rename(top)


def test_a_deep_tree_is_left_alone(deep: Path) -> None:
    found = lint(deep)
    assert {item.rule for item in found} == {"tree-too-large", "version-directory-ignored"}


def test_many_files_are_not_all_walked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lint_tree, "_MAX_ENTRIES", 3)
    assert ("tree-too-large", "tiny") in rules(check(tmp_path, tiny()))


def test_names_that_are_no_text_are_shown(tmp_path: Path) -> None:
    root = os.fsencode(write(tmp_path, tiny()))
    Path(os.fsdecode(root + b"/bad\xff\nname/1")).mkdir(parents=True)
    found = lint(tmp_path)
    assert {item.path.split("/")[0] for item in found} == {"bad\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}name"}
    assert "model-name-characters" in {item.rule for item in found}
    for item in found:
        f"{item.path}{item.reason}{item.fix}".encode()


def test_what_the_system_forbids_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write(tmp_path, tiny())
    real = Path.open

    def forbidden(self: Path, *args: object, **kwargs: object) -> object:
        if self.name in ("labels.txt", "config.pbtxt"):
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, *args, **kwargs)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", forbidden)
    assert rules(lint(root)) == {("unreadable", "tiny/config.pbtxt")}
    model = lint_model.Model(
        root=root, path=root / "tiny", config=None, versions={}, target=lint_model.Limits(
            release="", triton="", onnxruntime="", max_opset=1, max_ir_version=1, python=None, tensorrt=None
        ), others={},
    )  # fmt: skip

    def reads_labels(_: lint_model.Model) -> list[lint_model.Finding]:
        lint_model.read_text(root / "tiny/labels.txt")
        return []

    (found,) = lint_model.run([reads_labels], model)  # type: ignore[list-item]
    assert (found.rule, found.path) == ("unreadable", "tiny/labels.txt")
    assert "Permission denied" in found.reason


def test_a_model_directory_that_cannot_be_listed_does_not_hide_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write(tmp_path, {**tiny(), "shut/1/x": ""})
    real = Path.iterdir

    def forbidden(self: Path) -> object:
        if self.name == "shut":
            raise PermissionError(13, "Permission denied", str(self))
        return real(self)

    monkeypatch.setattr(Path, "iterdir", forbidden)
    assert rules(lint(root)) == {("unreadable", "shut")}


def test_any_bytes_in_any_file_give_findings_and_nothing_else(tmp_path: Path) -> None:
    generator = random.Random(7)
    good = {**ensemble(), **torch_model(), **python_model()}
    starts = [b"", b"PK\x03\x04", b"\x80\x02", b"\x08\x0a", b"name: ", b'input { name: "', b"\xff\xfe"]
    for round_ in range(40):
        files = dict(good)
        for name, content in good.items():
            if name.endswith("/") or generator.random() < 0.4:
                continue
            if generator.random() < 0.5 and content:  # a good file with some bytes changed, or cut short
                data = bytearray(content.encode() if isinstance(content, str) else content)
                for _ in range(generator.randint(1, 8)):
                    data[generator.randrange(len(data))] = generator.randrange(256)
                files[name] = bytes(data[: generator.randint(0, len(data))])
            else:
                files[name] = generator.choice(starts) + generator.randbytes(generator.randint(0, 400))
        check(tmp_path / str(round_), files)


def test_damaged_models_give_findings_and_nothing_else(tmp_path: Path) -> None:
    generator = random.Random(11)
    for round_ in range(150):
        cut = {}
        for name, content in (("onnx", onnx_bytes()), ("torch", torchscript_bytes())):
            data = bytearray(content)
            for _ in range(generator.randint(0, 6)):
                data[generator.randrange(len(data))] = generator.randrange(256)
            cut[name] = bytes(data[: generator.choice([len(data), generator.randint(0, len(data))])])
        check(tmp_path / str(round_), {**tiny(model=cut["onnx"]), **torch_model(model=cut["torch"])})


def test_a_finding_is_a_value() -> None:
    place = lint_model.Place("a")
    assert replace(place.error("b", "c.", "d"), severity="warning") == place.warning("b", "c.", "d")
