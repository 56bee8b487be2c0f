from __future__ import annotations

from pathlib import Path

import pytest

from guidehall.local.schema import SchemaRecord


@pytest.fixture
def migrations(tmp_path: Path) -> Path:
    folder = tmp_path / "migrations"
    (folder / "versions").mkdir(parents=True)
    (folder / "versions" / "0001_first.py").write_text("# makes a table\n")
    return folder


def test_a_schema_is_known_after_its_migrations_have_run(tmp_path: Path, migrations: Path) -> None:
    file = tmp_path / "schema.json"
    before = SchemaRecord(file, migrations).holds("0001\n")

    SchemaRecord(file, migrations).keep("0001\n")

    assert not before
    assert SchemaRecord(file, migrations).holds("0001\n")


def test_a_database_at_another_version_is_looked_at(tmp_path: Path, migrations: Path) -> None:
    # Such as one that was restored from an older copy, or begun anew.
    SchemaRecord(tmp_path / "schema.json", migrations).keep("0002\n")

    record = SchemaRecord(tmp_path / "schema.json", migrations)

    assert not record.holds("0001\n")
    assert not record.holds("")


@pytest.mark.parametrize("change", ["add", "edit"])
def test_other_migrations_are_run(tmp_path: Path, migrations: Path, change: str) -> None:
    SchemaRecord(tmp_path / "schema.json", migrations).keep("0001\n")

    if change == "add":
        (migrations / "versions" / "0002_second.py").write_text("# makes another\n")
    else:
        (migrations / "versions" / "0001_first.py").write_text("# makes a better one\n")

    assert not SchemaRecord(tmp_path / "schema.json", migrations).holds("0001\n")
