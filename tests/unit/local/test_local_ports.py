from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from guidehall.local.ports import Ports, is_free


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_a_taken_port_gives_way_to_the_next_free_one(taken: int) -> None:
    with Ports(None) as ports:
        port = ports.choose("gateway", taken)

    assert taken < port < taken + 200
    assert is_free(port)


def test_the_choice_is_kept_across_starts(tmp_path: Path, taken: int) -> None:
    file = tmp_path / "ports.json"
    with Ports(file) as ports:
        chosen = ports.choose("gateway", taken)

    # The usual port would be free now, yet clients know the other one.
    with Ports(file) as ports:
        again = ports.choose("gateway", chosen + 1)

    assert again == chosen


def test_a_recorded_port_that_was_taken_meanwhile_is_replaced(tmp_path: Path) -> None:
    file = tmp_path / "ports.json"
    with Ports(file, usual=False) as ports:
        chosen = ports.choose("gateway", 8000)
    with socket.create_server(("127.0.0.1", chosen)), Ports(file) as ports:
        again = ports.choose("gateway", chosen)

    assert again != chosen


def test_two_names_never_share_a_port() -> None:
    with Ports(None) as ports:
        first = ports.choose("trainer", 17_101)
        second = ports.choose("storage", 17_101)

    assert first != second


def test_two_stacks_that_start_together_never_share_a_port() -> None:
    with Ports(None) as one, Ports(None) as other:
        # Nobody listens yet.
        first = one.choose("trainer", 17_101)
        second = other.choose("trainer", 17_101)

    assert first != second
    with Ports(None) as later:
        assert later.choose("trainer", first) == first


def test_a_file_that_is_no_json_counts_as_no_choice(tmp_path: Path) -> None:
    file = tmp_path / "ports.json"
    file.write_text("{half")

    with Ports(file, usual=False) as ports:
        port = ports.choose("gateway", 8000)

    with Ports(file) as ports:
        assert ports.choose("gateway", 8000) == port
