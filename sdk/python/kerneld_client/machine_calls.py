"""The calls on models, tenants, tokens and the daemon itself."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from kerneld_client import memory_values, reading, values
from kerneld_client.call import SLOW_S, Call, Page, fill, new_request_id, nothing, page_of, unary
from kerneld_client.errors import InvalidArgument
from kerneld_client.pb import syscalls_pb2 as pb

DRAIN_SLACK_S = 30.0

# -------------------------------------------------------------------------------------------------------------------------------- models


@dataclass(frozen=True, slots=True)
class Source:
    """How a model directory is to be read."""

    quant: str | None = None
    max_positions: int = 0
    base: str = ""
    kv_quant: str | None = None


def register(path: str, name: str | None, how: Source) -> Call[values.ModelInfo]:
    """Give a model directory a name."""
    request = fill(pb.RegisterModelRequest(), _model_fields(path, name, how))
    return unary("Models/RegisterModel", request, pb.Model, reading.model_info, SLOW_S)


def load(path: str, name: str | None, how: Source, device: str = "") -> Call[values.LoadProgress | values.ModelInfo]:
    """Bring a model onto a device."""
    request = fill(pb.LoadModelRequest(), {**_model_fields(path, name, how), "device": device})
    return unary("Models/LoadModel", request, pb.LoadModelEvent, reading.load_event)


def _model_fields(path: str, name: str | None, how: Source) -> dict[str, object]:
    called = name or os.path.basename(os.path.normpath(path)).removesuffix(".gguf")
    return {"request_id": new_request_id(), "name": called, "path": path, **asdict(how)}


def unload(name: str, device: str = "") -> Call[values.ModelInfo]:
    """Take a model off all devices, or one."""
    request = fill(pb.UnloadModelRequest(), {"name": name, "request_id": new_request_id(), "device": device})
    return unary("Models/UnloadModel", request, pb.Model, reading.model_info, SLOW_S)


def pin(name: str, *, is_pinned: bool) -> Call[values.ModelInfo]:
    """Keep a model on the device, or let it leave again."""
    request = fill(pb.PinModelRequest(), {"name": name, "request_id": new_request_id()})
    return unary("Models/PinModel" if is_pinned else "Models/UnpinModel", request, pb.Model, reading.model_info)


def remove_model(name: str) -> Call[None]:
    """Forget a model's name."""
    request = fill(pb.RemoveModelRequest(), {"name": name, "request_id": new_request_id()})
    return unary("Models/RemoveModel", request, pb.RemoveModelResponse, nothing)


def model(name: str) -> Call[values.ModelInfo]:
    """Show a model."""
    return unary("Models/StatModel", fill(pb.StatModelRequest(), {"name": name}), pb.Model, reading.model_info)


def models(page_token: str) -> Call[Page[values.ModelInfo]]:
    """One page of models."""
    request = fill(pb.ListModelsRequest(), {"page_token": page_token})
    return unary("Models/ListModels", request, pb.ListModelsResponse, page_of("models", reading.model_info))


# --------------------------------------------------------------------------------------------------------------------------------- admin


def whoami() -> Call[values.Principal]:
    """Who the caller is."""
    return unary("Admin/WhoAmI", pb.WhoAmIRequest(), pb.Principal, reading.principal)


def add_tenant(path: str, weight: int, limits: values.Limits | None) -> Call[values.TenantInfo]:
    """A new tenant."""
    fields = {"path": path, "weight": weight, "limits": _limits(limits), "request_id": new_request_id()}
    return unary("Admin/AddTenant", fill(pb.AddTenantRequest(), fields), pb.Tenant, reading.tenant_info)


def set_tenant(path: str, weight: int | None, limits: values.Limits | None, revision: str) -> Call[values.TenantInfo]:
    """Change weight, or all limits at once."""
    fields = {"path": path, "weight": weight, "limits": _limits(limits), "revision": revision, "request_id": new_request_id()}
    return unary("Admin/SetTenant", fill(pb.SetTenantRequest(), fields), pb.Tenant, reading.tenant_info)


def _limits(limits: values.Limits | None) -> pb.Limits | None:
    if limits is None:
        return None
    modes = {name: _mode_number(name, mode) for name, mode in limits.modes.items()}
    return fill(pb.Limits(), {**asdict(limits), "modes": modes})


def _mode_number(name: str, mode: str) -> int:
    try:
        return pb.LimitMode.Value(f"LIMIT_MODE_{values.LimitMode(mode).name}")
    except ValueError:
        raise InvalidArgument.of(f"limits.modes[{name!r}]", f"must be soft or hard; it is {mode!r}.") from None


def tenants(page_token: str) -> Call[Page[values.TenantInfo]]:
    """One page of tenants."""
    request = fill(pb.ListTenantsRequest(), {"page_token": page_token})
    return unary("Admin/ListTenants", request, pb.ListTenantsResponse, page_of("tenants", reading.tenant_info))


def remove_tenant(path: str, force: bool) -> Call[int]:
    """Remove a tenant; says how many contexts were freed."""
    request = fill(pb.RemoveTenantRequest(), {"path": path, "force": force, "request_id": new_request_id()})
    return unary("Admin/RemoveTenant", request, pb.RemoveTenantResponse, lambda message: int(message.contexts_freed), SLOW_S)


def add_sharing_group(name: str, members: Sequence[str]) -> Call[values.SharingGroup]:
    """A new sharing group."""
    fields = {"name": name, "members": members, "request_id": new_request_id()}
    return unary("Admin/AddSharingGroup", fill(pb.AddSharingGroupRequest(), fields), pb.SharingGroup, reading.sharing_group)


def set_sharing_group(name: str, members: Sequence[str]) -> Call[values.SharingGroup]:
    """Say who the members of a sharing group are."""
    fields = {"name": name, "members": members, "request_id": new_request_id()}
    return unary("Admin/SetSharingGroup", fill(pb.SetSharingGroupRequest(), fields), pb.SharingGroup, reading.sharing_group)


def sharing_groups(page_token: str) -> Call[Page[values.SharingGroup]]:
    """One page of sharing groups."""
    request = fill(pb.ListSharingGroupsRequest(), {"page_token": page_token})
    return unary("Admin/ListSharingGroups", request, pb.ListSharingGroupsResponse, page_of("groups", reading.sharing_group))


def remove_sharing_group(name: str) -> Call[None]:
    """Remove a sharing group."""
    request = fill(pb.RemoveSharingGroupRequest(), {"name": name, "request_id": new_request_id()})
    return unary("Admin/RemoveSharingGroup", request, pb.RemoveSharingGroupResponse, nothing)


def add_token(tenant: str, name: str, roles: Sequence[str], lifetime_s: float) -> Call[values.NewToken]:
    """A new API token."""
    fields = {"tenant": tenant, "name": name, "roles": roles, "lifetime_s": lifetime_s, "request_id": new_request_id()}
    return unary("Admin/AddToken", fill(pb.AddTokenRequest(), fields), pb.NewToken, reading.new_token)


def tokens(page_token: str, tenant: str) -> Call[Page[values.TokenInfo]]:
    """One page of API tokens."""
    request = fill(pb.ListTokensRequest(), {"page_token": page_token, "tenant": tenant})
    return unary("Admin/ListTokens", request, pb.ListTokensResponse, page_of("tokens", reading.token_info))


def remove_token(token_id: str) -> Call[None]:
    """Make an API token worthless."""
    request = fill(pb.RemoveTokenRequest(), {"id": token_id, "request_id": new_request_id()})
    return unary("Admin/RemoveToken", request, pb.RemoveTokenResponse, nothing)


def drain(timeout_s: float) -> Call[values.Drained]:
    """Refuse new requests, wait for those that run, stop the daemon."""
    request = fill(pb.DrainRequest(), {"timeout_s": timeout_s, "request_id": new_request_id()})
    return unary("Admin/Drain", request, pb.DrainResponse, reading.drained, timeout_s + DRAIN_SLACK_S)


def top(interval_s: float, count: int) -> Call[values.TopFrame]:
    """The machine, again and again."""
    request = fill(pb.TopRequest(), {"interval_s": interval_s, "count": count})
    return unary("Admin/Top", request, pb.TopFrame, reading.top_frame)


def events(follow: bool, since: int) -> Call[values.Event]:
    """What happened, and with follow what happens."""
    request = fill(pb.EventsRequest(), {"follow": follow, "since": since})
    return unary("Admin/Events", request, pb.Event, reading.event)


def read_memory(num_decisions: int) -> Call[memory_values.Memory]:
    """The ledger of memory."""
    return unary("Admin/ReadMemory", fill(pb.ReadMemoryRequest(), {"num_decisions": num_decisions}), pb.Memory, reading.memory)


def explain(context_id: str | None, model: str | None, request: str | None) -> Call[memory_values.Explanation]:
    """Why a request, a context or a model is where it is."""
    asked = fill(pb.ExplainRequest(), {"context_id": context_id, "model": model, "request": request})
    return unary("Admin/Explain", asked, pb.Explanation, reading.explanation)


def requests(page_token: str, everybodys: bool, tenant: str) -> Call[Page[memory_values.Outlook]]:
    """One page of the requests that wait or run."""
    request = fill(pb.ListRequestsRequest(), {"page_token": page_token, "all": everybodys, "tenant": tenant})
    return unary("Admin/ListRequests", request, pb.ListRequestsResponse, page_of("requests", reading.outlook))


def fsck() -> Call[memory_values.PartChecked]:
    """Check all that the daemon keeps."""
    return unary("Admin/Fsck", pb.FsckRequest(), pb.PartChecked, reading.part_checked)
