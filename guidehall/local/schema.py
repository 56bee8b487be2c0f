"""Whether a database has its newest schema already, so that a start is not a second longer for nothing."""

from __future__ import annotations

import hashlib
from pathlib import Path

from guidehall.local.files import read_json, write_json

# Alembic keeps the name of the last step in a table; which schema that is in, each service decides.
_VERSIONS = """\\connect "{database}"
SELECT format('SELECT version_num FROM %I.%I', table_schema, table_name)
  FROM information_schema.tables WHERE table_name = 'alembic_version' ORDER BY table_schema \\gexec
"""


def version_sql(database: str) -> str:
    """A psql script that prints the steps that `database` is at; nothing for one without a schema."""
    return _VERSIONS.format(database=database)


class SchemaRecord:
    """What `migrations` were last seen to make of a database, kept in a file."""

    def __init__(self, file: Path, migrations: Path) -> None:
        self._file = file
        digest = hashlib.sha256()
        for path in sorted(migrations.rglob("*.py")):
            digest.update(path.relative_to(migrations).as_posix().encode() + b"\0" + path.read_bytes())
        self._migrations = digest.hexdigest()

    def holds(self, version: str) -> bool:
        """Whether these very migrations left a database at the version that it is at now."""
        known = read_json(self._file)
        return version != "" and known == {"migrations": self._migrations, "version": version}

    def keep(self, version: str) -> None:
        """Notes that the migrations have run and left the database at `version`."""
        write_json(self._file, {"migrations": self._migrations, "version": version})
