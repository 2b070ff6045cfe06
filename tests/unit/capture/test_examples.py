import numpy as np
import pytest
import torch

from pipeline.base.errors import StageError
from pipeline.capture import examples
from tests.unit.formats import tiny


def test_two_batches_of_different_size_and_data() -> None:
    case = tiny.case(tiny.Mixed(), tiny.XY, tiny.floats(1, 4))
    pair = examples.choose(case.named, tiny.XY, case.golden)
    assert (dict(pair.first.sizes), dict(pair.second.sizes)) == ({"N": 2}, {"N": 3})  # not 4: a fixed size of the model
    rows = [sample.inputs["x"] for sample in case.golden.samples]
    assert np.array_equal(pair.first.inputs[0].numpy(), np.concatenate([rows[0], rows[1]]))
    assert np.array_equal(pair.second.inputs[0].numpy(), np.concatenate([rows[4], rows[0], rows[1]]))
    assert torch.equal(pair.first.outputs[0], case.named(pair.first.inputs[0])[0])
    assert pair.notes == ()


def test_lengths_come_from_the_samples_where_they_differ() -> None:
    case = tiny.case(tiny.Text(), tiny.TEXT, tiny.text_rows(7, 7, 9))
    pair = examples.choose(case.named, tiny.TEXT, case.golden)
    assert dict(pair.first.sizes) == {"N": 2, "L": 7}
    assert dict(pair.second.sizes) == {"N": 4, "L": 9}
    assert np.array_equal(pair.second.inputs[0][0].numpy(), case.golden.samples[2].inputs["ids"][0])


def test_equal_lengths_are_cut_to_differ() -> None:
    case = tiny.case(tiny.Text(), tiny.TEXT, tiny.text_rows(7, 7))
    pair = examples.choose(case.named, tiny.TEXT, case.golden)
    assert pair.second.sizes["L"] == 6
    assert np.array_equal(pair.second.inputs[0][0].numpy(), case.golden.samples[1].inputs["ids"][0, :6])


def test_size_one_is_repeated_because_exporters_take_it_for_a_constant() -> None:
    case = tiny.case(tiny.Text(), tiny.TEXT, tiny.text_rows(1))
    pair = examples.choose(case.named, tiny.TEXT, case.golden)
    assert pair.first.sizes["L"] == 2
    assert pair.second.sizes["L"] == 1


def test_a_size_that_cannot_be_varied_is_noted() -> None:
    class OnlyEight(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(x.shape[0], 8) + 0

    shaped = tiny.signature([tiny.spec("x", "N", "L")], [tiny.spec("y", "N", "L")])
    case = tiny.case(OnlyEight(), shaped, tiny.floats(1, 8))
    pair = examples.choose(case.named, shaped, case.golden)
    assert pair.second.sizes["L"] == 8
    assert len(pair.notes) == 1
    assert pair.notes[0].startswith("dimension L was seen at size 8 only: the model does not run at 7: x [3, 7]:")


def test_no_batch_dimension() -> None:
    case = tiny.case(tiny.Unbatched(), tiny.UNBATCHED, tiny.unbatched_rows())
    pair = examples.choose(case.named, tiny.UNBATCHED, case.golden)
    assert (dict(pair.first.sizes), dict(pair.second.sizes)) == ({"T": 5}, {"T": 8})


def test_a_view_that_fixes_the_batch_is_an_error_that_names_the_line() -> None:
    case = tiny.case(tiny.FrozenView(), tiny.XY, [])
    golden = tiny.case(torch.nn.Identity(), tiny.XY, tiny.floats(1, 4)).golden
    with pytest.raises(StageError, match="output y does not have the YAML's shape") as raised:
        examples.choose(case.named, tiny.XY, golden)
    assert raised.value.found == "[4, 2] for x [2, 4]; the YAML says [N, 4]"
    assert raised.value.where == tiny.line_of("return x.view(4, -1)")


def test_a_model_that_fails_on_a_batch_is_an_error_that_names_the_line() -> None:
    class OnlyOne(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(1, 4)

    case = tiny.case(OnlyOne(), tiny.XY, tiny.floats(1, 4))
    with pytest.raises(StageError, match="does not run at this batch size") as raised:
        examples.choose(case.named, tiny.XY, case.golden)
    assert raised.value.found.startswith("x [2, 4]: RuntimeError: shape '[1, 4]' is invalid")
    assert raised.value.where.startswith(f"{__file__}:")


def test_a_rank_that_is_not_the_yamls() -> None:
    shaped = tiny.signature([tiny.spec("x", "N", 4)], [tiny.spec("y", "N")])
    case = tiny.case(torch.nn.Identity(), shaped, tiny.floats(1, 4))
    with pytest.raises(StageError) as raised:
        examples.choose(case.named, shaped, case.golden)
    assert raised.value.found == "[2, 4] for x [2, 4]; the YAML says [N]"


def test_a_letter_of_outputs_only_is_bound_by_its_first_use() -> None:
    doubled = tiny.signature([tiny.spec("x", "N", "L")], [tiny.spec("y", "N", "M")])

    class Twice(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x, x], dim=1)

    case = tiny.case(Twice(), doubled, tiny.floats(1, 5))
    assert examples.choose(case.named, doubled, case.golden).first.outputs[0].shape == (2, 10)
