"""How much the old web app may ask for: its nine limits, and who has which."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from guidehall.core.auth import Principal
from services.gateway.settings import GatewaySettings, LimitSettings

# As much as a request can say at all: see the ranges of its fields.
LOCAL = LimitSettings(
    max_curves=100_000,
    max_film_layers=20,
    max_batch_size=512,
    max_epochs=1000,
    max_cnn_layers=20,
    max_dropout=0.9,
    max_latent_dim=128,
    max_ae_epochs=500,
    max_mlp_epochs=500,
)


@dataclass(frozen=True)
class Allowed:
    """What one caller may ask for.

    Attributes:
        granted: whether these are the widest limits.
        source: why.
    """

    limits: LimitSettings
    granted: bool
    source: Literal["local_dev", "whitelist", "production"]


def allowed(settings: GatewaySettings, caller: Principal) -> Allowed:
    """The limits of a caller."""
    if not settings.in_production:
        return Allowed(LOCAL, True, "local_dev")
    if caller.kind == "user" and caller.subject in settings.legacy.limits_whitelist_user_ids:
        return Allowed(LOCAL, True, "whitelist")
    return Allowed(settings.legacy.limits, False, "production")
