"""What keys with scopes may call."""

from __future__ import annotations

import pytest

from guidehall.core.auth import Principal, Role
from guidehall.core.auth.scopes import METHODS, require_scope
from guidehall.core.errors import PermissionDenied
from tests.rpcs import full_name, methods

GET, SUBMIT = "/guidehall.jobs.v1.JobsService/GetJob", "/guidehall.jobs.v1.JobsService/SubmitJob"
CREATE_KEY = "/guidehall.identity.v1.IdentityService/CreateApiKey"
WHO = "/guidehall.identity.v1.IdentityService/WhoAmI"


def _with(*scopes: str) -> Principal:
    return Principal("ada", "user", frozenset({Role.ADMIN}), scopes=frozenset(scopes))


def test_every_method_of_every_service_has_its_scope() -> None:
    assert set(METHODS) == {full_name(method) for method in methods()}


@pytest.mark.parametrize(
    ("scopes", "method"),
    [((), SUBMIT), ((), CREATE_KEY), (("jobs:read",), GET), (("jobs:write",), GET), (("jobs:write",), SUBMIT),
     (("predict",), WHO)],
)  # fmt: skip
def test_what_a_key_may_call(scopes: tuple[str, ...], method: str) -> None:
    require_scope(_with(*scopes), method)


@pytest.mark.parametrize(
    ("scopes", "method"),
    [(("jobs:read",), SUBMIT), (("models:write",), GET), (("users:read", "jobs:write"), CREATE_KEY),
     (("jobs:write",), "/guidehall.jobs.v1.JobsService/NotYetKnown"), (("made:up",), GET)],
)  # fmt: skip
def test_what_a_key_may_not_call(scopes: tuple[str, ...], method: str) -> None:
    with pytest.raises(PermissionDenied) as raised:
        require_scope(_with(*scopes), method)
    assert raised.value.reason == "SCOPE_MISSING"
