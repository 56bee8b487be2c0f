from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field


class OddParams(BaseModel):
    """How much of it."""

    amount: int = Field(0, ge=0)


class OddResult(BaseModel):
    """Whatever there is to tell."""

    told: dict[str, Any] = Field(default_factory=dict)
