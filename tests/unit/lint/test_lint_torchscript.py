"""Each rule on TorchScript files: one bad case that it names."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.lint import lint

from .lint_repository import CODE, TORCH_CONFIG, check, only, replaced, rules, torch_model, torchscript_bytes, write

GROUP = "instance_group { kind: KIND_CPU count: 1 }"


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (torchscript_bytes(constants=False), "torch-save-archive"),
        (b"\x80\x02}q\x00.", "torch-save-archive"),
        (b"", "torchscript-corrupt"),
        (torchscript_bytes()[:-9], "torchscript-corrupt"),
        (torchscript_bytes(CODE.replace("mask: Tensor)", "mask: int)")), "torchscript-input-type"),
        (torchscript_bytes(CODE.replace("mask: Tensor)", "mask: Optional[Tensor]=None)")), "torchscript-input-type"),
        (
            torchscript_bytes(CODE.replace("mask: Tensor)", "mask: Tensor,\n    more: List[Tensor])")),
            "torchscript-input-count",
        ),
        (torchscript_bytes(CODE.replace("-> Tensor", "-> Dict[str, Tensor]")), "torchscript-output-type"),
    ],
)
def test_bad_torchscript_files(tmp_path: Path, data: bytes, rule: str) -> None:
    assert only(check(tmp_path, torch_model(model=data))) == (rule, "torch/1/model.pt", "error")


@pytest.mark.parametrize(
    ("names", "finding"),
    [
        (("mask", "ids"), None),
        (("INPUT__0", "INPUT__1"), None),
        (("INPUT__1", "INPUT__2"), ("torchscript-input-index", "error")),
        (("INPUT__0", "mask"), ("torchscript-input-order", "warning")),
        (("Ids", "mask"), ("torchscript-input-order", "warning")),
    ],
)
def test_torchscript_input_names(tmp_path: Path, names: tuple[str, str], finding: tuple[str, str] | None) -> None:
    text = TORCH_CONFIG.replace('"ids"', '"%s"').replace('"mask"', '"%s"') % names
    found = check(tmp_path, torch_model(text))
    assert [(item.rule, item.severity) for item in found] == ([finding] if finding else [])


def test_a_dictionary_of_inputs_uses_any_names(tmp_path: Path) -> None:
    code = CODE.replace("ids: Tensor,\n    mask: Tensor)", "batch: Dict[str, Tensor])")
    assert check(tmp_path, torch_model(model=torchscript_bytes(code))) == []


@pytest.mark.parametrize(("returns", "name", "bad"), [
    ("Tensor", "y__1", True), ("Tuple[Tensor, Tensor]", "y__1", False), ("Tuple[Tensor, Tensor]", "y__2", True),
])  # fmt: skip
def test_torchscript_outputs(tmp_path: Path, returns: str, name: str, bad: bool) -> None:
    data = torchscript_bytes(CODE.replace("-> Tensor", f"-> {returns}"))
    found = check(tmp_path, torch_model(TORCH_CONFIG.replace('"y"', f'"{name}"'), data))
    assert rules(found) == ({("torchscript-output-count", "torch/1/model.pt")} if bad else set())


def test_torchscript_types(tmp_path: Path) -> None:
    text = replaced(TORCH_CONFIG, 'name: "ids" data_type: TYPE_FP32', 'name: "ids" data_type: TYPE_UINT16')
    text = replaced(text, 'name: "mask" data_type: TYPE_FP32', 'name: "mask" data_type: TYPE_STRING')
    found = rules(check(tmp_path, torch_model(text)))
    assert found == {("torchscript-data-type", "torch/config.pbtxt"), ("torchscript-string-dims", "torch/config.pbtxt")}


@pytest.mark.parametrize(("device", "kind"), [("cuda:0", "KIND_CPU"), ("cpu", "KIND_GPU")])
def test_devices_in_the_code(tmp_path: Path, device: str, kind: str) -> None:
    data = torchscript_bytes(CODE.replace("torch.mul", f'torch.zeros([1], device=torch.device("{device}"))'))
    text = replaced(TORCH_CONFIG, GROUP, GROUP.replace("KIND_CPU", kind))
    assert only(check(tmp_path, torch_model(text, data))) == (
        "torchscript-device-constant",
        "torch/1/model.pt",
        "warning",
    )


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_files_of_torch_itself(tmp_path: Path) -> None:
    import torch

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(3, 3)

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return self.layer(ids) * mask

    example = torch.ones(1, 3)
    root = write(tmp_path, torch_model())
    path = root / "torch/1/model.pt"
    torch.jit.save(torch.jit.trace(Net(), (example, example)), str(path))
    assert lint(root) == []
    (root / "torch/config.pbtxt").write_text(TORCH_CONFIG.replace('"mask"', '"weights"'))
    found = lint(root)
    assert only(found) == ("torchscript-input-order", "torch/config.pbtxt", "warning")
    assert "forward's (ids, mask)" in found[0].reason
    (root / "torch/config.pbtxt").write_text(TORCH_CONFIG)
    for archive in (True, False):
        torch.save(Net().state_dict(), path, _use_new_zipfile_serialization=archive)
        assert only(lint(root)) == ("torch-save-archive", "torch/1/model.pt", "error")
