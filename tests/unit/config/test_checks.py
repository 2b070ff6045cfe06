"""Rules between keys: each is met by a file that breaks it, and let be by one that does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.base.errors import ConfigError
from pipeline.config.load import load

BASE = """\
name: net
source: {model: {callable: "os.path:join"}}
inputs:
  x: {shape: [N, 3, 8, 8]}
outputs:
  y: {shape: [N, 10]}
samples: {from: {dataset: digits}}
variants:
  onnx: {format: onnx}
"""


def _check(folder: Path, *changes: tuple[str, str]) -> list[str]:
    text = BASE
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path = folder / "net.yaml"
    path.write_text(text)
    try:
        load(path)
    except ConfigError as error:
        return [str(problem).removeprefix(f"{path}:") for problem in error.problems]
    return []


@pytest.mark.parametrize(
    "changes",
    [
        (),
        (("y: {shape: [N, 10]}", "y: {shape: [N, 10]}\n  boxes: {shape: [N, K, 4]}"),),  # a letter of no input
        (("[N, 3, 8, 8]", "[L]"), ("[N, 10]", "[5]")),  # no batch dimension
        (("[N, 3, 8, 8]", "[N, 3, 8, 8], layout: NCHW"),),
        (("[N, 3, 8, 8]", "[]"), ("[N, 10]", "[]")),
        (("[N, 10]", "[N, 3], labels: [a, b, c]"),),
        (("[N, 10]", "[N, K], labels: [a, b, c]"),),
        (("[N, 10]", "[N, 10], labels: source"),),
        (("[N, 3, 8, 8]", "[N, 3, 8, 8], layout: NCHW"), ("digits", "digits, mean: [0, 0, 0], std: [1]")),
        (("{format: onnx}", "{format: onnx, opset: 21}\n  two: {from: onnx}\n  three: {from: two, format: onnx}"),),
        (("{format: onnx}", "{format: onnx, triton: {max_batch_size: null, dynamic_batching: null}}"),),
        (("samples:", "triton: {input: [{name: x, allow_ragged_batch: true}]}\nsamples:"),),
        (("samples:", "triton: {input: [{name: x, dims: [192], reshape: {shape: [3, 8, 8]}}]}\nsamples:"),),
        (
            (
                "{format: onnx}",
                "{format: onnx}\n  i: {from: onnx, precision: int8, calibration: {method: entropy}}\n"
                "  t: {from: i, format: tensorrt, repair: off}\n  b: {from: onnx, format: tensorrt, precision: bf16}",
            ),
        ),
        (("samples:", "triton: {version_policy: {specific: {versions: [1, 2]}}, max_batch_size: 8}\nsamples:"),),
    ],
)
def test_sound_configurations_pass(tmp_path: Path, changes: tuple[tuple[str, str], ...]) -> None:
    assert _check(tmp_path, *changes) == []


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("{format: onnx}", "{from: onx}", "9:16: variants.onnx.from: no variant is called `onx`; did you mean `onnx`?"),
        ("{format: onnx}", "{from: onnx}", "9:16: variants.onnx.from: a circle: onnx -> onnx; one of them needs a "
         "`format` of its own, and no `from`"),
        ("{format: onnx}", "{from: b}\n  b: {from: a}\n  a: {from: onnx}\n  outside: {from: b}", "11:13: "
         "variants.a.from: "
         "a circle: a -> onnx -> b -> a; one of them needs a `format` of its own, and no `from`"),
        ("{format: onnx}", "{format: onnx}\n  b: {from: onnx}\n  c: {from: b, format: torchscript}", "11:24: "
         "variants.c.format: expected onnx, that of `b`; found torchscript"),
        ("{format: onnx}", "{format: onnx}\n  b: {from: onnx, format: tensorrt}\n  c: {from: b, format: onnx}",
         "11:24: variants.c.format: expected tensorrt, that of `b`; found onnx"),
        ("{format: onnx}", "{format: torchscript, precision: fp16}", "9:42: variants.onnx.precision: expected fp32, "
         "the only precision of torchscript; found fp16"),
        ("{format: onnx}", "{format: onnx, precision: bf16}", "9:35: variants.onnx.precision: bf16 is for tensorrt: "
         "ONNX Runtime's CPU has no bfloat16 arithmetic; expected fp16 or int8 here"),
        ("{format: onnx}", "{format: onnx, precision: fp16}\n  b: {from: onnx, precision: int8}", "10:30: "
         "variants.b.precision: expected fp16, the precision of `onnx`, or an fp32 variant under `from`"),
        ("{format: onnx}", "{format: onnx, precision: fp16, calibration: {samples: 64}}", "9:54: "
         "variants.onnx.calibration: belongs to `precision: int8`"),
        ("{format: onnx}", "{format: onnx, repair: off}", "9:32: "
         "variants.onnx.repair: belongs to `precision: fp16, bf16 or int8`"),
        ("{format: onnx}", "{format: onnx, precision: int8, engine: {gpus: [sm_80]}}", "9:49: "
         "variants.onnx.engine: belongs to `format: tensorrt`"),
        ("{format: onnx}", "{format: onnx, precision: int8, calibration: {samples: 1}}", "9:64: "
         "variants.onnx.calibration.samples: expected an integer >= 16 and <= 100000; found 1"),
        ("{format: onnx}", "{format: onnx}\n  b: {from: onnx, format: tensorrt, engine: {gpus: [a100]}}", "10:53: "
         "variants.b.engine.gpus[0]: expected a compute capability such as sm_80; found \"a100\""),
        ("{format: onnx}", "{format: tensorrt}", "9:3: variants.onnx: an engine is built from an ONNX file: expected "
         "`from`, naming an onnx variant"),
        ("{dataset: digits}", "data.test", "7:17: samples.from: `data.test` is the held-out part of source.train.data, "
         "but the source is `model`: name the samples' own data, e.g. {arrays: samples.npz}"),
        ("samples: {from: {dataset: digits}}\n", "", "1:1: samples.from: `data.test` is the held-out part of "
         "source.train.data, but the source is `model`: name the samples' own data, e.g. {arrays: samples.npz}"),
        ("[N, 3, 8, 8]", "[N, 8, 8], layout: NHWC", "4:33: inputs.x.layout: NHWC names four dimensions; the "
         "shape has 3"),
        ("[N, 10]", "[M, 10]}\n  z: {shape: [N, 2]", "6:14: outputs.y.shape: expected N as the first dimension: "
         "inputs.x "
         "and others start with it, so it is the batch, which every input and output has; another size needs another "
         "letter"),
        ("[N, 3, 8, 8]", "[N, 3, 8, 8]}\n  w: {shape: [4]", "5:14: inputs.w.shape: expected N as the first dimension: "
         "inputs.x and others start with it, so it is the batch, which every input and output has; another size needs "
         "another letter"),
        ("{format: onnx}", "{format: onnx, triton: {max_batch_size: -1}}", "9:49: variants.onnx.triton.max_batch_size: "
         "expected an integer >= 0 and <= 65536; found -1"),
        ("{format: onnx}", "{format: onnx, triton: {max_batch_size: true}}", "9:49: "
         "variants.onnx.triton.max_batch_size: "
         "expected an integer >= 0 and <= 65536; found true"),
        ("[N, 10]", "[N, 10], labels: [a, b]", "6:31: outputs.y.labels: 2 labels for a last dimension of 10"),
        ("[N, 3, 8, 8]", "[N, 3, 40000, 40000]", "4:14: inputs.x.shape: one sample takes 17.9 GiB; expected at "
         "most 2 GiB"),
        ("{format: onnx}", "{format: onnx, opset: 25}", "9:31: variants.onnx.opset: expected at most 21, the "
         "newest that "
         "Triton 24.10 (ONNX Runtime 1.19.2) loads; found 25"),
        ("{format: onnx}", "{format: onnx, triton: {target: '24.10'}}", "9:41: variants.onnx.triton.target: the target "
         "is the same for all variants: set it in the common `triton`"),
        ("name: net", f"name: {'n' * 64}", None),
    ],
)  # fmt: skip
def test_broken_rules_are_told(tmp_path: Path, old: str, new: str, expected: str | None) -> None:
    assert _check(tmp_path, (old, new)) == ([expected] if expected else [])


def test_a_batch_limit_needs_a_batch(tmp_path: Path) -> None:
    changes = (("[N, 3, 8, 8]", "[3, 8, 8]"), ("samples:", "triton: {max_batch_size: 8}\nsamples:"))
    assert _check(tmp_path, *changes) == [
        "7:26: triton.max_batch_size: expected 0: the model has no batch dimension "
        "(its shapes do not all start with the same letter)"
    ]


def test_channels_agree_with_the_images(tmp_path: Path) -> None:
    image = ("[N, 3, 8, 8]", "[N, 3, 8, 8], layout: NCHW")
    assert _check(tmp_path, image, ("digits", "digits, mean: [0, 0], std: [1, 1, 1, 1]")) == [
        "7:41: samples.from.mean: expected 1 or 3 values; found 2",
        "7:54: samples.from.std: expected 1 or 3 values; found 4",
    ]
    assert _check(tmp_path, image, ("digits", "digits, channels: 1")) == [
        "7:45: samples.from.channels: expected 3, as the model's image input has; found 1"
    ]
    nhwc = ("[N, 3, 8, 8]", "[N, 8, 8, 1], layout: NHWC")
    assert _check(tmp_path, nhwc, ("digits", "digits, mean: [0, 0, 0]")) == [
        "7:41: samples.from.mean: expected one value; found 3"
    ]


def test_an_unknown_target_is_told_with_those_there_are(tmp_path: Path) -> None:
    (line,) = _check(tmp_path, ("samples:", "triton: {target: '19.01'}\nsamples:"))
    assert line.startswith("7:18: triton.target: ")
    assert "19.01" in line


def test_torchscript_cannot_come_from_onnx(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").touch()
    source = ('{model: {callable: "os.path:join"}}', "{onnx: {file: m.onnx}}")
    assert _check(tmp_path, source, ("format: onnx", "format: torchscript")) == [
        "9:18: variants.onnx.format: an ONNX file cannot be made into TorchScript; expected onnx"
    ]


def test_torchscript_inputs_are_arguments(tmp_path: Path) -> None:
    assert _check(tmp_path, ("  x:", "  in-put:"), ("format: onnx", "format: torchscript")) == [
        "4:11: inputs.in-put: a torchscript variant's inputs are arguments of `forward`, and 'in-put' cannot be one"
    ]


def test_names_are_not_too_long(tmp_path: Path) -> None:
    long = "n" * 64
    assert _check(tmp_path, ("name: net", f"name: {long}"), ("  onnx:", f"  {long}:")) == [
        f"9:69: variants.{long}: the model name {long}_{long} has 129 characters; expected at most 128"
    ]


def test_files_must_be_there_and_of_their_kind(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "weights.pt").touch()
    (tmp_path / "labels.txt").write_text("a\nb\n")
    lines = _check(
        tmp_path,
        ('{model: {callable: "os.path:join"}}', '{checkpoint: {file: weigths.pt, model: {callable: "net.py:make"}}}'),
        ("{dataset: digits}", "{images: weights.pt}"),
        ("[N, 10]", "[N, 10], labels: labels.txt"),
    )
    assert lines == [
        f"2:29: source.checkpoint.file: no such file: {tmp_path}/weigths.pt; did you mean weights.pt?",
        f"2:59: source.checkpoint.model.callable: no such file: {tmp_path}/net.py",
        f"6:31: outputs.y.labels: {tmp_path}/labels.txt has 2 lines, one per label, for a last dimension of 10",
        f"7:26: samples.from.images: expected a folder; {tmp_path}/weights.pt is a file",
    ]
    assert _check(tmp_path, ("{dataset: digits}", "{arrays: photos}")) == [
        f"7:26: samples.from.arrays: expected a file; {tmp_path}/photos is a folder"
    ]
    (tmp_path / "labels.txt").write_bytes(b"\xff\n")
    (line,) = _check(tmp_path, ("[N, 10]", "[N, 10], labels: labels.txt"))
    assert "is no UTF-8 text file" in line
    (line,) = _check(tmp_path, ("{dataset: digits}", f"{{arrays: {'x' * 300}}}"))
    assert "File name too long" in line


@pytest.mark.parametrize("field", ["name", "platform", "backend", "runtime", "default_model_filename"])
def test_fields_the_pipeline_owns_are_refused(tmp_path: Path, field: str) -> None:
    (line,) = _check(tmp_path, ("{format: onnx}", f"{{format: onnx, triton: {{{field}: x}}}}"))
    assert line.startswith(f"9:{35 + len(field)}: variants.onnx.triton.{field}: not to be set here: it ") or (
        field == "default_model_filename" and "the pipeline names the file" in line
    )


def test_triton_fields_are_those_of_model_config_and_of_the_model(tmp_path: Path) -> None:
    triton = """\
triton:
  dynamic_batchin: {}
  instance_group: [{count: two, knd: KIND_CPU}]
  parameters: {threads: 2}
  input:
    - {name: xx, data_type: TYPE_FP32, dims: [3]}
    - {optional: true}
samples:"""
    assert _check(tmp_path, ("samples:", triton), ("{format: onnx}", "{format: onnx, triton: "
     "{sequence_batching: 1}}")) == [
        "8:20: triton.dynamic_batchin: no such field in Triton's ModelConfig; did you mean `dynamic_batching`?",
        "9:28: triton.instance_group[0].count: expected an integer of 32 bits; found 'two'",
        "9:38: triton.instance_group[0].knd: no such field in Triton's ModelConfig; did you mean `kind`?",
        "10:25: triton.parameters.threads: expected a mapping with string_value; found 2",
        "12:14: triton.input[0].name: the model has no input \"xx\"; known here: x",
        "12:29: triton.input[0].data_type: not to be set here: it follows from `inputs`",
        "12:46: triton.input[0].dims: not to be set here, but together with `reshape`: the shape is that in `inputs`",
        "13:7: triton.input[1]: expected `name`, one of x",
        "16:52: variants.onnx.triton.sequence_batching: expected a mapping with direct, oldest, "
        "max_sequence_idle_microseconds, control_input, state, iterative_sequence; found 1",
    ]  # fmt: skip


def test_an_engine_of_its_own_wish_on_a_cpu_is_refused(tmp_path: Path) -> None:
    more = "{from: trt, triton: {instance_group: [{kind: KIND_CPU}]}}"
    trt = f"{{format: onnx}}\n  trt: {{from: onnx, format: tensorrt}}\n  more: {more}"
    (line,) = _check(tmp_path, ("{format: onnx}", trt))
    assert line == (
        "11:54: variants.more.triton.instance_group[0].kind: an engine runs on a GPU: expected KIND_GPU; found KIND_CPU"
    )
    common = ("samples:", "triton: {instance_group: [{kind: KIND_CPU}]}\nsamples:")
    assert _check(tmp_path, common, ("{format: onnx}", trt.replace("KIND_CPU", "KIND_GPU"))) == []


def test_two_schedulers_laid_over_each_other_are_told(tmp_path: Path) -> None:
    triton = ("samples:", "triton: {dynamic_batching: {}}\nsamples:")
    variant = ("{format: onnx}", "{format: onnx, triton: {sequence_batching: {}}}")
    assert _check(tmp_path, triton, variant) == [
        "10:52: variants.onnx.triton.sequence_batching: only one of these may be given: dynamic_batching, "
        "sequence_batching"
    ]


_NO_URL = "expected a path on this machine, no URL; found"


def test_no_path_is_a_url(tmp_path: Path) -> None:
    lines = _check(
        tmp_path,
        ("name: net", "name: net\nrepository: {path: s3://bucket/x}"),
        ('{model: {callable: "os.path:join"}}', "{checkpoint: {file: HTTPS://host/w.pt, allow_pickle: true}}"),
        ("{dataset: digits}", "{dataset: mnist, root: gs://bucket/data}"),
        ("[N, 10]", "[N, 10], labels: file:///labels.txt"),
        (
            "{format: onnx}",
            "{format: onnx}\n  i: {from: onnx, precision: int8, calibration: {from: {images: s3://bucket/photos}}}",
        ),
    )
    assert lines == [
        f'2:20: repository.path: {_NO_URL} "s3://bucket/x"',
        f'3:29: source.checkpoint.file: {_NO_URL} "HTTPS://host/w.pt"',
        f'7:31: outputs.y.labels: {_NO_URL[:-7]} or a list (each item text); found "file:///labels.txt"',
        f'8:40: samples.from.root: {_NO_URL} "gs://bucket/data"',
        f'11:65: variants.i.calibration.from.images: {_NO_URL} "s3://bucket/photos"',
    ]


@pytest.mark.parametrize(
    ("source", "key"),
    [
        ("onnx: {file: 's3://b/m.onnx'}", "onnx.file"),
        ("torchscript: {file: 's3://b/m.pt'}", "torchscript.file"),
        ("keras: {file: 's3://b/m.keras'}", "keras.file"),
        ("saved_model: {directory: 's3://b/m'}", "saved_model.directory"),
        ("train: {model: {library: torchvision, name: resnet18}, data: {arrays: 's3://b/m'}}", "train.data.arrays"),
        ("model: {library: transformers, name: 's3://b/m'}", "model.name"),
    ],
)
def test_no_source_is_a_url(source: str, key: str, tmp_path: Path) -> None:
    lines = _check(tmp_path, ('model: {callable: "os.path:join"}', source))
    assert [line.split(": ", 1)[1].partition(' "')[0] for line in lines] == [f"source.{key}: {_NO_URL}"]
    assert lines[0].startswith("2:")


def test_a_folder_may_have_a_colon(tmp_path: Path) -> None:
    assert _check(tmp_path, ("name: net", 'name: net\nrepository: {path: "a:b/s3:/x//y"}')) == []


def test_rules_are_checked_beside_wrong_values(tmp_path: Path) -> None:
    lines = _check(
        tmp_path,
        ("name: net", "nam: net"),
        ("[N, 3, 8, 8]", "[N, 3, 8, 8], dtype: float"),
        ("{dataset: digits}", "{arrays: nothing.npz, foo: 1}"),
        ("{format: onnx}", "{format: onnx, opset: 1, method: trace}\n  b: {from: c}\n  c: {from: b}"),
    )
    assert lines == [
        "1:1: name: missing; expected a name of letters, digits, _ and - (at most 64, the first a letter or a digit)",
        "1:1: nam: unknown key; did you mean `name`?",
        "4:35: inputs.x.dtype: expected one of bool, uint8, uint16, uint32, uint64, int8, int16, int32, int64, "
        "float16, "
        'float32, float64; found "float"',
        f"7:26: samples.from.arrays: no such file: {tmp_path}/nothing.npz",
        "7:39: samples.from.foo: unknown key; known here: dataset, images, arrays, callable, args, root, image_size, "
        "channels, mean, std, test_fraction",
        "9:31: variants.onnx.opset: expected an integer >= 11 and <= 30; found 1",
        "10:13: variants.b.from: a circle: b -> c -> b; one of them needs a `format` of its own, and no `from`",
    ]


@pytest.mark.parametrize("key", ["format", "precision"])
@pytest.mark.parametrize("value", ["[onnx]", "{a: b}", "7"])
def test_what_is_no_name_at_all_is_told(tmp_path: Path, key: str, value: str) -> None:
    """The rules between keys look at the YAML as written, whatever stands there."""
    made = value if key == "format" else f"onnx, precision: {value}"
    problems = _check(tmp_path, ("{format: onnx}", f"{{format: {made}}}\n  b: {{from: onnx, format: onnx}}"))
    assert any(f"variants.onnx.{key}: expected" in problem for problem in problems), problems
