"""Kernel values -> answers. The way in is in `syscalls.convert`."""

from __future__ import annotations

from dataclasses import asdict

from drivers.contract import TokenLogprob
from kerneld.calls import (
    Access,
    ContextInfo,
    ContextState,
    ContextText,
    Delta,
    Drained,
    Durability,
    EventRecord,
    Finished,
    FinishReason,
    Grant,
    ImageInfo,
    LimitMode,
    Limits,
    LoadProgress,
    ModelInfo,
    ModelState,
    NewToken,
    Principal,
    Priority,
    Restored,
    Score,
    Started,
    StreamEvent,
    TenantInfo,
    TierUse,
    TokenInfo,
    TopFrame,
    Verified,
)
from kerneld_client.pb import syscalls_pb2 as pb
from syscalls.memory_answers import limit_change
from syscalls.request_answers import tenant_activity

CONTEXT_STATES: dict[ContextState, pb.ContextState] = {it: getattr(pb, f"CONTEXT_STATE_{it.name}") for it in ContextState}
MODEL_STATES: dict[ModelState, pb.ModelState] = {it: getattr(pb, f"MODEL_STATE_{it.name}") for it in ModelState}
LIMIT_MODES: dict[LimitMode, pb.LimitMode] = {it: getattr(pb, f"LIMIT_MODE_{it.name}") for it in LimitMode}
PRIORITIES: dict[Priority, pb.Priority] = {it: getattr(pb, f"PRIORITY_{it.name}") for it in Priority}
DURABILITIES: dict[Durability, pb.Durability] = {it: getattr(pb, f"DURABILITY_{it.name}") for it in Durability}
ACCESSES: dict[Access, pb.Access] = {it: getattr(pb, f"ACCESS_{it.name}") for it in Access}
FINISH_REASONS: dict[FinishReason, pb.FinishReason] = {it: getattr(pb, f"FINISH_REASON_{it.name}") for it in FinishReason}


def context(info: ContextInfo) -> pb.Context:
    """A context as it stands."""
    pages = info.pages
    return pb.Context(
        id=info.id,
        model=info.model,
        owner=info.owner,
        tenant=info.tenant,
        state=CONTEXT_STATES[info.state],
        num_tokens=info.num_tokens,
        max_tokens=info.max_tokens,
        priority=PRIORITIES[info.priority],
        nice=info.nice,
        durability=DURABILITIES[info.durability],
        labels=info.labels,
        created_at=info.created_at,
        last_used_at=info.last_used_at,
        pages=pb.PageCounts(device=pages.device, host=pages.host, lost=pages.lost, shared=pages.shared, disk=pages.disk),
        kv_bytes=info.kv_bytes,
        parent=info.parent,
        active_request=info.active_request,
        last_request=info.last_request,
        failure=info.failure,
        grants=[grant(item) for item in info.grants],
        seed=info.seed,
        adapter=info.adapter,
        pinned_tokens=info.pinned_tokens,
        sharing_group=info.sharing_group,
        device=info.device,
    )


def grant(item: Grant) -> pb.Grant:
    """Who has which access."""
    return pb.Grant(grantee=item.grantee, access=sorted(ACCESSES[access] for access in item.access), expires_at=item.expires_at)


def context_text(text: ContextText) -> pb.ReadContextResponse:
    """A range of a context."""
    return pb.ReadContextResponse(offset=text.offset, tokens=text.tokens, text=text.text, num_tokens=text.num_tokens)


def stream_event(event: StreamEvent) -> pb.InferEvent:
    """One event of a stream; deltas first, for there are a thousand of them to each other one."""
    if isinstance(event, Delta):
        delta = pb.Delta(offset=event.offset, tokens=event.tokens, text=event.text)
        if event.logprobs:
            delta.logprobs.extend([logprob(item) for item in event.logprobs])
        return pb.InferEvent(delta=delta)
    if isinstance(event, Started):
        return pb.InferEvent(started=pb.Started(request=event.request, offset=event.offset, input_tokens=event.input_tokens))
    return pb.InferEvent(finished=finished(event))


def logprob(item: TokenLogprob) -> pb.Logprob:
    """What the model thought of a token."""
    return pb.Logprob(logprob=item.logprob, top=[pb.TopLogprob(token=token, logprob=value) for token, value in item.top])


def finished(event: Finished) -> pb.Finished:
    """Why a request ended, and what it used."""
    used = event.usage
    usage = pb.RequestUsage(
        input_tokens=used.input_tokens,
        cached_tokens=used.cached_tokens,
        output_tokens=used.output_tokens,
        pages_restored=used.pages_restored,
        pages_recomputed=used.pages_recomputed,
        queue_s=used.queue_s,
        compute_s=used.compute_s,
        shared_tokens=used.shared_tokens,
        drafted_tokens=used.drafted_tokens,
        accepted_tokens=used.accepted_tokens,
    )
    return pb.Finished(reason=FINISH_REASONS[event.reason], usage=usage, detail=event.detail)


def score(result: Score) -> pb.ScoreResponse:
    """Log-probabilities of a continuation."""
    return pb.ScoreResponse(tokens=result.tokens, logprobs=[logprob(item) for item in result.logprobs], total=result.total)


def model(info: ModelInfo) -> pb.Model:
    """A model as it stands."""
    copies = [pb.ModelCopy(**asdict(copy) | {"state": MODEL_STATES[copy.state]}) for copy in info.copies]
    facts = asdict(info) | {"state": MODEL_STATES[info.state], "copies": copies}
    return pb.Model(bytes=facts.pop("size_bytes"), **facts)


def load_event(event: LoadProgress | ModelInfo) -> pb.LoadModelEvent:
    """How far a load is, or the model that it left."""
    if isinstance(event, ModelInfo):
        return pb.LoadModelEvent(ready=model(event))
    return pb.LoadModelEvent(progress=pb.LoadProgress(**asdict(event)))


def image(info: ImageInfo) -> pb.Image:
    """An image as it stands."""
    return pb.Image(
        id=info.id,
        context_id=info.context_id,
        model=info.model,
        owner=info.owner,
        tenant=info.tenant,
        num_tokens=info.num_tokens,
        num_pages=info.num_pages,
        bytes=info.size_bytes,
        created_at=info.created_at,
        name=info.name,
    )


def restored(result: Restored) -> pb.RestoreResponse:
    """A context made from an image."""
    return pb.RestoreResponse(
        context=context(result.context),
        pages_restored=result.pages_restored,
        pages_to_recompute=result.pages_to_recompute,
        recompute_reason=result.recompute_reason,
    )


def verified(result: Verified) -> pb.VerifyCheckpointResponse:
    """What a re-read of an image found."""
    return pb.VerifyCheckpointResponse(ok=not result.problems, problems=result.problems, bytes_read=result.bytes_read)


def principal(who: Principal) -> pb.Principal:
    """Who the caller is."""
    return pb.Principal(name=who.name, tenant=who.tenant, roles=sorted(role.value for role in who.roles), via=who.via)


def limits(item: Limits) -> pb.Limits:
    """What a tenant may have."""
    return pb.Limits(
        device_bytes=item.device_bytes,
        host_bytes=item.host_bytes,
        max_contexts=item.max_contexts,
        max_running=item.max_running,
        max_queued=item.max_queued,
        requests_per_minute=item.requests_per_minute,
        tokens_per_minute=item.tokens_per_minute,
        image_bytes=item.image_bytes,
        device_guarantee_bytes=item.device_guarantee_bytes,
        host_guarantee_bytes=item.host_guarantee_bytes,
        disk_bytes=item.disk_bytes,
        disk_guarantee_bytes=item.disk_guarantee_bytes,
        loads_per_hour=item.loads_per_hour,
        modes={name: LIMIT_MODES[mode] for name, mode in item.modes.items()},
    )


def tenant(info: TenantInfo) -> pb.Tenant:
    """A tenant as it stands."""
    return pb.Tenant(
        path=info.path,
        weight=info.weight,
        limits=limits(info.limits),
        num_contexts=info.num_contexts,
        num_running=info.num_running,
        num_queued=info.num_queued,
        service=info.service,
        kv_device_bytes=info.kv_device_bytes,
        kv_host_bytes=info.kv_host_bytes,
        created_at=info.created_at,
        input_tokens=info.input_tokens,
        output_tokens=info.output_tokens,
        kv_disk_bytes=info.kv_disk_bytes,
        revision=info.revision,
        changes=map(limit_change, info.changes),
    )


def token(info: TokenInfo) -> pb.Token:
    """An API token without its secret."""
    return pb.Token(
        id=info.id,
        tenant=info.tenant,
        name=info.name,
        roles=sorted(role.value for role in info.roles),
        created_at=info.created_at,
        expires_at=info.expires_at,
        last_used_at=info.last_used_at,
    )


def new_token(made: NewToken) -> pb.NewToken:
    """An API token with its secret."""
    return pb.NewToken(id=made.info.id, token=made.secret, tenant=made.info.tenant, expires_at=made.info.expires_at)


def drained(result: Drained) -> pb.DrainResponse:
    """What a drain did."""
    return pb.DrainResponse(finished=result.finished, left_for_next_start=result.left_for_next_start)


def tier_use(use: TierUse) -> pb.TierUse:
    """Bytes of one tier."""
    return pb.TierUse(
        tier=use.tier,
        total_bytes=use.total_bytes,
        free_bytes=use.free_bytes,
        weights_bytes=use.weights_bytes,
        kv_bytes=use.kv_bytes,
        device=use.device,
    )


def top_frame(frame: TopFrame) -> pb.TopFrame:
    """The machine at one moment."""
    return pb.TopFrame(
        at=frame.at,
        uptime_s=frame.uptime_s,
        running=frame.running,
        waiting=frame.waiting,
        num_contexts=frame.num_contexts,
        tokens_per_s=frame.tokens_per_s,
        prefill_tokens_per_s=frame.prefill_tokens_per_s,
        tiers=[tier_use(use) for use in frame.tiers],
        tenants=[tenant(info) for info in frame.tenants],
        workers=[
            pb.WorkerStatus(
                device=worker.device,
                driver=worker.driver,
                pid=worker.pid,
                state=worker.state,
                restarts=worker.restarts,
                busy=worker.busy,
            )
            for worker in frame.workers
        ],
        models=[model(info) for info in frame.models],
        boot_generation=frame.boot_generation,
        activities=map(tenant_activity, frame.activities),
        recent_s=frame.recent_s,
        jain=frame.jain,
    )


def event(record: EventRecord) -> pb.Event:
    """One event of the daemon."""
    return pb.Event(sequence=record.sequence, at=record.at, name=record.name, facts=record.facts)
