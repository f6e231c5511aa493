"""The syscall table."""

from __future__ import annotations

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool

from kerneld.calls import Principal, Role
from kerneld.security.acl import has_permission
from syscalls.table import TableError, build_table, row_of, services

ADMIN = Principal("root", "lab", frozenset({Role.ADMIN}))


def test_every_method_of_the_interface_has_a_row_with_a_permission_that_some_role_gives() -> None:
    table = build_table()
    for service in services():
        for method in service.methods:
            row = table[f"/{service.full_name}/{method.name}"]
            assert has_permission(ADMIN, row.permission), f"{method.full_name}: nobody has {row.permission!r}"


def test_mutating_methods_are_those_with_a_request_id() -> None:
    for row in build_table().values():
        has_request_id = "request_id" in row.request.DESCRIPTOR.fields_by_name
        assert row.mutates == has_request_id, row.path


def test_every_method_but_lists_and_the_daemons_own_names_its_object() -> None:
    without = {row.verb for row in build_table().values() if not row.object_field}
    lists = {"ListModels", "ListTenants", "ListSharingGroups", "ListDevices", "Shares"}
    assert without == lists | {"WhoAmI", "Drain", "Top", "Events", "ReadMemory", "Fsck"}


def test_a_method_without_permission_does_not_get_in() -> None:
    file = descriptor_pb2.FileDescriptorProto(name="bare.proto", package="bare", syntax="proto3")
    file.message_type.add(name="Nothing")
    method = file.service.add(name="Bare").method.add(name="Do", input_type=".bare.Nothing", output_type=".bare.Nothing")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    with pytest.raises(TableError, match=r"bare\.Bare\.Do declares no permission"):
        row_of(pool.FindServiceByName("bare.Bare").methods_by_name[method.name])
