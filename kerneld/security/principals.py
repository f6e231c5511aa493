"""Principals: everybody who is known on this machine, and how a local user becomes one.

Invariants
1. A name belongs to one tenant: no two principals have the same name, so a grant to "principal:NAME" means one of them.
2. The tenant of a local user follows the configuration at every login; that of a token is fixed when the token is made.
3. Root and the daemon's own user are admins whatever is configured; everybody else begins as a user.

How a uid finds its tenant, the first that applies (`kerneld.users`):

    root, the daemon's own uid     admin
    "uid:1000" = "lab/ann"         lab/ann
    "group:ml" = "lab/ml"          lab/ml/<user name>          (groups in the order of the configuration)
    else                           local/<user name>
"""

from __future__ import annotations

import grp
import pwd
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from kerneld.calls import Principal, Role
from kerneld.errors import AlreadyExists, PermissionDenied, Unauthenticated
from kerneld.state.tables import PrincipalRow

ADMIN_TENANT = "admin"
LOCAL_TENANT = "local"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63}")


class Accounts(Protocol):
    """The machine's user database."""

    def user_name(self, uid: int) -> str | None:
        """Return the name of a user, None if there is none."""

    def group_name(self, gid: int) -> str | None:
        """Return the name of a group, None if there is none."""


class SystemAccounts:
    """The user database of this machine (files, LDAP, whatever it is configured for)."""

    def user_name(self, uid: int) -> str | None:
        """Return the name of a user, None if there is none."""
        try:
            return pwd.getpwuid(uid).pw_name
        except KeyError:
            return None

    def group_name(self, gid: int) -> str | None:
        """Return the name of a group, None if there is none."""
        try:
            return grp.getgrgid(gid).gr_name
        except KeyError:
            return None


@dataclass(frozen=True, slots=True)
class LocalUsers:
    """The rules by which uids become principals."""

    daemon_uid: int
    tenants: Mapping[str, str]  # "uid:N" or "group:NAME" -> tenant path
    accounts: Accounts

    def identify(self, uid: int, groups: Iterable[int]) -> tuple[str, str]:
        """Return name and tenant of a local user. Raises: Unauthenticated, if the machine does not know the uid."""
        name = self.accounts.user_name(uid)
        if name is None:
            raise Unauthenticated(
                f"The machine knows no user with uid {uid}; kerneld cannot tell who that is.", reason="UID_UNKNOWN", facts={"uid": str(uid)}
            )
        if not _NAME.fullmatch(name):
            name = f"uid-{uid}"  # a name that cannot stand in a path, a Windows domain's say
        return name, self._tenant_of(uid, name, groups)

    def is_admin(self, uid: int) -> bool:
        """Whether a uid is an admin (invariant 3)."""
        return uid in (0, self.daemon_uid)

    def _tenant_of(self, uid: int, name: str, groups: Iterable[int]) -> str:
        if self.is_admin(uid):
            return ADMIN_TENANT
        own = self.tenants.get(f"uid:{uid}")
        if own is not None:
            return own
        memberships = {f"group:{self.accounts.group_name(gid)}" for gid in groups}
        for key, path in self.tenants.items():
            if key in memberships:
                return f"{path}/{name}"
        return f"{LOCAL_TENANT}/{name}"


class Principals:
    """Everybody who is known, by name."""

    def __init__(self, known: Iterable[PrincipalRow]) -> None:
        self._rows = {row.name: row for row in known}

    def local(self, name: str, tenant: str, *, is_admin: bool) -> tuple[Principal, PrincipalRow | None]:
        """Return the principal of a local user, and its row if that is new or has changed (invariant 2).

        Raises: PermissionDenied, if the name belongs to a token's principal in another tenant.
        """
        row = self._rows.get(name)
        if row is not None and not row.is_local and row.tenant != tenant:
            raise PermissionDenied(
                f"The name {name!r} belongs to a token of the tenant {row.tenant!r}. An administrator has to rename that token.",
                reason="NAME_TAKEN",
                facts={"principal": name, "tenant": row.tenant},
            )
        roles = row.roles if row is not None else frozenset({Role.USER})
        if is_admin:
            roles = frozenset({Role.ADMIN})
        elif Role.ADMIN in roles:
            roles = frozenset({Role.USER})  # the name was an admin's once, by a uid that is none any more
        fresh = PrincipalRow(name, tenant, roles, is_local=True)
        self._rows[name] = fresh
        return Principal(name, tenant, roles, via="peer"), fresh if fresh != row else None

    def remote(self, name: str, tenant: str) -> tuple[Principal, PrincipalRow | None]:
        """Return the principal of a certificate, and its row if that is new.

        Raises: PermissionDenied, if the name is somebody's in another tenant (invariant 1).
        """
        try:
            row = self.check_name(name, tenant)
        except AlreadyExists as error:
            raise PermissionDenied(error.message, reason="NAME_TAKEN", facts=error.facts) from error
        is_new = name not in self._rows
        self._rows[name] = row
        return Principal(name, tenant, row.roles, via="tls", credential_id=name), row if is_new else None

    def check_name(self, name: str, tenant: str) -> PrincipalRow:
        """Return the row for a token of this name. Raises: AlreadyExists, if the name is somebody's in another tenant (invariant 1)."""
        row = self._rows.get(name)
        if row is None:
            return PrincipalRow(name, tenant, frozenset({Role.USER}), is_local=False)
        if row.tenant != tenant:
            raise AlreadyExists(f"The name {name!r} belongs to the tenant {row.tenant!r}.", facts={"principal": name, "tenant": row.tenant})
        return row

    def add(self, row: PrincipalRow) -> None:
        """Know a principal."""
        self._rows[row.name] = row

    def forget_tenant(self, tenant: str) -> None:
        """Forget everybody of a tenant that was removed."""
        self._rows = {name: row for name, row in self._rows.items() if row.tenant != tenant}


def is_name(name: str) -> bool:
    """Whether a text can be the name of a principal, and a part of a tenant's path."""
    return _NAME.fullmatch(name) is not None


def with_ancestors(path: str) -> list[str]:
    """Return a tenant's path and those above it, topmost first."""
    parts = path.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
