"""System calls on tenants, tokens and the daemon itself."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from kerneld.calls import Caller, ListArgs
from kerneld.errors import InvalidArgument
from kerneld_client.pb import syscalls_pb2 as pb
from syscalls import answers, convert, device_answers, memory_answers, request_answers, usage_answers
from syscalls.streams import closing
from syscalls.verbs import AdminVerbs, MemoryVerbs, UsageVerbs


class AdminKernel(AdminVerbs, MemoryVerbs, UsageVerbs, Protocol):
    """What this service asks of the kernel."""


class Admin:
    """Service `kerneld.v1.Admin`."""

    def __init__(self, kernel: AdminKernel) -> None:
        self._kernel = kernel

    async def WhoAmI(self, request: pb.WhoAmIRequest, caller: Caller) -> pb.Principal:
        """Show the caller to itself; the gate knows it already."""
        del request
        return answers.principal(caller.principal)

    async def AddTenant(self, request: pb.AddTenantRequest, caller: Caller) -> pb.Tenant:
        """Make a node of the tree of tenants."""
        weight = request.weight if request.HasField("weight") else convert.DEFAULT_WEIGHT
        return answers.tenant(await self._kernel.add_tenant(caller, request.path, weight, convert.limits_of(request.limits)))

    async def SetTenant(self, request: pb.SetTenantRequest, caller: Caller) -> pb.Tenant:
        """Change weight, or all limits at once."""
        weight = request.weight if request.HasField("weight") else None
        limits = convert.limits_of(request.limits) if request.HasField("limits") else None
        return answers.tenant(await self._kernel.set_tenant(caller, request.path, weight, limits, request.revision))

    async def ListTenants(self, request: pb.ListTenantsRequest, caller: Caller) -> pb.ListTenantsResponse:
        """Show one page of tenants."""
        page = self._kernel.list_tenants(caller, convert.plain_list(request))
        return pb.ListTenantsResponse(tenants=map(answers.tenant, page.items), next_page_token=page.next_page_token)

    async def RemoveTenant(self, request: pb.RemoveTenantRequest, caller: Caller) -> pb.RemoveTenantResponse:
        """Remove a tenant; with force, its contexts too."""
        return pb.RemoveTenantResponse(contexts_freed=await self._kernel.remove_tenant(caller, request.path, request.force))

    async def AddSharingGroup(self, request: pb.AddSharingGroupRequest, caller: Caller) -> pb.SharingGroup:
        """Make a group of tenants that may compute equal beginnings once."""
        return memory_answers.sharing_group(await self._kernel.add_sharing_group(caller, request.name, tuple(request.members)))

    async def SetSharingGroup(self, request: pb.SetSharingGroupRequest, caller: Caller) -> pb.SharingGroup:
        """Say who the members of a sharing group are."""
        return memory_answers.sharing_group(await self._kernel.set_sharing_group(caller, request.name, tuple(request.members)))

    async def RemoveSharingGroup(self, request: pb.RemoveSharingGroupRequest, caller: Caller) -> pb.RemoveSharingGroupResponse:
        """Remove a sharing group in which no context lives."""
        await self._kernel.remove_sharing_group(caller, request.name)
        return pb.RemoveSharingGroupResponse()

    async def ListSharingGroups(self, request: pb.ListSharingGroupsRequest, caller: Caller) -> pb.ListSharingGroupsResponse:
        """Show one page of sharing groups."""
        page = self._kernel.list_sharing_groups(caller, convert.plain_list(request))
        groups = map(memory_answers.sharing_group, page.items)
        return pb.ListSharingGroupsResponse(groups=groups, next_page_token=page.next_page_token)

    async def AddToken(self, request: pb.AddTokenRequest, caller: Caller) -> pb.NewToken:
        """Make an API token; its secret is shown this once."""
        roles = convert.roles_of(list(request.roles))
        return answers.new_token(await self._kernel.add_token(caller, request.tenant, request.name, roles, request.lifetime_s))

    async def ListTokens(self, request: pb.ListTokensRequest, caller: Caller) -> pb.ListTokensResponse:
        """Show one page of API tokens, without secrets."""
        page = await self._kernel.list_tokens(caller, convert.token_list(request))
        return pb.ListTokensResponse(tokens=map(answers.token, page.items), next_page_token=page.next_page_token)

    async def RemoveToken(self, request: pb.RemoveTokenRequest, caller: Caller) -> pb.RemoveTokenResponse:
        """Make an API token worthless."""
        await self._kernel.remove_token(caller, request.id)
        return pb.RemoveTokenResponse()

    async def Drain(self, request: pb.DrainRequest, caller: Caller) -> pb.DrainResponse:
        """Refuse new requests, wait for those that run, stop the daemon."""
        return answers.drained(await self._kernel.drain(caller, request.timeout_s))

    async def Top(self, request: pb.TopRequest, caller: Caller) -> AsyncIterator[pb.TopFrame]:
        """Show the machine, again and again."""
        async with closing(self._kernel.top(caller, convert.top_interval_s(request), request.count)) as frames:
            async for frame in frames:
                yield answers.top_frame(frame)

    async def Events(self, request: pb.EventsRequest, caller: Caller) -> AsyncIterator[pb.Event]:
        """Show what happened, and with follow what happens."""
        async with closing(self._kernel.events(caller, request.follow, request.since)) as records:
            async for record in records:
                yield answers.event(record)

    async def ListDevices(self, request: pb.ListDevicesRequest, caller: Caller) -> pb.ListDevicesResponse:
        """Show devices, and what runs the models on them."""
        reports = self._kernel.list_devices(caller, request.device)
        return pb.ListDevicesResponse(devices=map(device_answers.device, reports))

    async def ReadMemory(self, request: pb.ReadMemoryRequest, caller: Caller) -> pb.Memory:
        """Show the ledger of memory, and the latest decisions over pages."""
        return memory_answers.memory(self._kernel.read_memory(caller, request.num_decisions))

    async def Explain(self, request: pb.ExplainRequest, caller: Caller) -> pb.Explanation:
        """Say why a request, a context or a model is where it is, and what would change that."""
        kind = request.WhichOneof("subject")
        if kind is None:
            raise InvalidArgument("subject", "name a request, a context or a model.")
        if kind == "model":
            return memory_answers.explanation(self._kernel.explain_model(caller, request.model))
        if kind == "request":
            return memory_answers.explanation(self._kernel.explain_request(caller, request.request))
        return memory_answers.explanation(self._kernel.explain_context(caller, request.context_id))

    async def ListRequests(self, request: pb.ListRequestsRequest, caller: Caller) -> pb.ListRequestsResponse:
        """Show one page of the requests that wait or run."""
        args = ListArgs(request.page_size, request.page_token, everybody=request.all, tenant=request.tenant)
        return request_answers.requests(self._kernel.list_requests(caller, args))

    async def Fsck(self, request: pb.FsckRequest, caller: Caller) -> AsyncIterator[pb.PartChecked]:
        """Check all that the daemon keeps, part by part."""
        del request
        async with closing(self._kernel.fsck(caller)) as parts:
            async for part in parts:
                yield memory_answers.part_checked(part)

    async def Usage(self, request: pb.UsageRequest, caller: Caller) -> pb.UsageResponse:
        """Show what tenants used."""
        return usage_answers.usage(await self._kernel.usage(caller, usage_answers.usage_args(request)))

    async def Shares(self, request: pb.SharesRequest, caller: Caller) -> pb.SharesResponse:
        """Show one page of the tree of shares."""
        return usage_answers.shares(self._kernel.shares(caller, convert.plain_list(request)))
