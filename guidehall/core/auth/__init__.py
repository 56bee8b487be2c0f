"""Who calls, and what they may do. Verified in every server, for every call; what is not declared is refused.

A credential is a token, which is verified by itself, or an API key, which storage knows.

Tokens are JSON Web Tokens signed with Ed25519. A trust file says which key belongs to which issuer and for
which kinds of principal that issuer may speak: storage for users, the trainer for workers and jobs, each
service for itself.
"""

from __future__ import annotations

from guidehall.core.auth.api_keys import API_KEY_PREFIX, KeyDirectory
from guidehall.core.auth.authenticator import DELEGABLE, ON_BEHALF_OF, Authenticator, encode_delegation
from guidehall.core.auth.keys import KeyFile, KeyPair, TrustedKey, TrustStore
from guidehall.core.auth.lookups import Answer, Lookups
from guidehall.core.auth.principals import (
    Kind,
    Policy,
    Principal,
    Role,
    current_principal,
    known_principal,
    set_principal,
)
from guidehall.core.auth.scopes import SCOPES, covers, require_scope
from guidehall.core.auth.tokens import PLATFORM, TokenIssuer

__all__ = [
    "API_KEY_PREFIX",
    "DELEGABLE",
    "ON_BEHALF_OF",
    "PLATFORM",
    "SCOPES",
    "Answer",
    "Authenticator",
    "KeyDirectory",
    "KeyFile",
    "KeyPair",
    "Kind",
    "Lookups",
    "Policy",
    "Principal",
    "Role",
    "TokenIssuer",
    "TrustStore",
    "TrustedKey",
    "covers",
    "current_principal",
    "encode_delegation",
    "known_principal",
    "require_scope",
    "set_principal",
]
