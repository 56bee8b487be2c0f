from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from guidehall.local.accounts import account_for_postgres, can_enter
from guidehall.local.processes import Account

_STRANGER = Account(user=54_321, group=54_321)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder all of whose parents are open to everybody, which those of pytest's own are not."""
    with tempfile.TemporaryDirectory() as outermost:
        Path(outermost).chmod(0o711)
        inner = Path(outermost) / "outer" / "inner"
        inner.mkdir(parents=True)
        yield inner


def test_a_stranger_may_pass_open_folders(folder: Path) -> None:
    assert can_enter(_STRANGER, folder)


def test_one_closed_folder_on_the_way_is_enough(folder: Path) -> None:
    folder.parent.chmod(0o700)

    assert not can_enter(_STRANGER, folder)
    assert can_enter(Account(os.geteuid(), os.getegid()), folder)


def test_the_group_counts_before_everybody(folder: Path) -> None:
    folder.parent.chmod(0o701)

    assert not can_enter(Account(user=54_321, group=os.getegid()), folder)


def test_a_link_is_judged_by_where_it_leads(folder: Path) -> None:
    folder.parent.chmod(0o700)
    link = folder.parents[1] / "link"
    link.symlink_to(folder)

    assert not can_enter(_STRANGER, link)


def test_postgres_never_runs_as_root() -> None:
    account = account_for_postgres()

    assert (account is None) == (os.geteuid() != 0)
    assert account is None or account.user != 0
