"""The account that PostgreSQL runs as, and whether that account can reach a folder."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from guidehall.local.errors import StackError
from guidehall.local.processes import Account

# Tried in this order; initdb wants an account with a name.
_CANDIDATES = ("guidehall", "nobody", "daemon")


def account_for_postgres() -> Account | None:
    """The account to run PostgreSQL as: None for our own, an unprivileged one when we are root.

    Raises:
        StackError: we are root and there is no account to change to, or ours has no name.
    """
    if os.geteuid() != 0:
        try:
            pwd.getpwuid(os.geteuid())
        except KeyError as error:
            raise StackError(
                f"user id {os.geteuid()} has no entry in /etc/passwd, without which PostgreSQL makes no "
                "database; add one, or set GUIDEHALL_POSTGRES_URL to a server that runs elsewhere"
            ) from error
        return None
    for name in _CANDIDATES:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if entry.pw_uid != 0:
            return Account(entry.pw_uid, entry.pw_gid)
    raise StackError(
        f"PostgreSQL does not run as root, and there is none of the accounts {', '.join(_CANDIDATES)}"
    )


def can_enter(account: Account, folder: Path) -> bool:
    """Whether `account` may pass through every folder on the way to `folder`, itself included."""
    path = folder.resolve()
    return all(_may_pass(account, part) for part in (path, *path.parents))


def _may_pass(account: Account, folder: Path) -> bool:
    status = folder.stat()
    if status.st_uid == account.user:
        return bool(status.st_mode & 0o100)
    if status.st_gid == account.group:
        return bool(status.st_mode & 0o010)
    return bool(status.st_mode & 0o001)
