"""Who may do what: roles to verbs, and owners and grants to objects. Pure functions of their arguments.

A call passes twice: its verb needs a permission, which roles give (`check_permission`, once per call, in the interceptor), and its object
needs an access, which ownership or a grant gives (`may`, in the kernel).

             verbs                                              objects
admin        everything                                         everything
operator     everything but changing tenants and tokens         own ones; the state of everybody's, and ending them, but not what is in them
user         contexts, images, loading registered models        own ones, and what was granted
viewer       reading                                            own ones, and what was granted, for reading

Rules for objects
1. The owner is a principal of one tenant; the same name in another tenant is somebody else.
2. Others get nothing without a grant, not even in the same tenant.
3. A grant to "tenant:PATH" is one to everybody at or beneath PATH; a grant to "principal:NAME" is one to the principal of that name, which
   is unique on a machine (see `kerneld.security.identity`). Each ends at its `expires_at`.
4. Whoever may not see an object is told that it is not there: that is the caller's to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kerneld.calls import Access, Grant, Principal, Role
from kerneld.errors import PermissionDenied

_READ = frozenset({"self.read", "context.read", "image.read", "model.read", "tenant.read", "daemon.read"})
_USE = frozenset({"context.alloc", "context.fork", "context.write", "context.grant", "image.write", "model.load"})
_OPERATE = frozenset({"model.register", "daemon.drain", "daemon.events", "daemon.check"})
_ADMINISTER = frozenset({"tenant.write", "token.write"})

PERMISSIONS: Mapping[Role, frozenset[str]] = {
    Role.VIEWER: _READ,
    Role.USER: _READ | _USE,
    Role.OPERATOR: _READ | _USE | _OPERATE,
    Role.ADMIN: _READ | _USE | _OPERATE | _ADMINISTER,
}


def has_permission(principal: Principal, permission: str) -> bool:
    """Whether one of the principal's roles gives a permission. A permission that no role knows is nobody's."""
    return any(permission in PERMISSIONS[role] for role in principal.roles)


def check_permission(principal: Principal, permission: str) -> None:
    """Let a call pass, or not. Raises: PermissionDenied."""
    if not has_permission(principal, permission):
        roles = ", ".join(sorted(role.value for role in principal.roles)) or "no role"
        raise PermissionDenied(
            f"{principal.name} ({roles}) lacks the permission {permission!r}.",
            facts={"permission": permission, "principal": principal.name},
        )


def may(principal: Principal, owner: str, tenant: str, grants: Iterable[Grant], access: Access, now: float) -> bool:
    """Whether a principal may read, write or fork what is in an object of `owner` in `tenant`."""
    if principal.is_admin or is_owner(principal, owner, tenant):
        return True
    return any(access in grant.access and _reaches(grant, principal, now) for grant in grants)


def may_see(principal: Principal, owner: str, tenant: str, grants: Iterable[Grant], now: float) -> bool:
    """Whether a principal may know that an object is there, and its state: whoever has any access to it, and those who see everything."""
    if may_see_everything(principal) or is_owner(principal, owner, tenant):
        return True
    return any(grant.access and _reaches(grant, principal, now) for grant in grants)


def may_control(principal: Principal, owner: str, tenant: str, grants: Iterable[Grant], now: float) -> bool:
    """Whether a principal may suspend, resume, cancel, free or re-prioritize an object: who may write it, and operators."""
    return Role.OPERATOR in principal.roles or may(principal, owner, tenant, grants, Access.WRITE, now)


def may_see_everything(principal: Principal) -> bool:
    """Whether lists may show everybody's objects to a principal."""
    return bool(principal.roles & {Role.ADMIN, Role.OPERATOR})


def may_see_tenant(principal: Principal, path: str) -> bool:
    """Whether a principal may look at a tenant's limits and accounts: its own, those above it, and those beneath it."""
    return may_see_everything(principal) or is_beneath(principal.tenant, path) or is_beneath(path, principal.tenant)


def is_owner(principal: Principal, owner: str, tenant: str) -> bool:
    """Whether an object is the principal's own (rule 1)."""
    return principal.name == owner and principal.tenant == tenant


def is_beneath(tenant: str, ancestor: str) -> bool:
    """Whether a tenant is `ancestor` or somewhere beneath it."""
    return tenant == ancestor or tenant.startswith(ancestor + "/")


def check_may_give(giver: Principal, roles: frozenset[Role]) -> None:
    """Let a principal make a credential with these roles: nobody gives what he does not have. Raises: PermissionDenied."""
    own = frozenset[str]().union(*(PERMISSIONS[role] for role in giver.roles))
    beyond = sorted(role.value for role in roles if not PERMISSIONS[role] <= own)
    if beyond:
        raise PermissionDenied(f"{giver.name} cannot give the role {beyond[0]!r}, which is more than its own.", facts={"role": beyond[0]})


def _reaches(grant: Grant, principal: Principal, now: float) -> bool:
    """Rule 3."""
    if grant.expires_at and now >= grant.expires_at:
        return False
    kind, _, name = grant.grantee.partition(":")
    if kind == "tenant":
        return bool(name) and is_beneath(principal.tenant, name)
    return kind == "principal" and name == principal.name
