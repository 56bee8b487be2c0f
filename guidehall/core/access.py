"""Who may see and change what: the one rule that every service applies to owned resources.

A thing is its owner's, unless it is in a group's project, `projects/group.{group}`: there it is the group's,
and whoever made it counts no more than any other member. Besides, those with whom it is shared may read it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

from guidehall.core.auth import Principal, Role
from guidehall.core.errors import InvalidArgument, NotFound, PermissionDenied

GROUP_PROJECT = "group."
MAX_READERS = 256
# Groups that others say may be called in their own ways.
_READER = re.compile(r"user:[A-Za-z0-9_~@+-][A-Za-z0-9._~@+-]{0,127}|group:[^\x00-\x1f\x7f]{1,200}")
_READERS = '"user:" and a user\'s name, or "group:" and a group\'s'
_HOLDERS = ("user", "service_account")


class Resource(Protocol):
    """A job, a dataset, a model or a result."""

    @property
    def project(self) -> str:
        """Id of the project that it is in."""
        ...

    @property
    def owner(self) -> str:
        """Subject; empty for a guest's."""
        ...

    @property
    def readers(self) -> Sequence[str]:
        """With whom it is shared: "user:…", "group:…"."""
        ...


def sees_everything(principal: Principal) -> bool:
    """Operators, administrators and the platform's own services are not limited to what they own."""
    if principal.kind == "service":
        return True
    return principal.kind in _HOLDERS and any(role >= Role.OPERATOR for role in principal.roles)


def may_see(principal: Principal, owner: str) -> bool:
    """Whether `principal` may read and change something personal that `owner` (a subject) owns."""
    return sees_everything(principal) or owns(principal, owner)


def owns(principal: Principal, owner: str) -> bool:
    """Whether it is the principal's own. A guest is nobody, whatever a user may be called."""
    return principal.kind in _HOLDERS and principal.subject == owner != ""


def require_visible(principal: Principal, owner: str | None, name: str) -> None:
    """Raises NotFound unless `principal` may see it; a missing resource (owner None) looks just the same."""
    if owner is None or not may_see(principal, owner):
        raise NotFound.named(name)


def group_of(project: str) -> str:
    """The group that a project belongs to; empty for one in which things are their owners'."""
    return project.removeprefix(GROUP_PROJECT) if project.startswith(GROUP_PROJECT) else ""


def reads_all(principal: Principal, project: str) -> bool:
    """Whether `principal` may read everything in a project."""
    group = group_of(project)
    return sees_everything(principal) or (
        group != "" and principal.kind in _HOLDERS and group in principal.groups
    )


def user_reader(user: str) -> str:
    """What things are shared with that a user may read."""
    return f"user:{user}"


def reader_names(principal: Principal) -> list[str]:
    """What things are shared with that `principal` may read."""
    if principal.kind not in _HOLDERS:
        return []
    return [user_reader(principal.subject), *(f"group:{group}" for group in sorted(principal.groups))]


def may_read(principal: Principal, resource: Resource) -> bool:
    """Whether `principal` may read it."""
    return (
        reads_all(principal, resource.project)
        or may_change(principal, resource)
        or not set(resource.readers).isdisjoint(reader_names(principal))
    )


def may_change(principal: Principal, resource: Resource) -> bool:
    """Whether `principal` may change it, delete it and share it."""
    if sees_everything(principal):
        return True
    if group_of(resource.project):
        return _writes_in(principal, resource.project)
    return owns(principal, resource.owner)


def require_readable(principal: Principal, resource: Resource | None, name: str) -> None:
    """Raises NotFound unless `principal` may read it; one that is missing (None) looks just the same."""
    if resource is None or not may_read(principal, resource):
        raise NotFound.named(name)


def require_changeable(principal: Principal, resource: Resource | None, name: str) -> None:
    """Refuses unless `principal` may change it.

    Raises:
        NotFound: it is missing (None), or the principal may not even read it.
        PermissionDenied: it may be read only.
    """
    require_readable(principal, resource, name)
    if resource is None or not may_change(principal, resource):
        raise PermissionDenied(
            f"{name} is shared with you for reading only", reason="READ_ONLY", metadata={"resource": name}
        )


def require_project(principal: Principal, project: str) -> None:
    """Raises PermissionDenied unless `principal` may make things in a project."""
    if group_of(project) and not sees_everything(principal) and not _writes_in(principal, project):
        raise PermissionDenied(
            f"only members of the group {group_of(project)!r} make things in projects/{project}",
            reason="NOT_A_MEMBER",
            metadata={"project": project},
        )


def changed_readers(readers: Sequence[str], add: Sequence[str], remove: Sequence[str]) -> list[str]:
    """The readers of something after it was shared with some and no longer with others.

    Raises:
        InvalidArgument: not how readers are named, or too many.
    """
    for field, named in (("add", add), ("remove", remove)):
        for reader in named:
            if not _READER.fullmatch(reader):
                raise InvalidArgument.field(field, reader, _READERS)
    changed = sorted((set(readers) | set(add)) - set(remove))
    if len(changed) > MAX_READERS:
        raise InvalidArgument.field("add", f"{len(changed)} readers", f"at most {MAX_READERS} in all")
    return changed


def owner_for(principal: Principal) -> str:
    """The owner of what `principal` creates; empty for a guest.

    Raises:
        PermissionDenied: neither a user, a service account, a guest nor a service.
    """
    if principal.kind in (*_HOLDERS, "service"):
        return principal.subject
    if principal.kind == "guest":
        return ""
    raise PermissionDenied(f"a {principal.kind} may not own resources")


def _writes_in(principal: Principal, project: str) -> bool:
    return principal.kind in _HOLDERS and group_of(project) in principal.writable_groups
