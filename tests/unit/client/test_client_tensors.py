"""Arrays survive the way through a tensor, and a tensor that contradicts itself is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from guidehall.client._tensors import from_tensor, to_tensor
from guidehall.client.errors import DataLoss, InvalidArgument
from guidehall.contracts.common.v1 import common_pb2

_numeric = (
    arrays.boolean_dtypes()
    | arrays.integer_dtypes(endianness="?")
    | arrays.unsigned_integer_dtypes(endianness="?")
    | arrays.floating_dtypes(endianness="?", sizes=(16, 32, 64))
)


@given(arrays.arrays(_numeric, arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)))
def test_array_comes_back_equal(array: NDArray[np.generic]) -> None:
    back = from_tensor(to_tensor(array, "inputs.x"), "x")

    assert back.shape == array.shape
    np.testing.assert_array_equal(back, array)


def test_strided_array_is_sent_in_row_order() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T

    np.testing.assert_array_equal(from_tensor(to_tensor(array, "inputs.x"), "x"), array)


@pytest.mark.parametrize("array", [np.array(["text"]), np.array([1j]), np.array([object()])])
def test_other_dtypes_are_refused(array: NDArray[np.generic]) -> None:
    with pytest.raises(InvalidArgument, match=r"inputs\.x"):
        to_tensor(array, "inputs.x")


@pytest.mark.parametrize(
    "tensor",
    [
        common_pb2.Tensor(datatype="FP32", shape=[2], content=b"\0" * 7),
        common_pb2.Tensor(datatype="FP32", shape=[-1, -1], content=b"\0" * 4),
        common_pb2.Tensor(datatype="COMPLEX64", shape=[1], content=b"\0" * 8),
    ],
)
def test_tensor_that_contradicts_itself_is_refused(tensor: common_pb2.Tensor) -> None:
    with pytest.raises(DataLoss, match="output y"):
        from_tensor(tensor, "y")
