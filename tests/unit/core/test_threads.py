"""Large conversions leave the event loop to others; small ones cost no thread."""

from __future__ import annotations

import threading

import pytest

from guidehall.core.threads import LARGE_BYTES, by_size


@pytest.mark.parametrize(("size_bytes", "here"), [(0, True), (LARGE_BYTES, True), (LARGE_BYTES + 1, False)])
async def test_what_is_large_is_converted_in_a_thread(size_bytes: int, here: bool) -> None:
    assert (await by_size(size_bytes, threading.get_ident) == threading.get_ident()) is here
