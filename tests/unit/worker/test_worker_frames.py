from __future__ import annotations

import asyncio
import socket
import struct
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guidehall.science.pipeline import Desired
from services.trainer.worker import frames
from services.trainer.worker.frames import FrameError
from services.trainer.worker.messages import (
    DesiredChanged,
    FileRef,
    ModelWritten,
    Progressed,
    Succeeded,
    dump,
    from_child,
    to_child,
)


async def read_all(data: bytes) -> list[bytes]:
    stream = asyncio.StreamReader()
    stream.feed_data(data)
    stream.feed_eof()
    found = []
    while (payload := await frames.read(stream)) is not None:
        found.append(payload)
    return found


@given(st.lists(st.binary(max_size=300)))
def test_frames_come_out_as_they_went_in(payloads: list[bytes]) -> None:
    data = b"".join(frames.encode(payload) for payload in payloads)
    assert asyncio.run(read_all(data)) == payloads


@given(st.binary(min_size=1, max_size=100), st.integers(min_value=1, max_value=103))
def test_a_frame_cut_short_is_the_end(payload: bytes, missing: int) -> None:
    data = frames.encode(payload)
    assert asyncio.run(read_all(data[: -min(missing, len(data))])) == []


def test_a_length_beyond_the_limit_is_refused_before_its_bytes_come() -> None:
    head = struct.pack(">I", frames.MAX_FRAME_BYTES + 1)
    with pytest.raises(FrameError, match=str(frames.MAX_FRAME_BYTES + 1)):
        asyncio.run(read_all(head))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(head)
        with pytest.raises(FrameError):
            frames.receive(theirs)


def test_a_payload_beyond_the_limit_is_not_sent() -> None:
    with pytest.raises(FrameError):
        frames.encode(bytes(frames.MAX_FRAME_BYTES + 1))


def test_a_blocking_socket_reads_a_frame_that_comes_in_pieces() -> None:
    ours, theirs = socket.socketpair()
    payload = bytes(range(256)) * 5000
    with ours, theirs:
        sender = threading.Thread(target=ours.sendall, args=(frames.encode(payload),))
        sender.start()
        assert frames.receive(theirs) == payload
        sender.join()
        ours.close()
        assert frames.receive(theirs) is None


def test_messages_come_out_as_they_went_in() -> None:
    progress = Progressed(phase="train", step=3, total=10, metrics={"loss": 0.1})
    assert from_child(dump(progress)) == progress
    wish = DesiredChanged(desired=Desired.STOP)
    assert to_child(dump(wish)) == wish
    result = Succeeded(document={"a": [1, 2.5, None, {"b": "σ"}]})
    assert from_child(dump(result)) == result


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"not json",
        b"[]",
        b'{"kind": "unheard of"}',
        b'{"kind": "log", "line": "x", "more": 1}',
        b'{"kind": "desired", "desired": "run"}',
        b'{"kind": "progress", "phase": "", "step": 1, "total": 2, "metrics": {"loss": NaN}}',
        b'{"kind": "log", "line": "%s"}' % (b"x" * 4001),
        b"\x80\x04\x95",
    ],
)
def test_what_is_no_message_of_a_child_is_refused(payload: bytes) -> None:
    with pytest.raises(FrameError):
        from_child(payload)


@pytest.mark.parametrize("name", ["../model-1", "/etc/passwd", "model-1/x", "model", "", "model-1\n"])
def test_a_file_outside_the_folder_cannot_be_named(name: str) -> None:
    good = FileRef(name="model-1", sha256="0" * 64, size_bytes=1)
    message = ModelWritten(name="line", manifest={}, file=good)
    payload = dump(message).replace(b'"model-1"', repr(name).replace("'", '"').encode())
    with pytest.raises(FrameError, match=r"file\.name"):
        from_child(payload)
