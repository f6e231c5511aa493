"""Requests -> kernel values. The way back is in `syscalls.answers`; together they are the border that no message class crosses.

A request has passed `syscalls.bounds` before it comes here, so only what no single field can tell is checked: roles that exist, parts that
belong together. Every function is total over such requests, or raises InvalidArgument.
"""

from __future__ import annotations

from drivers.contract import Sampling
from kerneld.calls import (
    Access,
    AllocArgs,
    ChatInput,
    CheckpointArgs,
    Durability,
    ForkArgs,
    Grant,
    InferArgs,
    InferInput,
    LimitMode,
    Limits,
    ListArgs,
    Priority,
    RegisterArgs,
    Role,
    ScoreArgs,
    SetArgs,
    TextInput,
    TokenInput,
)
from kerneld.errors import InvalidArgument
from kerneld_client.pb import syscalls_pb2 as pb

DEFAULT_READ_TOKENS = 4096
DEFAULT_TOP_INTERVAL_S = 1.0
SHORTEST_TOP_INTERVAL_S = 0.1
DEFAULT_WEIGHT = 1

DURABILITIES = {
    pb.DURABILITY_UNSPECIFIED: Durability.JOURNAL,
    pb.DURABILITY_JOURNAL: Durability.JOURNAL,
    pb.DURABILITY_FSYNC: Durability.FSYNC,
    pb.DURABILITY_NONE: Durability.NONE,
}
LIMIT_MODES = {pb.LIMIT_MODE_SOFT: LimitMode.SOFT, pb.LIMIT_MODE_HARD: LimitMode.HARD}
PRIORITIES = {
    pb.PRIORITY_UNSPECIFIED: Priority.INTERACTIVE,
    pb.PRIORITY_INTERACTIVE: Priority.INTERACTIVE,
    pb.PRIORITY_BATCH: Priority.BATCH,
    pb.PRIORITY_IDLE: Priority.IDLE,
}
ACCESSES = {pb.ACCESS_READ: Access.READ, pb.ACCESS_WRITE: Access.WRITE, pb.ACCESS_FORK: Access.FORK}
DEFAULT_SAMPLING = Sampling()


def alloc_args(request: pb.AllocContextRequest) -> AllocArgs:
    """What to allocate."""
    return AllocArgs(
        model=request.model,
        max_tokens=request.max_tokens,
        priority=PRIORITIES[request.priority],
        nice=request.nice,
        durability=DURABILITIES[request.durability],
        labels=dict(request.labels),
        seed=request.seed if request.HasField("seed") else None,
        adapter=request.adapter,
        sharing_group=request.sharing_group,
    )


def fork_args(request: pb.ForkContextRequest) -> ForkArgs:
    """What to fork, and where."""
    return ForkArgs(
        context_id=request.context_id,
        at=request.at if request.HasField("at") else None,
        labels=dict(request.labels),
        seed=request.seed if request.HasField("seed") else None,
    )


def set_args(request: pb.SetContextRequest) -> SetArgs:
    """What to change; what the request leaves out stays as it is."""
    return SetArgs(
        context_id=request.context_id,
        nice=request.nice if request.HasField("nice") else None,
        priority=PRIORITIES[request.priority] if request.priority else None,
        labels=dict(request.labels),
        max_tokens=request.max_tokens if request.HasField("max_tokens") else None,
        is_pinned=request.pinned if request.HasField("pinned") else None,
    )


def grant_of(message: pb.Grant) -> Grant:
    """Who gets which access, until when."""
    return Grant(message.grantee, frozenset(ACCESSES[access] for access in message.access), message.expires_at)


def infer_args(request: pb.InferRequest) -> InferArgs:
    """What to append and how to generate."""
    sampling = request.sampling
    return InferArgs(
        context_id=request.context_id,
        input=_infer_input(request),
        max_tokens=request.max_tokens,
        sampling=sampling_of(sampling),
        has_seed=sampling.HasField("seed"),
        stop=tuple(sampling.stop),
        ignore_eos=sampling.ignore_eos,
        deadline_s=request.deadline_s,
        detach_grace_s=request.detach_grace_s if request.HasField("detach_grace_s") else None,
        max_queue_s=request.max_queue_s,
        draft_model=sampling.draft_model,
    )


def _infer_input(request: pb.InferRequest) -> InferInput:
    kind = request.WhichOneof("input")
    if kind == "text":
        return TextInput(request.text)
    if kind == "tokens":
        return TokenInput(tuple(request.tokens.ids))
    if kind == "messages":
        return ChatInput(tuple((message.role, message.content) for message in request.messages.messages))
    return None


def sampling_of(message: pb.SamplingParameters) -> Sampling:
    """How to draw; a parameter that is not there has its default."""
    default = DEFAULT_SAMPLING

    def given(name: str, otherwise: float) -> float:
        value: float = getattr(message, name) if message.HasField(name) else otherwise
        return value

    return Sampling(
        temperature=given("temperature", default.temperature),
        top_k=message.top_k,
        top_p=given("top_p", default.top_p),
        min_p=message.min_p,
        repetition_penalty=given("repetition_penalty", default.repetition_penalty),
        presence_penalty=message.presence_penalty,
        frequency_penalty=message.frequency_penalty,
        seed=message.seed,
        stop_token_ids=tuple(message.stop_token_ids),
        num_logprobs=message.logprobs if message.HasField("logprobs") else default.num_logprobs,
        draft_tokens=message.draft_tokens,
    )


def score_args(request: pb.ScoreRequest) -> ScoreArgs:
    """What to score. Raises: InvalidArgument, if there is no input."""
    kind = request.WhichOneof("input")
    if kind is None:
        raise InvalidArgument("input", "is required: text or tokens.")
    scored = TextInput(request.text) if kind == "text" else TokenInput(tuple(request.tokens.ids))
    return ScoreArgs(request.context_id, scored, request.top)


def register_args(request: pb.RegisterModelRequest | pb.LoadModelRequest) -> RegisterArgs:
    """Which model, under which name, and where it is to be loaded."""
    device = request.device if isinstance(request, pb.LoadModelRequest) else ""
    return RegisterArgs(request.name, request.path, request.max_positions, request.quant, request.base, request.kv_quant, device)


def checkpoint_args(request: pb.CheckpointRequest) -> CheckpointArgs:
    """What to write an image of."""
    return CheckpointArgs(request.context_id, request.name, request.tokens_only)


def limits_of(message: pb.Limits) -> Limits:
    """What a tenant may have."""
    return Limits(
        device_bytes=message.device_bytes,
        host_bytes=message.host_bytes,
        max_contexts=message.max_contexts,
        max_running=message.max_running,
        max_queued=message.max_queued,
        requests_per_minute=message.requests_per_minute,
        tokens_per_minute=message.tokens_per_minute,
        image_bytes=message.image_bytes,
        device_guarantee_bytes=message.device_guarantee_bytes,
        host_guarantee_bytes=message.host_guarantee_bytes,
        disk_bytes=message.disk_bytes,
        disk_guarantee_bytes=message.disk_guarantee_bytes,
        loads_per_hour=message.loads_per_hour,
        modes={name: LIMIT_MODES[message.modes[name]] for name in sorted(message.modes)},
    )


def roles_of(names: list[str]) -> frozenset[Role]:
    """The roles of a new token; none given makes a user. Raises: InvalidArgument, naming what there is."""
    known = {role.value: role for role in Role}
    for i, name in enumerate(names):
        if name not in known:
            raise InvalidArgument(f"roles[{i}]", f"must be one of {', '.join(sorted(known))}; it is {name!r}.")
    return frozenset(known[name] for name in names) or frozenset({Role.USER})


def context_list(request: pb.ListContextsRequest) -> ListArgs:
    """Which contexts to list."""
    return ListArgs(request.page_size, request.page_token, everybody=request.all, model=request.model, tenant=request.tenant)


def image_list(request: pb.ListCheckpointsRequest) -> ListArgs:
    """Which images to list."""
    return ListArgs(request.page_size, request.page_token, everybody=request.all, context_id=request.context_id)


def token_list(request: pb.ListTokensRequest) -> ListArgs:
    """Which API tokens to list."""
    return ListArgs(request.page_size, request.page_token, tenant=request.tenant)


def plain_list(request: pb.ListModelsRequest | pb.ListTenantsRequest | pb.ListSharingGroupsRequest | pb.SharesRequest) -> ListArgs:
    """A page of a list without conditions."""
    return ListArgs(request.page_size, request.page_token)


def top_interval_s(request: pb.TopRequest) -> float:
    """Seconds between frames; a shorter time than a tenth is made one, so that looking costs little."""
    return max(request.interval_s or DEFAULT_TOP_INTERVAL_S, SHORTEST_TOP_INTERVAL_S)
