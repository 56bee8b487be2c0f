"""Who may see and change what: the one rule that every service applies to owned resources."""

from __future__ import annotations

from guidehall.core.auth import Principal, Role
from guidehall.core.errors import NotFound, PermissionDenied


def sees_everything(principal: Principal) -> bool:
    """Operators, administrators and the platform's own services are not limited to what they own."""
    if principal.kind == "service":
        return True
    return any(role >= Role.OPERATOR for role in principal.roles)


def may_see(principal: Principal, owner: str) -> bool:
    """Whether `principal` may read and change something that `owner` (a subject) owns."""
    return sees_everything(principal) or (principal.subject == owner and owner != "")


def require_visible(principal: Principal, owner: str | None, name: str) -> None:
    """Raises NotFound unless `principal` may see it; a missing resource (owner None) looks just the same."""
    if owner is None or not may_see(principal, owner):
        raise NotFound(f"{name} does not exist", metadata={"resource": name})


def owner_for(principal: Principal) -> str:
    """The owner of what `principal` creates; empty for a guest.

    Raises:
        PermissionDenied: neither a user, a guest nor a service.
    """
    if principal.kind in ("user", "service"):
        return principal.subject
    if principal.kind == "guest":
        return ""
    raise PermissionDenied(f"a {principal.kind} may not own resources")
