"""The verbs on sharing groups: who may compute equal beginnings once, together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kerneld.calls import Caller, GroupInfo, ListArgs, ListPage
from kerneld.contexts import page_of
from kerneld.errors import AlreadyExists, WrongState
from kerneld.events import SharingGroupChanged
from kerneld.machine import Machine
from kerneld.security.acl import may_see_everything
from kerneld.security.keys import new_secret
from kerneld.state.tables import GroupRow


class GroupVerbs:
    """Verbs on sharing groups."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._groups = machine.tenants.groups
        self._adding: set[str] = set()  # names of groups that are being written

    async def add_sharing_group(self, caller: Caller, name: str, members: Sequence[str]) -> GroupInfo:
        """Add a group of tenants. Raises: AlreadyExists; NotFound, if a member is not there; DiskFull."""
        machine = self._machine
        if machine.effects.find(caller, "add_sharing_group") is not None:
            return self._info(self._groups.get(name))
        if name in self._groups or name in self._adding:
            raise AlreadyExists(f"There is a sharing group {name!r} already; change it with set.")
        row = GroupRow(name, self._checked(members), machine.clock(), new_secret())
        self._adding.add(name)
        try:
            return await self._put(caller, "add_sharing_group", row)
        finally:
            self._adding.discard(name)

    async def set_sharing_group(self, caller: Caller, name: str, members: Sequence[str]) -> GroupInfo:
        """Say who the members are from now on; contexts that live in the group stay in it. Raises: NotFound, DiskFull."""
        row = self._groups.get(name)
        if self._machine.effects.find(caller, "set_sharing_group") is not None:
            return self._info(row)
        return await self._put(caller, "set_sharing_group", replace(row, members=self._checked(members)))

    async def remove_sharing_group(self, caller: Caller, name: str) -> None:
        """Remove a group. Raises: NotFound; WrongState, while contexts live in it."""
        machine = self._machine
        if machine.effects.find(caller, "remove_sharing_group") is not None:
            return
        num_contexts = self._info(self._groups.get(name)).num_contexts
        if num_contexts:
            problem = f"{num_contexts} contexts live in the sharing group {name!r}; empty it, and remove it when they are freed."
            raise WrongState(problem, reason="SHARING_GROUP_IN_USE", facts={"group": name, "num_contexts": str(num_contexts)})
        row = self._groups.get(name)
        with machine.effects.done_by(caller, "remove_sharing_group") as effects:
            self._groups.put(replace(row, members=()))  # nobody begins in it while the disk is written
            try:
                await machine.store.remove_group(name, effects)
            except BaseException:
                self._groups.put(row)
                raise
        self._groups.remove(name)
        machine.events.publish(SharingGroupChanged(name, "removed", 0))

    def list_sharing_groups(self, caller: Caller, args: ListArgs) -> ListPage[GroupInfo]:
        """The groups that the caller's tenant may opt into, or all for those who may see everything. Raises: InvalidArgument."""
        principal = caller.principal
        sees_all = may_see_everything(principal)
        names = [row.name for row in self._groups if sees_all or self._groups.is_member(principal.tenant, row.name)]
        return page_of(names, args, lambda name: self._info(self._groups.get(name)), lambda _info: True)

    # ------------------------------------------------------------------------------------------------------------------ inside

    def _checked(self, members: Sequence[str]) -> tuple[str, ...]:
        return tuple(sorted({self._machine.tenants.get(path).path for path in members}))

    async def _put(self, caller: Caller, verb: str, row: GroupRow) -> GroupInfo:
        machine = self._machine
        with machine.effects.done_by(caller, verb) as effects:
            await machine.store.put_group(row, effects)
        self._groups.put(row)
        machine.events.publish(SharingGroupChanged(row.name, "set" if verb.startswith("set") else "added", len(row.members)))
        return self._info(row)

    def _info(self, row: GroupRow) -> GroupInfo:
        num_contexts = sum(context.sharing_group == row.name for context in self._machine.contexts)
        return GroupInfo(row.name, row.members, row.created_at, num_contexts)
