"""Messages -> values: how answers are read."""

from __future__ import annotations

from enum import Enum
from typing import Any, TypeVar

from kerneld_client.memory_values import (
    Contender,
    Explanation,
    Holding,
    LimitChange,
    LimitOutcome,
    Memory,
    Obstacle,
    Outlook,
    PartChecked,
    PathDecision,
    Placement,
    QueuePlace,
    Remedy,
    StartEstimate,
    TenantActivity,
    TierAccount,
    TierTotal,
)
from kerneld_client.pb import syscalls_pb2 as pb
from kerneld_client.values import (
    Access,
    ContextInfo,
    ContextState,
    ContextText,
    Delta,
    Drained,
    Durability,
    Event,
    FinishReason,
    Grant,
    Image,
    LimitMode,
    Limits,
    LoadProgress,
    Logprob,
    ModelCopy,
    ModelInfo,
    ModelState,
    NewToken,
    PageCounts,
    Principal,
    Priority,
    Restored,
    Score,
    SharingGroup,
    TenantInfo,
    TierUse,
    TokenInfo,
    TopFrame,
    Usage,
    Verified,
    WorkerStatus,
)

W = TypeVar("W", bound=Enum)
V = TypeVar("V")


def _word(enum: type[W], names: Any, prefix: str, number: int) -> W:
    """The member of a number of the interface; one that this client does not know is UNSPECIFIED."""
    name = names.Name(number).removeprefix(prefix) if number in names.values() else ""
    return enum[name if name in enum.__members__ else "UNSPECIFIED"]


def _plain(kind: type[V], message: Any, **read: Any) -> V:
    """A value whose fields have the names of the message's; `read` holds those that need more than reading."""
    names = kind.__dataclass_fields__  # type: ignore[attr-defined]
    return kind(**{name: read[name] if name in read else getattr(message, name) for name in names})


def context_info(message: pb.Context) -> ContextInfo:
    """Read a context."""
    return _plain(
        ContextInfo,
        message,
        state=_word(ContextState, pb.ContextState, "CONTEXT_STATE_", message.state),
        priority=_word(Priority, pb.Priority, "PRIORITY_", message.priority),
        durability=_word(Durability, pb.Durability, "DURABILITY_", message.durability),
        labels=dict(message.labels),
        pages=_plain(PageCounts, message.pages),
        grants=tuple(grant(item) for item in message.grants),
    )


def grant(message: pb.Grant) -> Grant:
    """Read a grant."""
    access = frozenset(_word(Access, pb.Access, "ACCESS_", number) for number in message.access)
    return Grant(message.grantee, access, message.expires_at)


def context_text(message: pb.ReadContextResponse) -> ContextText:
    """Read a range of a context."""
    return ContextText(message.offset, tuple(message.tokens), message.text, message.num_tokens)


def logprobs(messages: Any) -> tuple[Logprob, ...]:
    """Read log-probabilities."""
    return tuple(Logprob(item.logprob, tuple((top.token, top.logprob) for top in item.top)) for item in messages)


def delta(message: pb.Delta) -> Delta:
    """Read a delta."""
    return Delta(message.offset, tuple(message.tokens), message.text, logprobs(message.logprobs) if message.logprobs else ())


def usage(message: pb.RequestUsage) -> Usage:
    """Read what a request used."""
    return _plain(Usage, message)


def finish_reason(number: int) -> FinishReason:
    """Read why a request ended."""
    return _word(FinishReason, pb.FinishReason, "FINISH_REASON_", number)


def score(message: pb.ScoreResponse) -> Score:
    """Read a score."""
    return Score(tuple(message.tokens), logprobs(message.logprobs), message.total)


def model_info(message: pb.Model) -> ModelInfo:
    """Read a model."""
    copies = tuple(_plain(ModelCopy, copy, state=_model_state(copy.state)) for copy in message.copies)
    return _plain(ModelInfo, message, state=_model_state(message.state), copies=copies)


def _model_state(number: int) -> ModelState:
    return _word(ModelState, pb.ModelState, "MODEL_STATE_", number)


def load_event(message: pb.LoadModelEvent) -> LoadProgress | ModelInfo:
    """Read how far a load is, or what it left."""
    if message.WhichOneof("event") == "ready":
        return model_info(message.ready)
    return _plain(LoadProgress, message.progress)


def image(message: pb.Image) -> Image:
    """Read an image."""
    return _plain(Image, message)


def restored(message: pb.RestoreResponse) -> Restored:
    """Read what a restore did."""
    return _plain(Restored, message, context=context_info(message.context))


def verified(message: pb.VerifyCheckpointResponse) -> Verified:
    """Read what a re-read found."""
    return _plain(Verified, message, problems=tuple(message.problems))


def principal(message: pb.Principal) -> Principal:
    """Read who the caller is."""
    return _plain(Principal, message, roles=tuple(message.roles))


def sharing_group(message: pb.SharingGroup) -> SharingGroup:
    """Read a sharing group."""
    return _plain(SharingGroup, message, members=tuple(message.members))


def tenant_info(message: pb.Tenant) -> TenantInfo:
    """Read a tenant."""
    changes = tuple(limit_change(change) for change in message.changes)
    return _plain(TenantInfo, message, limits=limits(message.limits), changes=changes)


def limits(message: pb.Limits) -> Limits:
    """Read limits."""
    modes = {name: _word(LimitMode, pb.LimitMode, "LIMIT_MODE_", message.modes[name]) for name in sorted(message.modes)}
    return _plain(Limits, message, modes=modes)


def new_token(message: pb.NewToken) -> NewToken:
    """Read a new API token."""
    return _plain(NewToken, message)


def token_info(message: pb.Token) -> TokenInfo:
    """Read an API token."""
    return _plain(TokenInfo, message, roles=tuple(message.roles))


def drained(message: pb.DrainResponse) -> Drained:
    """Read what a drain did."""
    return _plain(Drained, message)


def top_frame(message: pb.TopFrame) -> TopFrame:
    """Read the machine at one moment."""
    return _plain(
        TopFrame,
        message,
        tiers=tuple(_plain(TierUse, tier, kv_bytes=dict(tier.kv_bytes)) for tier in message.tiers),
        tenants=tuple(tenant_info(tenant) for tenant in message.tenants),
        workers=tuple(_plain(WorkerStatus, worker) for worker in message.workers),
        models=tuple(model_info(model) for model in message.models),
        activities=tuple(_plain(TenantActivity, item) for item in message.activities),
    )


def event(message: pb.Event) -> Event:
    """Read one event."""
    return _plain(Event, message, facts=dict(message.facts))


def limit_change(message: pb.LimitChange) -> LimitChange:
    """Read what became of a change of a limit."""
    outcome = _word(LimitOutcome, pb.LimitOutcome, "LIMIT_OUTCOME_", message.outcome)
    return _plain(LimitChange, message, outcome=outcome, awaited_from=tuple(_plain(Holding, item) for item in message.awaited_from))


def memory(message: pb.Memory) -> Memory:
    """Read the ledger."""
    return Memory(
        tiers=tuple(_plain(TierTotal, item, kinds=dict(item.kinds)) for item in message.tiers),
        accounts=tuple(_plain(TierAccount, item, kinds=dict(item.kinds)) for item in message.accounts),
        decisions=tuple(_plain(PathDecision, item, **{name: _optional(item, name) for name in _COSTS}) for item in message.decisions),
    )


_COSTS = ("cost_s", "alternative_cost_s", "measured_s")


def _optional(message: Any, name: str) -> Any:
    return getattr(message, name) if message.HasField(name) else None


def explanation(message: pb.Explanation) -> Explanation:
    """Read why something is where it is."""
    return _plain(
        Explanation,
        message,
        placements=tuple(_plain(Placement, item) for item in message.placements),
        obstacles=tuple(_plain(Obstacle, item) for item in message.obstacles),
        holders=tuple(_plain(Holding, item) for item in message.holders),
        remedies=tuple(_plain(Remedy, item) for item in message.remedies),
        queue=_plain(QueuePlace, message.queue) if message.HasField("queue") else None,
        outlook=outlook(message.outlook) if message.HasField("outlook") else None,
    )


def outlook(message: pb.Outlook) -> Outlook:
    """Read how a request stands."""
    guess = message.estimate
    return _plain(
        Outlook,
        message,
        contenders=tuple(_plain(Contender, item) for item in message.contenders),
        estimate=_plain(StartEstimate, guess, seconds=_optional(guess, "seconds"), error=_optional(guess, "error")),
        first_token_s=_optional(message, "first_token_s"),
    )


def part_checked(message: pb.PartChecked) -> PartChecked:
    """Read what fsck found of one part."""
    return _plain(PartChecked, message, problems=tuple(message.problems))
