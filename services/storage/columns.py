"""What the tables of all schemas have in common."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Column, DateTime, Identity, MetaData, Text, func
from sqlalchemy.dialects.postgresql import ARRAY


def schema(name: str) -> MetaData:
    """The tables of one schema, their constraints named as PostgreSQL would name them."""
    return MetaData(
        schema=name,
        naming_convention={
            "pk": "%(table_name)s_pkey",
            "ix": "%(table_name)s_%(column_0_N_name)s_idx",
            "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
            "ck": "%(table_name)s_%(constraint_name)s_check",
            "uq": "%(table_name)s_%(column_0_N_name)s_key",
        },
    )


def sequence() -> Column[int]:
    """The order in which rows came: what lists are sorted by and pages begin after."""
    return Column("seq", BigInteger, Identity(always=True), nullable=False, unique=True)


def moment(name: str) -> Column[Any]:
    """A time that is the transaction's unless it is given."""
    return Column(name, DateTime(timezone=True), nullable=False, server_default=func.now())


def readers() -> Column[Any]:
    """With whom something is shared: "user:..." and "group:..."."""
    return Column("readers", ARRAY(Text), nullable=False, server_default="{}")
