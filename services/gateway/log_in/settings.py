"""Which providers there are, and how each is asked."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")


class ProviderSettings(BaseModel):
    """One provider. Whom it may log in, and as what, storage is told: accounts.providers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["openid", "github"] = "openid"
    title: str = Field("", max_length=100, description="what people call it; its name where empty")
    issuer: str = Field("", description="exactly as its ID tokens say; of GitHub the web address")
    client_id: str = Field(min_length=1)
    client_secret: SecretStr | None = Field(None, description="none for a public client")
    scopes: tuple[str, ...] = Field(
        (), description="what is asked for; openid, profile and email where empty"
    )
    groups_claim: str = Field("groups", description="of the ID token: a list of names")
    username_claim: str = Field("preferred_username", description="what a new user is called here")

    @model_validator(mode="before")
    @classmethod
    def _usual_issuer(cls, values: dict[str, object]) -> dict[str, object]:
        if isinstance(values, dict) and values.get("kind") == "github" and not values.get("issuer"):
            return {**values, "issuer": "https://github.com"}
        return values

    @field_validator("issuer")
    @classmethod
    def _safe(cls, issuer: str) -> str:
        if not is_safe(issuer) or urlsplit(issuer).query or urlsplit(issuer).fragment:
            raise ValueError("must be https://…, or http:// on this machine, without query and fragment")
        return issuer


class LogInSettings(BaseModel):
    """Log-ins in a browser."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    providers: dict[str, ProviderSettings] = Field(
        {}, description="by the name that they have here and in storage's accounts.providers; in mode token"
    )
    public_url: str = Field(
        "", description="where browsers reach the gateway; where empty, as each request names it"
    )
    ca_file: Path | None = Field(None, description="verifies the providers' certificates; the system's else")
    pending_seconds: int = Field(600, ge=30, le=3600, description="how long a log-in at a provider may take")
    call_seconds: float = Field(10.0, gt=0, description="how long one answer of a provider may take")
    keys_seconds: float = Field(
        3600.0, gt=0, description="how long a provider's description and keys are kept"
    )
    keys_retry_seconds: float = Field(
        10.0, ge=0, description="so long after a look for new keys no other is made for an unknown one"
    )

    @model_validator(mode="after")
    def _names(self) -> Self:
        for name in self.providers:
            if not _NAME.fullmatch(name):
                raise ValueError(f"providers: {name!r} is no name: 1 to 32 of a-z, 0-9 and -")
        if self.public_url and not re.fullmatch(r"https?://[^/?#\s]+", self.public_url):
            raise ValueError("public_url: must be http:// or https://, a host, and a port if need be")
        return self


def is_safe(url: str) -> bool:
    """Whether what goes there can be read by nobody on the way: over TLS, or within this machine."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return False
    if not host or parts.username is not None or parts.password is not None:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host))


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, by its own name for itself."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
