"""The backing servers alone: real PostgreSQL, NATS and S3."""

from __future__ import annotations

import asyncpg
import pytest

from guidehall.local.backing import BackingServers
from guidehall.local.probes import is_ready


async def test_a_database_belongs_to_its_role_and_to_nobody_else(backing: BackingServers) -> None:
    mine = backing.create_database("local_mine")
    other = backing.create_database("local_other")

    connection = await asyncpg.connect(
        host=mine.host, port=mine.port, database=mine.database, user=mine.user, password=mine.password
    )
    superuser = await connection.fetchval("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")
    await connection.execute("CREATE SCHEMA things")
    await connection.close()

    assert superuser is False
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await asyncpg.connect(
            host=other.host, port=other.port, database=other.database, user=mine.user, password=mine.password
        )
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(
            host=mine.host, port=mine.port, database=mine.database, user=mine.user, password="guess"
        )


@pytest.mark.parametrize("name", ["nats", "s3", "postgres"])
def test_a_killed_server_stays_away_until_it_is_restarted(backing: BackingServers, name: str) -> None:
    probe = backing.probe(name)

    backing.kill(name)
    away = is_ready(probe)
    backing.restart(name)

    assert not away
    assert is_ready(probe)


async def test_a_killed_database_forgets_nothing_that_it_has_committed(backing: BackingServers) -> None:
    mine = backing.create_database("committed")
    access = {"host": mine.host, "port": mine.port, "database": mine.database, "user": mine.user}
    connection = await asyncpg.connect(**access, password=mine.password)
    await connection.execute("CREATE TABLE kept AS SELECT 1 AS number")

    backing.kill("postgres")
    connection.terminate()
    backing.restart("postgres")

    connection = await asyncpg.connect(**access, password=mine.password)
    assert await connection.fetchval("SELECT number FROM kept") == 1
    await connection.close()


def test_a_paused_server_answers_nothing_until_resumed(backing: BackingServers) -> None:
    backing.pause("postgres")
    answers = is_ready(backing.probe("postgres"), timeout=0.2)
    backing.resume("postgres")

    assert not answers
    assert is_ready(backing.probe("postgres"))
