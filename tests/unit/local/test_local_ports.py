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
    port = Ports(None).choose("gateway", taken)

    assert taken < port < taken + 200
    assert is_free(port)


def test_the_choice_is_kept_across_starts(tmp_path: Path, taken: int) -> None:
    file = tmp_path / "ports.json"
    chosen = Ports(file).choose("gateway", taken)

    # The usual port would be free now, yet clients know the other one.
    again = Ports(file).choose("gateway", chosen + 1)

    assert again == chosen


def test_a_recorded_port_that_was_taken_meanwhile_is_replaced(tmp_path: Path) -> None:
    file = tmp_path / "ports.json"
    chosen = Ports(file, usual=False).choose("gateway", 8000)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", chosen))
        listener.listen()

        again = Ports(file).choose("gateway", chosen)

    assert again != chosen


def test_two_names_never_share_a_port() -> None:
    ports = Ports(None)

    first = ports.choose("trainer", 17_101)
    second = ports.choose("storage", 17_101)

    assert first != second


def test_a_file_that_is_no_json_counts_as_no_choice(tmp_path: Path) -> None:
    file = tmp_path / "ports.json"
    file.write_text("{half")

    port = Ports(file, usual=False).choose("gateway", 8000)

    assert Ports(file).choose("gateway", 8000) == port
