from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field


class OddParams(BaseModel):
    """How much of it."""

    amount: int = Field(0, ge=0)


def half_as_much(params: OddParams) -> OddParams | None:
    return OddParams(amount=params.amount // 2) if params.amount > 1 else None


class OddResult(BaseModel):
    """Whatever there is to tell."""

    told: dict[str, Any] = Field(default_factory=dict)
