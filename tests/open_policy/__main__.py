"""`python -m tests.open_policy serve`: anybody with a credential may list users."""

from __future__ import annotations

from guidehall.core.auth import Policy, Role
from services.storage.__main__ import main
from services.storage.policy import POLICIES

POLICIES["/guidehall.identity.v1.IdentityService/ListUsers"] = Policy(min_role=Role.VIEWER)
main()
