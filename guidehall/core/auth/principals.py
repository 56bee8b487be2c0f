"""The caller of a request, and the rules for what a caller may do."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

from guidehall.core.errors import PermissionDenied, Unauthenticated

Kind = Literal["user", "guest", "service", "worker", "job", "service_account"]


class Role(IntEnum):
    """Each role may do what the ones before it may; numbers as in identity.proto."""

    VIEWER = 1
    SCIENTIST = 2
    OPERATOR = 3
    ADMIN = 4


@dataclass(frozen=True)
class Principal:
    """Who the platform takes a caller for.

    Attributes:
        subject: the name of the user, service, worker or job.
        actor: the service that acts for the subject, if any.
        job_id, lease_epoch: of a job's token, the attempt that it belongs to.
        pool: of a worker, where it may lease jobs.
        credential_id: the id of the token, by which it can be revoked.
        inputs: names of what a job's token opens: dataset versions, and a job whose checkpoint it reads.
        project: of a job.
        writable_groups: those of the groups in whose projects the principal may also change things.
        scopes: what the principal's API key is limited to; empty is all that the roles allow.
    """

    subject: str
    kind: Kind
    roles: frozenset[Role] = frozenset()
    groups: frozenset[str] = frozenset()
    actor: str | None = None
    job_id: str | None = None
    lease_epoch: int | None = None
    pool: str | None = None
    credential_id: str | None = None
    inputs: tuple[str, ...] = ()
    project: str | None = None
    writable_groups: frozenset[str] = frozenset()
    scopes: frozenset[str] = frozenset()

    def has(self, role: Role) -> bool:
        """Whether the principal has `role` or a higher one."""
        return any(own >= role for own in self.roles)


@dataclass(frozen=True)
class Policy:
    """Who may call a method: these kinds, users from this role on, services on this list (None is any).

    What is open to users is open to service accounts, too, except what is for `people`.
    """

    kinds: frozenset[str] = frozenset({"user", "service"})
    min_role: Role = Role.VIEWER
    services: frozenset[str] | None = None
    people: bool = False

    def check(self, principal: Principal, method: str) -> None:
        """Raises PermissionDenied unless `principal` may call `method`."""
        allowed = principal.kind in self.kinds
        if principal.kind == "service_account":
            allowed = allowed or ("user" in self.kinds and not self.people)
        if principal.kind in ("user", "service_account"):
            allowed = allowed and principal.has(self.min_role)
        if principal.kind == "service" and self.services is not None:
            allowed = allowed and principal.subject in self.services
        if not allowed:
            raise PermissionDenied(
                f"{principal.kind} {principal.subject!r} may not call {method}", metadata={"method": method}
            )


_principal: ContextVar[Principal | None] = ContextVar("guidehall_principal", default=None)


def current_principal() -> Principal:
    """The caller of the request at hand.

    Raises:
        Unauthenticated: outside any request.
    """
    principal = _principal.get()
    if principal is None:
        raise Unauthenticated("no caller is known here")
    return principal


def known_principal() -> Principal | None:
    """The caller of the request at hand, if anybody is known."""
    return _principal.get()


def set_principal(principal: Principal | None) -> None:
    """Makes `principal` the caller for the rest of the task that handles its request.

    None is nobody: from there on the task speaks for the service itself.
    """
    _principal.set(principal)
