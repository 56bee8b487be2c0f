"""What is checked around a model: the tensors that go in and those that come out."""

from __future__ import annotations

import numpy as np
import pytest

from guidehall.core.errors import InvalidArgument
from guidehall.science.pipeline import TensorSpec
from services.inference.dataplane import UnusableAnswer, check_inputs, check_outputs, wanted_outputs
from services.inference.tensors import Tensor, tensor_of

INPUTS = (
    TensorSpec(name="q", datatype="FP32", shape=(-1, -1)),
    TensorSpec(name="kind", datatype="INT64", shape=(-1, 1), optional=True),
)
OUTPUTS = (TensorSpec(name="y", datatype="FP32", shape=(-1, 2)),)


def q(*shape: int) -> Tensor:
    return tensor_of(np.ones(shape, np.float32), "FP32")


def test_rows_are_those_of_the_largest_input() -> None:
    kind = tensor_of(np.ones((5, 1), np.int64), "INT64")
    assert check_inputs(INPUTS, {"q": q(1, 3), "kind": kind}, 8) == 5
    assert check_inputs(INPUTS, {"q": q(4, 3)}, 8) == 4
    assert check_inputs(INPUTS, {"q": q(0, 3)}, 8) == 0


@pytest.mark.parametrize(
    ("inputs", "field", "words"),
    [
        ({}, "inputs.q", "nothing"),
        ({"q": q(1, 3), "p": q(1, 3)}, "inputs.p", "the inputs are q, kind"),
        ({"q": q(3)}, "inputs.q", "FP32 [3]"),
        ({"q": tensor_of(np.ones((1, 3)), "FP64")}, "inputs.q", "FP64 [1, 3]"),
        ({"q": Tensor("BF16", np.ones((1, 3), np.float32))}, "inputs.q", "BF16 [1, 3]"),
        ({"q": q(1, 3), "kind": tensor_of(np.ones((1, 2), np.int64), "INT64")}, "inputs.kind", "[-1, 1]"),
        ({"q": q(9, 3)}, "inputs.q", "9 rows"),
    ],
)
def test_inputs_that_are_not_as_declared_are_refused(
    inputs: dict[str, Tensor], field: str, words: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_inputs(INPUTS, inputs, 8)
    assert caught.value.violations[0].field == field
    assert words in caught.value.message


def test_wanted_outputs_are_known_and_named_once() -> None:
    assert wanted_outputs(OUTPUTS, []) == wanted_outputs(OUTPUTS, ["y"]) == list(OUTPUTS)
    for names, words in ((["z"], "the outputs are y"), (["y", "y"], "each name only once")):
        with pytest.raises(InvalidArgument, match=words) as caught:
            wanted_outputs(OUTPUTS, names)
        assert caught.value.violations[0].field == "outputs"


def test_nan_leaves_only_in_rows_that_were_padded() -> None:
    padded = np.array([[1.0, 2.0], [1.0, np.nan]], np.float32)
    good = np.array([[1.0, 2.0], [3.0, np.nan]], np.float32)
    check_outputs(OUTPUTS, {"y": good}, {"q": padded})
    check_outputs(OUTPUTS, {"y": good}, {"q": padded[1:]})
    with pytest.raises(UnusableAnswer, match="output y"):
        check_outputs(OUTPUTS, {"y": good[::-1]}, {"q": padded})
    with pytest.raises(UnusableAnswer, match="output y"):
        check_outputs(OUTPUTS, {"y": np.array([[1.0, 2.0], [3.0, np.inf]], np.float32)}, {"q": padded})


@pytest.mark.parametrize(
    "outputs",
    [{}, {"y": np.ones((1, 2))}, {"y": np.ones((1, 3), np.float32)}, {"y": np.ones(2, np.float32)}],
)
def test_an_answer_that_is_not_as_declared_does_not_leave(outputs: dict[str, np.ndarray]) -> None:
    with pytest.raises(UnusableAnswer):
        check_outputs(OUTPUTS, outputs, {})
