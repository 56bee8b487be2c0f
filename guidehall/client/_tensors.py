"""numpy arrays and the tensors of the wire: row-major, little-endian, with Open Inference Protocol types."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guidehall.contracts.common.v1 import common_pb2
from guidehall.core.datatypes import DTYPES
from guidehall.core.errors import DataLoss, InvalidArgument

_DATATYPES = {dtype: name for name, dtype in DTYPES.items()}


def to_tensor(array: NDArray[Any], field: str) -> common_pb2.Tensor:
    """The tensor that holds `array`.

    Raises:
        InvalidArgument: the array's dtype has no place on the wire.
    """
    array = np.asarray(array)
    little_endian = array.dtype.newbyteorder("<")
    datatype = _DATATYPES.get(little_endian)
    if datatype is None:
        raise InvalidArgument.field(field, str(array.dtype), f"an array of one of {', '.join(DTYPES)}")
    content = np.ascontiguousarray(array, dtype=little_endian).tobytes()
    return common_pb2.Tensor(datatype=datatype, shape=array.shape, content=content)


def from_tensor(tensor: common_pb2.Tensor, name: str) -> NDArray[Any]:
    """The array in `tensor`.

    Raises:
        DataLoss: an unknown datatype, or a length that does not fit the shape.
    """
    dtype = DTYPES.get(tensor.datatype)
    if dtype is None:
        raise DataLoss(f"output {name}: this client does not know the datatype {tensor.datatype!r}")
    shape = tuple(tensor.shape)
    expected = math.prod(shape) * dtype.itemsize
    if any(size < 0 for size in shape) or len(tensor.content) != expected:
        raise DataLoss(
            f"output {name}: {len(tensor.content)} bytes do not fit shape {shape} of {tensor.datatype}"
        )
    array: NDArray[Any] = np.frombuffer(tensor.content, dtype=dtype).reshape(shape).copy()
    return array
