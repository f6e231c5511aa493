"""The access rules, row by row."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from kerneld.calls import Access, Grant, Principal, Role
from kerneld.errors import PermissionDenied
from kerneld.security.acl import (
    PERMISSIONS,
    check_may_give,
    check_permission,
    has_permission,
    may,
    may_control,
    may_see,
    may_see_tenant,
)
from kerneld_client.pb import syscalls_pb2 as pb

NOW = 100.0
READ = frozenset({Access.READ})


def somebody(name: str = "bob", tenant: str = "lab/bob", role: Role = Role.USER) -> Principal:
    return Principal(name, tenant, frozenset({role}))


def granted(grantee: str, access: frozenset[Access] = READ, expires_at: float = 0.0) -> tuple[Grant, ...]:
    return (Grant(grantee, access, expires_at),)


def declared_permissions() -> set[str]:
    """Return every permission that the interface declares."""
    methods = [method for service in pb.DESCRIPTOR.services_by_name.values() for method in service.methods]
    options: list[Any] = [method.GetOptions().Extensions for method in methods]  # the generated stubs do not know extensions
    return {extensions[pb.permission] for extensions in options}


def test_every_declared_permission_is_somebodys_and_no_other_exists() -> None:
    assert PERMISSIONS[Role.ADMIN] == declared_permissions()


def test_every_role_has_what_the_lesser_one_has() -> None:
    ladder = [Role.VIEWER, Role.USER, Role.OPERATOR, Role.ADMIN]
    assert all(PERMISSIONS[lesser] < PERMISSIONS[greater] for lesser, greater in pairwise(ladder))


@pytest.mark.parametrize(
    ("permission", "least"),
    [
        ("self.read", Role.VIEWER),
        ("context.read", Role.VIEWER),
        ("context.alloc", Role.USER),
        ("context.write", Role.USER),
        ("image.write", Role.USER),
        ("model.load", Role.USER),
        ("model.register", Role.OPERATOR),
        ("daemon.drain", Role.OPERATOR),
        ("daemon.events", Role.OPERATOR),
        ("tenant.write", Role.ADMIN),
        ("token.write", Role.ADMIN),
    ],
)
def test_the_least_role_for_a_permission(permission: str, least: Role) -> None:
    ladder = [Role.VIEWER, Role.USER, Role.OPERATOR, Role.ADMIN]
    assert [has_permission(somebody(role=role), permission) for role in ladder] == [
        ladder.index(role) >= ladder.index(least) for role in ladder
    ]


def test_a_missing_permission_is_named() -> None:
    with pytest.raises(PermissionDenied, match=r"bob \(user\) lacks the permission 'tenant.write'"):
        check_permission(somebody(), "tenant.write")


def test_a_permission_that_nobody_declared_is_nobodys() -> None:
    with pytest.raises(PermissionDenied):
        check_permission(somebody(role=Role.ADMIN), "context.everything")


def test_no_role_is_no_permission() -> None:
    assert not has_permission(Principal("x", "y", frozenset()), "self.read")


@pytest.mark.parametrize(
    ("principal", "grants", "is_allowed"),
    [
        (somebody("ann", "lab/ann"), (), True),
        (somebody("ann", "other/ann"), (), False),  # rule 1: the same name elsewhere
        (somebody("bob", "lab/ann"), (), False),  # rule 2: the same tenant is not enough
        (somebody("bob", "lab"), (), False),  # nor is the tenant above
        (somebody("ann", "lab/ann", Role.VIEWER), (), True),
        (somebody(role=Role.ADMIN), (), True),
        (somebody(role=Role.OPERATOR), (), False),
        (somebody(), granted("principal:bob"), True),
        (somebody(), granted("principal:bobby"), False),
        (somebody(), granted("tenant:lab"), True),
        (somebody(), granted("tenant:lab/bob"), True),
        (somebody(), granted("tenant:lab/bob/x"), False),
        (somebody("bob", "laboratory"), granted("tenant:lab"), False),
        (somebody("bob", ""), granted("tenant:"), False),
        (somebody(), granted("bob"), False),
        (somebody(), granted("principal:bob", frozenset({Access.WRITE, Access.FORK})), False),
        (somebody(), granted("principal:bob", expires_at=NOW), False),
        (somebody(), granted("principal:bob", expires_at=NOW + 1), True),
    ],
)
def test_who_may_read_what_ann_has(principal: Principal, grants: tuple[Grant, ...], is_allowed: bool) -> None:
    assert may(principal, "ann", "lab/ann", grants, Access.READ, NOW) is is_allowed


@pytest.mark.parametrize(
    ("role", "sees", "reads", "controls"),
    [(Role.ADMIN, True, True, True), (Role.OPERATOR, True, False, True), (Role.USER, False, False, False)],
)
def test_an_operator_sees_and_ends_but_does_not_read(role: Role, sees: bool, reads: bool, controls: bool) -> None:
    principal = somebody(role=role)
    assert may_see(principal, "ann", "lab/ann", (), NOW) is sees
    assert may(principal, "ann", "lab/ann", (), Access.READ, NOW) is reads
    assert may_control(principal, "ann", "lab/ann", (), NOW) is controls


@pytest.mark.parametrize("access", list(Access))
def test_any_grant_lets_its_holder_see(access: Access) -> None:
    assert may_see(somebody(), "ann", "lab/ann", granted("principal:bob", frozenset({access})), NOW)


@pytest.mark.parametrize(("path", "is_shown"), [("lab", True), ("lab/bob", True), ("lab/bob/x", True), ("lab/ann", False), ("la", False)])
def test_which_tenants_a_user_sees(path: str, is_shown: bool) -> None:
    assert may_see_tenant(somebody(), path) is is_shown


@pytest.mark.parametrize(
    ("giver", "role", "is_allowed"),
    [
        (Role.ADMIN, Role.ADMIN, True),
        (Role.OPERATOR, Role.OPERATOR, True),
        (Role.OPERATOR, Role.ADMIN, False),
        (Role.USER, Role.VIEWER, True),
        (Role.USER, Role.OPERATOR, False),
        (Role.VIEWER, Role.USER, False),
    ],
)
def test_nobody_gives_more_than_he_has(giver: Role, role: Role, is_allowed: bool) -> None:
    try:
        check_may_give(somebody(role=giver), frozenset({role}))
    except PermissionDenied:
        assert not is_allowed
    else:
        assert is_allowed
