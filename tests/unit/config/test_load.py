"""load(): good files load; every bad one ends in one ConfigError that names every problem and its place."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from textwrap import dedent

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.base.errors import ConfigError, Problem
from pipeline.config import load as loading
from pipeline.config.load import LoadedConfig, expand, load

GOOD = """\
name: net
source:
  train:
    model: {library: torchvision, name: resnet18}
    data: {dataset: digits}
    epochs: 2
inputs:
  image: {dtype: float32, shape: [N, 1, 8, 8], layout: NCHW}
outputs:
  logits: {shape: [N, 10]}
variants:
  onnx: {format: onnx}
  script: {format: torchscript}
  big: {from: onnx, triton: {max_batch_size: 64}}
triton:
  target: "24.10"
  max_batch_size: 32
"""


def _write(folder: Path, text: str) -> Path:
    path = folder / "net.yaml"
    path.write_text(dedent(text), encoding="utf-8")
    return path


def _good(folder: Path, *changes: tuple[str, str], overrides: tuple[str, ...] = ()) -> LoadedConfig:
    return load(_write(folder, _changed(*changes)), overrides)


def _changed(*changes: tuple[str, str]) -> str:
    text = GOOD
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def _problems(folder: Path, text: str, overrides: tuple[str, ...] = ()) -> tuple[Problem, ...]:
    path = _write(folder, text)
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    return caught.value.problems


def _lines(folder: Path, text: str, overrides: tuple[str, ...] = ()) -> list[str]:
    """Problems as text, the file's path taken away: ``3:5: key: message``."""
    return [str(problem).replace(f"{folder / 'net.yaml'}:", "") for problem in _problems(folder, text, overrides)]


def test_a_good_file_loads_with_every_default(tmp_path: Path) -> None:
    loaded = _good(tmp_path)
    assert loaded.config.inputs["image"].shape == ("N", 1, 8, 8)
    assert loaded.config.samples.from_ == "data.test"
    assert loaded.config.samples.count == 128
    assert loaded.config.variants["big"].from_ == "onnx"
    assert loaded.config.triton.model_config_fields == {}


def test_where_names_a_key_or_its_nearest_parent(tmp_path: Path) -> None:
    loaded = _good(tmp_path)
    path = tmp_path / "net.yaml"
    assert loaded.where("inputs", "image", "dtype") == f"{path}:8:11"
    assert loaded.where("inputs", "image", "shape", 1) == f"{path}:8:38"
    assert loaded.where("source", "train", "seed") == f"{path}:3:3"
    assert loaded.where("samples", "count") == f"{path}:1:1"


def test_paths_are_relative_to_the_yaml(tmp_path: Path) -> None:
    loaded = _good(tmp_path)
    assert loaded.resolve("data/x.npz") == tmp_path / "data/x.npz"
    assert loaded.resolve("/abs.npz") == Path("/abs.npz")


def test_every_problem_of_a_file_is_reported_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = _changed(
        ("name: net", "name: my net"),
        ("epochs: 2", "epoch: 2\n    seed: 1\n    seed: 1.5"),
        ("shape: [N, 1, 8, 8]", "shape: [N, 0, n, 8]"),
        ("{from: onnx, triton: {max_batch_size: 64}}", "{from: onix, opset: new}"),
        ('"24.10"', "24.10"),
        ("max_batch_size: 32", "dynamic_batchin: {}\n  name: net"),
    )
    assert _lines(tmp_path, text) == [
        "1:7: name: expected a name of letters, digits, _ and - (at most 64, the first a letter or a digit); "
        'found "my net"',
        "6:5: source.train.epoch: unknown key; did you mean `epochs`?",
        "8:5: source.train.seed: the same key twice; first at 7:5",
        "10:38: inputs.image.shape[1]: expected an integer >= 1 or a capital letter; found 0",
        '10:41: inputs.image.shape[2]: expected an integer >= 1 or a capital letter; found "n"',
        "16:15: variants.big.from: no variant is called `onix`; did you mean `onnx`?",
        '16:28: variants.big.opset: expected an integer >= 11 and <= 30; found "new"',
        '18:11: triton.target: expected a release such as "24.10"; found 24.1; quote it: "24.10"',
        "19:20: triton.dynamic_batchin: no such field in Triton's ModelConfig; did you mean `dynamic_batching`?",
        "20:9: triton.name: not to be set here: it is <name>_<variant>",
    ]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("epochs: 2", 'epochs: "2"', '6:13: source.train.epochs: expected an integer >= 1 and <= 100000; found "2"; '
         "without the quotes it is a number"),
        ("epochs: 2", "optimizer: adam", "6:16: source.train.optimizer: expected a mapping with name, learning_rate, "
         'weight_decay, momentum; found "adam"'),
        ("{dataset: digits}", "{dataset: digits, image_size: [8]}",
         "5:41: source.train.data.image_size: expected a list of 2: [height, width] in pixels; found [8]"),
        ("{dataset: digits}", "{dataset: digits, images: x}",
         "5:5: source.train.data: expected exactly one of dataset, images, arrays, callable; found dataset, images"),
        ("{dataset: digits}", "{dataset: digit}",
         '5:21: source.train.data.dataset: expected one of digits, mnist, cifar10; found "digit"'),
        ("logits: {", "logits: {zzz: 1, ", "10:12: outputs.logits.zzz: unknown key; known here: dtype, shape, labels"),
        ("logits: {", "lo gits: {", "10:3: outputs.lo gits: expected a name of letters, digits, _ and - "
         "(at most 64, the first a letter or a digit) as the key"),
        ("  script: {format: torchscript}", "  script: {simplify: yes, format: onnx}",
         '13:22: variants.script.simplify: expected true or false; found "yes"'),
        ("  script: {format: torchscript}", "  script: {method: trace, format: onnx}",
         "13:3: variants.script: `method` belongs to `format: torchscript`"),
        ("  script: {format: torchscript}", "  script: 5",
         "13:11: variants.script: expected a mapping with from, format, precision, method, exporter, opset, simplify, "
         "calibration, keep_fp32, repair, engine, gates, triton; found 5"),
        ("name: net\n", "", "1:1: name: missing; expected a name of letters, digits, _ and - "
         "(at most 64, the first a letter or a digit)"),
        ("max_batch_size: 32", "max_batch_size: 9999999999",
         "17:19: triton.max_batch_size: expected an integer >= 0 and <= 65536; found 9999999999"),
        ("name: net", "name: net\nsamples: {from: 5}",
         "2:17: samples.from: expected text or a mapping with dataset, images, arrays, callable, args, root, "
         "image_size, channels, mean, std, test_fraction; found 5"),
        ("name: net", "name: net\nsamples: {from: {foo: 1, dataset: digits}}",
         "2:18: samples.from.foo: unknown key; known here: dataset, images, arrays, callable, args, root, image_size, "
         "channels, mean, std, test_fraction"),
        ("shape: [N, 10]", "shape: [N, 10], labels: [1, 2]", "10:37: outputs.logits.labels[0]: expected text; found 1; "
         'quote it: "1"'),
    ],
)  # fmt: skip
def test_a_wrong_value_is_explained_at_its_place(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert expected in _lines(tmp_path, _changed((old, new)))


def test_messages_hold_no_jargon(tmp_path: Path) -> None:
    text = _changed(("epochs: 2", "epochs: {}"), ("[N, 10]", "{a: 1}"), ("{format: onnx}", "[1]"))
    with pytest.raises(ConfigError) as caught:
        load(_write(tmp_path, text))
    shown = str(caught.value)
    assert "3 problems" in shown
    for word in ("pydantic", "Input should", "valid", "constrained", "strict", "http"):
        assert word not in shown.replace(str(tmp_path), "")


@pytest.mark.parametrize(
    ("text", "where", "message"),
    [
        ("", "1:1", "expected a mapping with name, source, inputs, outputs and variants; found nothing"),
        ("# only words\n", "1:1", "expected a mapping with name, source, inputs, outputs and variants; found nothing"),
        ("- a\n", "1:1", 'expected a mapping with name, source, inputs, outputs and variants; found ["a"]'),
        ("a:\n\tb: 1\n", "2:1", "not valid YAML: a tab; YAML is indented with spaces"),
        ("a: b: c\n", "1:5", "not valid YAML: a `:` where no key can be: check the indentation, or quote the text"),
        ("a: [1, 2\n", "2:1", "not valid YAML: expected `,` or `]` (it began on line 1)"),
        ("a: {b: ${env:X}}", "1:9", "not valid YAML: expected `,` or `}`; between braces or brackets, quote the "
         "${env:NAME}"),
        ("a: 'x\n", "2:1", "not valid YAML: the text ends inside quotes (it began on line 1)"),
        ("a: x\x07y\n", "1:5", "a control character (U+0007)"),
        ('a: "\\UFFFFFFFF"\n', "1:1", "not valid YAML: after this, an escape beyond Unicode"),
        ("a: 1\n---\nb: 2\n", "3:1", "a second document; expected one"),
    ],
)  # fmt: skip
def test_what_is_no_yaml_is_one_problem_at_its_place(tmp_path: Path, text: str, where: str, message: str) -> None:
    (problem,) = _problems(tmp_path, text)
    assert problem.where == f"{tmp_path / 'net.yaml'}:{where}"
    assert problem.message == message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\na: 2\n", "2:1: a: the same key twice; first at 1:1"),
        ("x: {a: 1}\ny:\n  <<: 5\n", "3:3: y.<<: merge keys are not supported: write the keys out, or alias a whole "
         "value"),
        ("a: !!python/object:os.system x\n", "1:4: a: the tag !!python/object:os.system is not supported: write the "
         "plain value, text in quotes"),
        ("a: !mine {b: 1}\n", "1:4: a: the tag !mine is not supported: write the plain value, text in quotes"),
        ("a: .nan\n", "1:4: a: expected a finite number; found .nan"),
        ("a: [1, -.inf]\n", "1:8: a[1]: expected a finite number; found -.inf"),
        ("a: 1e999\n", "1:4: a: expected a finite number; 1e999 is beyond float64"),
        ("a: 99999999999999999999\n", "1:4: a: expected an integer of at most 64 bits"),
        (f"a: {'9' * 5000}\n", "1:4: a: expected an integer of at most 64 bits"),
        ("a: &x [*x]\n", "1:8: a[0]: *x refers to itself"),
        ("a: &x 1\nb: &x [*x]\n", "2:8: b[0]: *x refers to itself"),
        ("a: *x\n", "1:4: a: *x refers to no &anchor above it"),
        ("? [a]\n: 1\n", "1:3: a list or mapping as a key; expected a name"),
        (": 1\n", "1:1: expected a name before the `:`"),
        ('a: "\\uD800"\n', "1:4: a: text that is not Unicode, or holds a NUL character"),
        ('a: "\\0"\n', "1:4: a: text that is not Unicode, or holds a NUL character"),
        ("a: ${env:}\n", "1:4: a: expected ${env:NAME}, the only reference there is; found ${env:}"),
        ("a: ${HOME}\n", "1:4: a: expected ${env:NAME}, the only reference there is; found ${HOME}"),
    ],
)  # fmt: skip
def test_yaml_that_is_not_taken_is_reported_beside_the_rest(tmp_path: Path, text: str, expected: str) -> None:
    lines = _lines(tmp_path, text)
    assert expected in lines
    assert any("variants: missing" in line for line in lines)


def test_bombs_end_soon_and_cleanly(tmp_path: Path) -> None:
    laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
    )
    aliases = "a: &a " + "[" * 10 + "1" + "]" * 10 + "\nb: " + "[" * 24 + "*a" + "]" * 24 + "\n"
    bombs = {
        laughs: "more than 50000 values, aliases written out",
        "[" * 500_000: "nested more than 32 levels deep",
        "{a: " * 5_000: "nested more than 32 levels deep",
        "".join(" " * depth + "a:\n" for depth in range(900)): "nested more than 32 levels deep",
        aliases: "nested more than 32 levels deep",
    }
    started = time.monotonic()
    for text, message in bombs.items():
        (problem,) = _problems(tmp_path, text)
        assert problem.message == message
    assert time.monotonic() - started < 30


def test_an_alias_gives_its_value_wherever_it_stands(tmp_path: Path) -> None:
    loaded = _good(
        tmp_path,
        ("{format: onnx}", "&v {format: onnx, triton: {parameters: {a: {string_value: b}}}}"),
        ("{format: torchscript}", "*v"),
        overrides=("variants.script.triton.parameters.a.string_value=c",),
    )
    assert loaded.config.variants["onnx"].triton["parameters"]["a"] == {"string_value": "b"}
    assert loaded.config.variants["script"].triton["parameters"]["a"] == {"string_value": "c"}


def test_scalars_are_those_of_yaml_1_2(tmp_path: Path) -> None:
    args = "{day: 2020-01-31, no: no, octal: 0o17, hex: 0x1F, ten: 010, e: 1e3, big: 18446744073709551615, t: 1:30}"
    loaded = _good(tmp_path, ("name: resnet18}", f"name: resnet18, args: {args}}}"))
    assert loaded.config.source.train is not None
    assert loaded.config.source.train.model.args == {
        "day": "2020-01-31", "no": "no", "octal": 15, "hex": 31, "ten": 10, "e": 1000.0, "big": 2**64 - 1, "t": "1:30",
    }  # fmt: skip


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    large = tmp_path / "large.yaml"
    large.write_text("a" * (1 << 20) + "b")
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"name: x\nb: caf\xe9\n")
    cases = {
        tmp_path / "nothing.yaml": "No such file or directory",
        tmp_path: "Is a directory",
        large: "larger than 1 MiB",
        latin: "not UTF-8 (byte 0xe9)",
        Path("a\0b"): "embedded null byte",
    }
    for path, message in cases.items():
        with pytest.raises(ConfigError) as caught:
            load(path)
        (problem,) = caught.value.problems
        assert message in problem.message
        assert problem.where == (f"{latin}:2:7" if path == latin else str(path))


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    path = tmp_path / "net.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert load(path).config.name == "net"


def test_environment_references_are_filled_in_and_masked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_TEST_TOKEN", "s3cr3t-42")
    monkeypatch.setenv("PIPELINE_TEST_SIZE", "18")
    loaded = _good(
        tmp_path,
        ("name: resnet18}", 'name: "resnet${env:PIPELINE_TEST_SIZE}", args: {t: "${env:PIPELINE_TEST_TOKEN}"}}'),
        overrides=("variants.onnx.triton.metric_tags.size=${env:PIPELINE_TEST_SIZE}",),
    )
    assert loaded.config.source.train is not None
    assert loaded.config.source.train.model.name == "resnet18"
    assert loaded.config.source.train.model.args == {"t": "s3cr3t-42"}
    assert loaded.config.variants["onnx"].triton == {"metric_tags": {"size": "18"}}  # still text
    assert loaded.secrets == {"s3cr3t-42": "${env:PIPELINE_TEST_TOKEN}", "18": "${env:PIPELINE_TEST_SIZE}"}
    assert loaded.masked("at s3cr3t-42, 18 s") == "at ${env:PIPELINE_TEST_TOKEN}, 18 s"
    assert "s3cr3t-42" not in str(loaded.places)


def test_a_secret_never_stands_in_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_TEST_TOKEN", "hunter2!")
    (line,) = _lines(tmp_path, _changed(("name: net", "name: ${env:PIPELINE_TEST_TOKEN}")))
    assert "hunter2" not in line
    assert line.endswith('found "${env:PIPELINE_TEST_TOKEN}"')


def test_an_unset_variable_is_one_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIPELINE_TEST_TOKEN", raising=False)
    text = _changed(("epochs: 2", "epochs: ${env:PIPELINE_TEST_TOKEN}"))
    assert _lines(tmp_path, text) == [
        "6:13: source.train.epochs: the environment variable PIPELINE_TEST_TOKEN is not set"
    ]
    assert load(_write(tmp_path, text), ["source.train.epochs=3"]).config.source.train.epochs == 3  # type: ignore[union-attr]


def test_overrides_replace_create_and_append(tmp_path: Path) -> None:
    loaded = _good(
        tmp_path,
        overrides=(
            "source.train.epochs=7",
            "samples.count=64",
            "inputs.image.shape.1=3",
            "variants.small={from: onnx}",
            "variants.small.triton.instance_group=[{count: 1}]",
            "variants.small.triton.instance_group.1={count: 2}",
            "variants.big.triton={}",
            "source.train.epochs=8",
        ),
    )
    config = loaded.config
    assert config.source.train is not None
    assert config.source.train.epochs == 8
    assert config.samples.count == 64
    assert config.inputs["image"].shape == ("N", 3, 8, 8)
    assert config.variants["small"].triton == {"instance_group": [{"count": 1}, {"count": 2}]}
    assert config.variants["big"].triton == {}
    assert loaded.where("samples", "count") == "--set samples.count=64"
    assert loaded.overrides[0] == "source.train.epochs=7"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("epochs", "--set epochs: expected KEY=VALUE, the key's parts joined by dots, e.g. source.train.epochs=2"),
        ("a..b=1", "--set a..b=1: expected KEY=VALUE, the key's parts joined by dots, e.g. source.train.epochs=2"),
        ("name.x=1", '--set name.x=1: name is "net": it has no `x`'),
        ("inputs.image.shape.9=1", "--set inputs.image.shape.9=1: inputs.image.shape is a list of 4: it has no `9`"),
        ("name=[a", "--set name=[a: name: not valid YAML: expected `,` or `]`"),
        ("name=!x a", "--set name=!x a: name: the tag !x is not supported: write the plain value, text in quotes"),
        ("source.train.epoch=1", "--set source.train.epoch=1: source.train.epoch: unknown key; did you mean `epochs`?"),
        ("source.train.epochs=x", "--set source.train.epochs=x: source.train.epochs: expected an integer >= 1 and "
         '<= 100000; found "x"'),
    ],
)  # fmt: skip
def test_a_wrong_override_is_a_problem_at_the_flag(tmp_path: Path, override: str, expected: str) -> None:
    assert _lines(tmp_path, GOOD, (override,)) == [expected]


def test_expand_takes_files_and_folders(tmp_path: Path) -> None:
    for name in ("b.yaml", "a.yml", "notes.txt", "c.json"):
        (tmp_path / name).touch()
    (tmp_path / "folder.yaml").mkdir()
    other = tmp_path / "notes.txt"
    assert expand([other, tmp_path, tmp_path / "b.yaml"]) == [other, tmp_path / "a.yml", tmp_path / "b.yaml"]
    with pytest.raises(ConfigError, match="no such configuration"):
        expand([tmp_path / "nope.yaml"])
    with pytest.raises(ConfigError, match="no configuration in this folder"):
        expand([tmp_path / "folder.yaml"])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.one_of(
        st.text(max_size=200),
        st.text(alphabet="ab:-[]{}&*!?|>'\"%@`#,\n \t$<~0.", max_size=80),
        st.lists(st.sampled_from(GOOD.splitlines(keepends=True)), max_size=20).map("".join),
    )
)
def test_any_text_loads_or_is_a_config_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "any.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with contextlib.suppress(ConfigError):
        load(path)


def test_the_json_schema_is_that_of_a_configuration() -> None:
    schema = loading.json_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["title"]
    assert "from" in schema["$defs"]["Variant"]["properties"]
    assert schema["required"] == ["name", "source", "inputs", "outputs", "variants"]
