"""The calls on contexts and images. Those on models, tenants and the daemon are in `kerneld_client.machine_calls`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kerneld_client import reading, values
from kerneld_client.call import SLOW_S, Call, Page, enum_number, fill, new_request_id, nothing, page_of, unary, words
from kerneld_client.errors import InvalidArgument
from kerneld_client.options import AllocOptions, ForkOptions, InferOptions, SamplingOptions, SetOptions
from kerneld_client.pb import syscalls_pb2 as pb

# ------------------------------------------------------------------------------------------------------------------------------ contexts


def alloc(model: str, options: AllocOptions) -> Call[values.ContextInfo]:
    """A new context."""
    request = fill(pb.AllocContextRequest(), {"model": model, **words(options)})
    return unary("Contexts/AllocContext", request, pb.Context, reading.context_info)


def fork(context_id: str, options: ForkOptions) -> Call[values.ContextInfo]:
    """A context that shares another's past."""
    request = fill(pb.ForkContextRequest(), {"context_id": context_id, **words(options)})
    return unary("Contexts/ForkContext", request, pb.Context, reading.context_info)


def free(context_id: str) -> Call[None]:
    """Give a context back."""
    request = fill(pb.FreeContextRequest(), {"context_id": context_id, "request_id": new_request_id()})
    return unary("Contexts/FreeContext", request, pb.FreeContextResponse, nothing)


def stat(context_id: str) -> Call[values.ContextInfo]:
    """Show a context."""
    request = fill(pb.StatContextRequest(), {"context_id": context_id})
    return unary("Contexts/StatContext", request, pb.Context, reading.context_info)


def contexts(page_token: str, *, everybody: bool, model: str, tenant: str) -> Call[Page[values.ContextInfo]]:
    """One page of contexts."""
    request = fill(pb.ListContextsRequest(), {"page_token": page_token, "all": everybody, "model": model, "tenant": tenant})
    return unary("Contexts/ListContexts", request, pb.ListContextsResponse, page_of("contexts", reading.context_info))


def read(context_id: str, offset: int, limit: int) -> Call[values.ContextText]:
    """A range of a context."""
    request = fill(pb.ReadContextRequest(), {"context_id": context_id, "offset": offset, "limit": limit})
    return unary("Contexts/ReadContext", request, pb.ReadContextResponse, reading.context_text)


def truncate(context_id: str, num_tokens: int) -> Call[values.ContextInfo]:
    """Roll a context back."""
    fields = {"context_id": context_id, "num_tokens": num_tokens, "request_id": new_request_id()}
    return unary("Contexts/TruncateContext", fill(pb.TruncateContextRequest(), fields), pb.Context, reading.context_info)


def suspend(context_id: str, to_disk: bool) -> Call[values.ContextInfo]:
    """Make its pages the first to go, or move them all out."""
    request = fill(pb.SuspendContextRequest(), {"context_id": context_id, "to_disk": to_disk, "request_id": new_request_id()})
    return unary("Contexts/SuspendContext", request, pb.Context, reading.context_info, SLOW_S)


def resume(context_id: str) -> Call[values.ContextInfo]:
    """Undo a suspend."""
    request = fill(pb.ResumeContextRequest(), {"context_id": context_id, "request_id": new_request_id()})
    return unary("Contexts/ResumeContext", request, pb.Context, reading.context_info, SLOW_S)


def set_context(context_id: str, options: SetOptions) -> Call[values.ContextInfo]:
    """Change nice, priority, labels or limit."""
    request = fill(pb.SetContextRequest(), {"context_id": context_id, **words(options)})
    return unary("Contexts/SetContext", request, pb.Context, reading.context_info)


def grant(context_id: str, grantee: str, access: Sequence[str], expires_at: float) -> Call[values.ContextInfo]:
    """Give somebody else access."""
    numbers = [enum_number(dict(pb.Access.items()), "ACCESS_", "access", word) for word in access]
    made = fill(pb.Grant(), {"grantee": grantee, "access": numbers, "expires_at": expires_at})
    request = fill(pb.GrantContextRequest(), {"context_id": context_id, "grant": made, "request_id": new_request_id()})
    return unary("Contexts/GrantContext", request, pb.Context, reading.context_info)


def revoke(context_id: str, grantee: str) -> Call[values.ContextInfo]:
    """Take access back."""
    request = fill(pb.RevokeContextRequest(), {"context_id": context_id, "grantee": grantee, "request_id": new_request_id()})
    return unary("Contexts/RevokeContext", request, pb.Context, reading.context_info)


# ----------------------------------------------------------------------------------------------------------------------------- inference


def infer(context_id: str, text: str | None, options: InferOptions) -> Call[pb.InferEvent]:
    """Append input and generate. Raises: InvalidArgument, for more than one input; TypeError, for an option that there is none of."""
    given: dict[str, Any] = {"request_id": new_request_id(), **options}
    for name in options.keys() - InferOptions.__annotations__.keys():
        raise TypeError(f"There is no option {name!r}; there are {', '.join(sorted(InferOptions.__annotations__))}.")
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
    return unary("Inference/Infer", fill(pb.InferRequest(), fields), pb.InferEvent, lambda message: message)


def _token_list(tokens: Sequence[int]) -> pb.TokenList:
    if isinstance(tokens, str | bytes) or not isinstance(tokens, Iterable):
        raise InvalidArgument.of("tokens", "is a list of token ids; text goes into text=.")
    return fill(pb.TokenList(), {"ids": tokens}, called="tokens")


def _chat_message(i: int, item: Mapping[str, str]) -> pb.ChatMessage:
    if not isinstance(item, Mapping) or item.keys() != {"role", "content"}:
        raise InvalidArgument.of(f"messages[{i}]", "has role and content, both strings, and nothing else.")
    return fill(pb.ChatMessage(), item)


def attach(context_id: str, offset: int) -> Call[pb.InferEvent]:
    """Continue a stream."""
    request = fill(pb.AttachRequest(), {"context_id": context_id, "offset": offset})
    return unary("Inference/Attach", request, pb.InferEvent, lambda message: message)


def cancel(context_id: str) -> Call[bool]:
    """End the request in flight; says whether there was one."""
    request = fill(pb.CancelRequest(), {"context_id": context_id, "request_id": new_request_id()})
    return unary("Inference/Cancel", request, pb.CancelResponse, lambda message: bool(message.was_active))


def score(context_id: str, text: str | None, tokens: Sequence[int] | None, top: int) -> Call[values.Score]:
    """Log-probabilities of a continuation."""
    ids = _token_list(tokens) if tokens is not None else None
    request = fill(pb.ScoreRequest(), {"context_id": context_id, "text": text, "tokens": ids, "top": top})
    return unary("Inference/Score", request, pb.ScoreResponse, reading.score, SLOW_S)


# -------------------------------------------------------------------------------------------------------------------------------- images


def checkpoint(context_id: str, name: str, tokens_only: bool) -> Call[values.Image]:
    """Write an image."""
    fields = {"context_id": context_id, "name": name, "tokens_only": tokens_only, "request_id": new_request_id()}
    return unary("Checkpoints/Checkpoint", fill(pb.CheckpointRequest(), fields), pb.Image, reading.image, SLOW_S)


def restore(image_id: str, labels: Mapping[str, str] | None) -> Call[values.Restored]:
    """Make a context from an image."""
    request = fill(pb.RestoreRequest(), {"image_id": image_id, "labels": labels, "request_id": new_request_id()})
    return unary("Checkpoints/Restore", request, pb.RestoreResponse, reading.restored, SLOW_S)


def images(page_token: str, *, everybody: bool, context_id: str) -> Call[Page[values.Image]]:
    """One page of images."""
    request = fill(pb.ListCheckpointsRequest(), {"page_token": page_token, "all": everybody, "context_id": context_id})
    return unary("Checkpoints/ListCheckpoints", request, pb.ListCheckpointsResponse, page_of("images", reading.image))


def verify_image(image_id: str) -> Call[values.Verified]:
    """Read an image again."""
    request = fill(pb.VerifyCheckpointRequest(), {"image_id": image_id})
    return unary("Checkpoints/VerifyCheckpoint", request, pb.VerifyCheckpointResponse, reading.verified, SLOW_S)


def delete_image(image_id: str) -> Call[None]:
    """Delete an image."""
    request = fill(pb.DeleteCheckpointRequest(), {"image_id": image_id, "request_id": new_request_id()})
    return unary("Checkpoints/DeleteCheckpoint", request, pb.DeleteCheckpointResponse, nothing)
