"""The system calls as data: which method, what to send, how to read the answer. Both clients send these."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypedDict, TypeVar

from google.protobuf.message import Message

from kerneld_client import values
from kerneld_client.errors import InvalidArgument
from kerneld_client.pb import syscalls_pb2 as pb

T = TypeVar("T")

# Calls that read or write much on disk, or wait for a device, have longer than the client's own timeout.
SLOW_S = 600.0
DRAIN_SLACK_S = 30.0


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One call, ready to be sent as often as it takes: a mutating one carries its request_id."""

    path: str
    request: Message
    answer: type[Message]
    read: Callable[[Any], T]
    timeout_s: float | None = None  # None: the client's


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """A part of a list."""

    items: list[T]
    next_page_token: str


class AllocOptions(TypedDict, total=False):
    """What `alloc` takes beside the model."""

    max_tokens: int  # of the context; 0: the model's limit
    priority: str  # "interactive", "batch", "idle"
    nice: int  # -20 .. 19, among one person's own
    durability: str  # "journal", "fsync", "none"
    labels: Mapping[str, str]
    seed: int
    request_id: str


class ForkOptions(TypedDict, total=False):
    """What `fork` takes."""

    at: int  # offset; default: everything that is journaled
    labels: Mapping[str, str]
    seed: int
    request_id: str


class SetOptions(TypedDict, total=False):
    """What `set` takes; what is left out stays."""

    nice: int
    priority: str
    labels: Mapping[str, str]  # merged; an empty value removes a label
    max_tokens: int
    request_id: str


class SamplingOptions(TypedDict, total=False):
    """How to draw."""

    temperature: float  # 0: greedy
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int  # default: the context's
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    logprobs: int  # 0: of the chosen tokens; n: and of the n likeliest


class InferOptions(SamplingOptions, total=False):
    """What `infer` takes beside text."""

    tokens: Sequence[int]
    messages: Sequence[Mapping[str, str]]  # {"role": ..., "content": ...}
    max_tokens: int  # of the answer; default 256
    deadline_s: float
    detach_grace_s: float
    request_id: str


def new_request_id() -> str:
    """A key that no other call has."""
    return uuid.uuid4().hex


M = TypeVar("M", bound=Message)


def fill(message: M, fields: Mapping[str, object], called: str = "") -> M:
    """Set the fields that are not None. Raises: InvalidArgument, naming the field (or what it is called) that cannot hold its value."""
    for name, value in fields.items():
        if value is None:
            continue
        try:
            _set(message, name, value)
        except AttributeError as error:
            raise TypeError(f"There is no option {name!r}.") from error
        except (TypeError, ValueError) as error:
            raise InvalidArgument.of(called or name, f"{error}") from error
    return message


def _set(message: Message, name: str, value: object) -> None:
    if isinstance(value, Message):
        getattr(message, name).CopyFrom(value)
        getattr(message, name).SetInParent()  # an empty one is there too
    elif isinstance(value, Mapping):
        getattr(message, name).update(value)
    elif isinstance(value, Iterable) and not isinstance(value, (str, bytes)):
        getattr(message, name).extend(value)
    else:
        setattr(message, name, value)


def _enum(names: Any, prefix: str, field: str, word: object) -> object:
    if word is None:
        return None
    known = {name.removeprefix(prefix).lower(): name for name in names if not name.endswith("_UNSPECIFIED")}
    if str(word) not in known:
        raise InvalidArgument.of(field, f"must be one of {', '.join(known)}; it is {word!r}.")
    return names[known[str(word)]]


def _words(options: Mapping[str, object]) -> dict[str, object]:
    """Options with words for enums replaced by their numbers, and a request_id."""
    fields = {"request_id": new_request_id(), **options}
    if "priority" in fields:
        fields["priority"] = _enum(dict(pb.Priority.items()), "PRIORITY_", "priority", fields["priority"])
    if "durability" in fields:
        fields["durability"] = _enum(dict(pb.Durability.items()), "DURABILITY_", "durability", fields["durability"])
    return fields


def _unary(verb: str, request: Message, answer: type[Message], read: Callable[[Any], T], timeout_s: float | None = None) -> Call[T]:
    return Call(f"/kerneld.v1.{verb}", request, answer, read, timeout_s)


def _nothing(_: Message) -> None:
    return None


# ------------------------------------------------------------------------------------------------------------------------------ contexts


def alloc(model: str, options: AllocOptions) -> Call[values.ContextInfo]:
    """A new context."""
    request = fill(pb.AllocContextRequest(), {"model": model, **_words(options)})
    return _unary("Contexts/AllocContext", request, pb.Context, values.context_info)


def fork(context_id: str, options: ForkOptions) -> Call[values.ContextInfo]:
    """A context that shares another's past."""
    request = fill(pb.ForkContextRequest(), {"context_id": context_id, **_words(options)})
    return _unary("Contexts/ForkContext", request, pb.Context, values.context_info)


def free(context_id: str) -> Call[None]:
    """Give a context back."""
    request = fill(pb.FreeContextRequest(), {"context_id": context_id, "request_id": new_request_id()})
    return _unary("Contexts/FreeContext", request, pb.FreeContextResponse, _nothing)


def stat(context_id: str) -> Call[values.ContextInfo]:
    """Show a context."""
    request = fill(pb.StatContextRequest(), {"context_id": context_id})
    return _unary("Contexts/StatContext", request, pb.Context, values.context_info)


def contexts(page_token: str, *, everybody: bool, model: str, tenant: str) -> Call[Page[values.ContextInfo]]:
    """One page of contexts."""
    request = fill(pb.ListContextsRequest(), {"page_token": page_token, "all": everybody, "model": model, "tenant": tenant})
    return _unary("Contexts/ListContexts", request, pb.ListContextsResponse, _page("contexts", values.context_info))


def read(context_id: str, offset: int, limit: int) -> Call[values.ContextText]:
    """A range of a context."""
    request = fill(pb.ReadContextRequest(), {"context_id": context_id, "offset": offset, "limit": limit})
    return _unary("Contexts/ReadContext", request, pb.ReadContextResponse, values.context_text)


def truncate(context_id: str, num_tokens: int) -> Call[values.ContextInfo]:
    """Roll a context back."""
    fields = {"context_id": context_id, "num_tokens": num_tokens, "request_id": new_request_id()}
    return _unary("Contexts/TruncateContext", fill(pb.TruncateContextRequest(), fields), pb.Context, values.context_info)


def suspend(context_id: str) -> Call[values.ContextInfo]:
    """Make its pages the first to go."""
    request = fill(pb.SuspendContextRequest(), {"context_id": context_id, "request_id": new_request_id()})
    return _unary("Contexts/SuspendContext", request, pb.Context, values.context_info, SLOW_S)


def resume(context_id: str) -> Call[values.ContextInfo]:
    """Undo a suspend."""
    request = fill(pb.ResumeContextRequest(), {"context_id": context_id, "request_id": new_request_id()})
    return _unary("Contexts/ResumeContext", request, pb.Context, values.context_info, SLOW_S)


def set_context(context_id: str, options: SetOptions) -> Call[values.ContextInfo]:
    """Change nice, priority, labels or limit."""
    request = fill(pb.SetContextRequest(), {"context_id": context_id, **_words(options)})
    return _unary("Contexts/SetContext", request, pb.Context, values.context_info)


def grant(context_id: str, grantee: str, access: Sequence[str], expires_at: float) -> Call[values.ContextInfo]:
    """Give somebody else access."""
    numbers = [_enum(dict(pb.Access.items()), "ACCESS_", "access", word) for word in access]
    made = fill(pb.Grant(), {"grantee": grantee, "access": numbers, "expires_at": expires_at})
    request = fill(pb.GrantContextRequest(), {"context_id": context_id, "grant": made, "request_id": new_request_id()})
    return _unary("Contexts/GrantContext", request, pb.Context, values.context_info)


def revoke(context_id: str, grantee: str) -> Call[values.ContextInfo]:
    """Take access back."""
    request = fill(pb.RevokeContextRequest(), {"context_id": context_id, "grantee": grantee, "request_id": new_request_id()})
    return _unary("Contexts/RevokeContext", request, pb.Context, values.context_info)


# ----------------------------------------------------------------------------------------------------------------------------- inference


def infer(context_id: str, text: str | None, options: InferOptions) -> Call[pb.InferEvent]:
    """Append input and generate. Raises: InvalidArgument, for more than one input; TypeError, for an option that there is none of."""
    given: dict[str, Any] = {"request_id": new_request_id(), **options}
    inputs = {"text": text, "tokens": given.pop("tokens", None), "messages": given.pop("messages", None)}
    if sum(value is not None for value in inputs.values()) > 1:
        raise InvalidArgument.of("input", "give one of text, tokens and messages.")
    if inputs["tokens"] is not None:
        inputs["tokens"] = _token_list(inputs["tokens"])
    if inputs["messages"] is not None:
        inputs["messages"] = pb.ChatMessages(messages=[_chat_message(i, item) for i, item in enumerate(inputs["messages"])])
    if isinstance(given.get("stop"), str):
        given["stop"] = [given["stop"]]
    drawn = {name: given.pop(name) for name in SamplingOptions.__annotations__ if name in given}
    fields = {"context_id": context_id, "sampling": fill(pb.SamplingParameters(), drawn), **inputs, **given}
    return _unary("Inference/Infer", fill(pb.InferRequest(), fields), pb.InferEvent, lambda message: message)


def _token_list(tokens: Sequence[int]) -> pb.TokenList:
    return fill(pb.TokenList(), {"ids": tokens}, called="tokens")


def _chat_message(i: int, item: Mapping[str, str]) -> pb.ChatMessage:
    if item.keys() != {"role", "content"}:
        raise InvalidArgument.of(f"messages[{i}]", "has role and content, both strings, and nothing else.")
    return fill(pb.ChatMessage(), item)


def attach(context_id: str, offset: int) -> Call[pb.InferEvent]:
    """Continue a stream."""
    request = fill(pb.AttachRequest(), {"context_id": context_id, "offset": offset})
    return _unary("Inference/Attach", request, pb.InferEvent, lambda message: message)


def cancel(context_id: str) -> Call[bool]:
    """End the request in flight; says whether there was one."""
    request = fill(pb.CancelRequest(), {"context_id": context_id, "request_id": new_request_id()})
    return _unary("Inference/Cancel", request, pb.CancelResponse, lambda message: bool(message.was_active))


def score(context_id: str, text: str | None, tokens: Sequence[int] | None, top: int) -> Call[values.Score]:
    """Log-probabilities of a continuation."""
    ids = _token_list(tokens) if tokens is not None else None
    request = fill(pb.ScoreRequest(), {"context_id": context_id, "text": text, "tokens": ids, "top": top})
    return _unary("Inference/Score", request, pb.ScoreResponse, values.score, SLOW_S)


# -------------------------------------------------------------------------------------------------------------------------------- models


def register(path: str, name: str | None, quant: str | None, max_positions: int) -> Call[values.ModelInfo]:
    """Give a model directory a name."""
    request = fill(pb.RegisterModelRequest(), _model_fields(path, name, quant, max_positions))
    return _unary("Models/RegisterModel", request, pb.Model, values.model_info, SLOW_S)


def load(path: str, name: str | None, quant: str | None, max_positions: int) -> Call[values.LoadProgress | values.ModelInfo]:
    """Bring a model onto the device."""
    request = fill(pb.LoadModelRequest(), _model_fields(path, name, quant, max_positions))
    return _unary("Models/LoadModel", request, pb.LoadModelEvent, values.load_event)


def _model_fields(path: str, name: str | None, quant: str | None, max_positions: int) -> dict[str, object]:
    called = name or os.path.basename(os.path.normpath(path))
    return {"request_id": new_request_id(), "name": called, "path": path, "quant": quant, "max_positions": max_positions}


def unload(name: str) -> Call[values.ModelInfo]:
    """Take a model off the device."""
    request = fill(pb.UnloadModelRequest(), {"name": name, "request_id": new_request_id()})
    return _unary("Models/UnloadModel", request, pb.Model, values.model_info, SLOW_S)


def remove_model(name: str) -> Call[None]:
    """Forget a model's name."""
    request = fill(pb.RemoveModelRequest(), {"name": name, "request_id": new_request_id()})
    return _unary("Models/RemoveModel", request, pb.RemoveModelResponse, _nothing)


def model(name: str) -> Call[values.ModelInfo]:
    """Show a model."""
    return _unary("Models/StatModel", fill(pb.StatModelRequest(), {"name": name}), pb.Model, values.model_info)


def models(page_token: str) -> Call[Page[values.ModelInfo]]:
    """One page of models."""
    request = fill(pb.ListModelsRequest(), {"page_token": page_token})
    return _unary("Models/ListModels", request, pb.ListModelsResponse, _page("models", values.model_info))


# -------------------------------------------------------------------------------------------------------------------------------- images


def checkpoint(context_id: str, name: str, tokens_only: bool) -> Call[values.Image]:
    """Write an image."""
    fields = {"context_id": context_id, "name": name, "tokens_only": tokens_only, "request_id": new_request_id()}
    return _unary("Checkpoints/Checkpoint", fill(pb.CheckpointRequest(), fields), pb.Image, values.image, SLOW_S)


def restore(image_id: str, labels: Mapping[str, str] | None) -> Call[values.Restored]:
    """Make a context from an image."""
    request = fill(pb.RestoreRequest(), {"image_id": image_id, "labels": labels, "request_id": new_request_id()})
    return _unary("Checkpoints/Restore", request, pb.RestoreResponse, values.restored, SLOW_S)


def images(page_token: str, *, everybody: bool, context_id: str) -> Call[Page[values.Image]]:
    """One page of images."""
    request = fill(pb.ListCheckpointsRequest(), {"page_token": page_token, "all": everybody, "context_id": context_id})
    return _unary("Checkpoints/ListCheckpoints", request, pb.ListCheckpointsResponse, _page("images", values.image))


def verify_image(image_id: str) -> Call[values.Verified]:
    """Read an image again."""
    request = fill(pb.VerifyCheckpointRequest(), {"image_id": image_id})
    return _unary("Checkpoints/VerifyCheckpoint", request, pb.VerifyCheckpointResponse, values.verified, SLOW_S)


def delete_image(image_id: str) -> Call[None]:
    """Delete an image."""
    request = fill(pb.DeleteCheckpointRequest(), {"image_id": image_id, "request_id": new_request_id()})
    return _unary("Checkpoints/DeleteCheckpoint", request, pb.DeleteCheckpointResponse, _nothing)


# --------------------------------------------------------------------------------------------------------------------------------- admin


def whoami() -> Call[values.Principal]:
    """Who the caller is."""
    return _unary("Admin/WhoAmI", pb.WhoAmIRequest(), pb.Principal, values.principal)


def add_tenant(path: str, weight: int, limits: values.Limits | None) -> Call[values.TenantInfo]:
    """A new tenant."""
    fields = {"path": path, "weight": weight, "limits": _limits(limits), "request_id": new_request_id()}
    return _unary("Admin/AddTenant", fill(pb.AddTenantRequest(), fields), pb.Tenant, values.tenant_info)


def set_tenant(path: str, weight: int | None, limits: values.Limits | None) -> Call[values.TenantInfo]:
    """Change weight, or all limits at once."""
    fields = {"path": path, "weight": weight, "limits": _limits(limits), "request_id": new_request_id()}
    return _unary("Admin/SetTenant", fill(pb.SetTenantRequest(), fields), pb.Tenant, values.tenant_info)


def _limits(limits: values.Limits | None) -> pb.Limits | None:
    return fill(pb.Limits(), asdict(limits)) if limits is not None else None


def tenants(page_token: str) -> Call[Page[values.TenantInfo]]:
    """One page of tenants."""
    request = fill(pb.ListTenantsRequest(), {"page_token": page_token})
    return _unary("Admin/ListTenants", request, pb.ListTenantsResponse, _page("tenants", values.tenant_info))


def remove_tenant(path: str, force: bool) -> Call[int]:
    """Remove a tenant; says how many contexts were freed."""
    request = fill(pb.RemoveTenantRequest(), {"path": path, "force": force, "request_id": new_request_id()})
    return _unary("Admin/RemoveTenant", request, pb.RemoveTenantResponse, lambda message: int(message.contexts_freed), SLOW_S)


def add_token(tenant: str, name: str, roles: Sequence[str], lifetime_s: float) -> Call[values.NewToken]:
    """A new API token."""
    fields = {"tenant": tenant, "name": name, "roles": roles, "lifetime_s": lifetime_s, "request_id": new_request_id()}
    return _unary("Admin/AddToken", fill(pb.AddTokenRequest(), fields), pb.NewToken, values.new_token)


def tokens(page_token: str, tenant: str) -> Call[Page[values.TokenInfo]]:
    """One page of API tokens."""
    request = fill(pb.ListTokensRequest(), {"page_token": page_token, "tenant": tenant})
    return _unary("Admin/ListTokens", request, pb.ListTokensResponse, _page("tokens", values.token_info))


def remove_token(token_id: str) -> Call[None]:
    """Make an API token worthless."""
    request = fill(pb.RemoveTokenRequest(), {"id": token_id, "request_id": new_request_id()})
    return _unary("Admin/RemoveToken", request, pb.RemoveTokenResponse, _nothing)


def drain(timeout_s: float) -> Call[values.Drained]:
    """Refuse new requests, wait for those that run, stop the daemon."""
    request = fill(pb.DrainRequest(), {"timeout_s": timeout_s, "request_id": new_request_id()})
    return _unary("Admin/Drain", request, pb.DrainResponse, values.drained, timeout_s + DRAIN_SLACK_S)


def top(interval_s: float, count: int) -> Call[values.TopFrame]:
    """The machine, again and again."""
    request = fill(pb.TopRequest(), {"interval_s": interval_s, "count": count})
    return _unary("Admin/Top", request, pb.TopFrame, values.top_frame)


def events(follow: bool, since: int) -> Call[values.Event]:
    """What happened, and with follow what happens."""
    request = fill(pb.EventsRequest(), {"follow": follow, "since": since})
    return _unary("Admin/Events", request, pb.Event, values.event)


def _page(field: str, read_item: Callable[[Any], T]) -> Callable[[Any], Page[T]]:
    def read_page(message: Any) -> Page[T]:
        return Page([read_item(item) for item in getattr(message, field)], message.next_page_token)

    return read_page
