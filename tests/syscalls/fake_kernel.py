"""A kernel of one file, for tests of the system-call side: everything in memory, every answer predictable.

The token at position p is `token_at(p)`, its text `piece_at(p)`, whoever asks and whenever: so a stream that was cut a hundred times can be
compared with one that was not. `failures` scripts what a verb raises; `seen` keeps what each verb was given.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from drivers.contract import TokenLogprob
from kerneld.calls import (
    AllocArgs,
    Caller,
    CheckpointArgs,
    ContextInfo,
    ContextState,
    ContextText,
    Delta,
    Drained,
    EventRecord,
    Finished,
    FinishReason,
    ForkArgs,
    Grant,
    ImageInfo,
    InferArgs,
    Limits,
    ListArgs,
    ListPage,
    LoadProgress,
    ModelInfo,
    ModelState,
    NewToken,
    RegisterArgs,
    Restored,
    Role,
    Score,
    ScoreArgs,
    SetArgs,
    Started,
    StreamEvent,
    TenantInfo,
    TierUse,
    TokenInfo,
    TokenInput,
    TopFrame,
    Usage,
    Verified,
    WorkerStatus,
)
from kerneld.devicereport import DeviceReport
from kerneld.errors import NotFound, OutOfRange
from kerneld.holdings import (
    Explanation,
    Holding,
    MemoryReport,
    Obstacle,
    Outlook,
    PartChecked,
    PathDecision,
    Placement,
    QueuePlace,
    TierAccount,
    TierTotal,
)
from kerneld.usage.amounts import SYSTEM
from kerneld.usage.report import ShareRecord, UsageArgs, UsageRecord
from memory.remedy import Action, Remedy

INPUT_TOKENS = 5
OUTLOOK = Outlook("2" * 32, "1" * 32, "lab/ann", "m", "waiting", "batch", 3, 4.0, position=2)
PAGE = 2  # items of a page of a list


def token_at(position: int) -> int:
    """The token that stands at a position of every context."""
    return (position * 7919) % 4093


def piece_at(position: int) -> str:
    """Its text."""
    return f"<{position}>"


@dataclass
class Output:
    """One request's output."""

    start: int
    end: int
    wants_logprobs: bool
    reason: FinishReason = FinishReason.LENGTH


@dataclass
class FakeKernel:
    """The verbs, in memory."""

    ready: bool = True
    token_interval_s: float = 0.0
    failures: dict[str, Exception] = field(default_factory=dict)
    seen: list[tuple[str, Caller, Any]] = field(default_factory=list)
    contexts: dict[str, ContextInfo] = field(default_factory=dict)
    images: dict[str, ImageInfo] = field(default_factory=dict)
    models: dict[str, ModelInfo] = field(default_factory=dict)
    tenants: dict[str, TenantInfo] = field(default_factory=dict)
    tokens: dict[str, TokenInfo] = field(default_factory=dict)
    outputs: dict[str, Output] = field(default_factory=dict)
    answers: dict[str, Any] = field(default_factory=dict)  # by request_id
    num_streams: int = 0  # open now
    num_ids: int = 0
    hold: asyncio.Event | None = None  # verbs that may wait, wait for it

    def note(self, verb: str, caller: Caller, args: Any) -> None:
        """Remember a call, and fail where the script says so."""
        self.seen.append((verb, caller, args))
        if verb in self.failures:
            raise self.failures[verb]

    def new_id(self) -> str:
        """An id that was never given."""
        self.num_ids += 1
        return f"{self.num_ids:032x}"

    def is_ready(self) -> bool:
        return self.ready

    def readiness_problem(self) -> str:
        return "" if self.ready else "no worker"

    def _find(self, context_id: str) -> ContextInfo:
        if context_id not in self.contexts:
            raise NotFound("context", context_id)
        return self.contexts[context_id]

    def _change(self, context_id: str, **changes: Any) -> ContextInfo:
        self.contexts[context_id] = replace(self._find(context_id), **changes)
        return self.contexts[context_id]

    def _page(self, items: Mapping[str, Any], args: ListArgs) -> ListPage[Any]:
        start = int(args.page_token or 0)
        end = start + (args.page_size or PAGE)
        return ListPage(tuple(items.values())[start:end], str(end) if end < len(items) else "")

    # ------------------------------------------------------------------------------------------------------------------ contexts

    async def alloc(self, caller: Caller, args: AllocArgs) -> ContextInfo:
        self.note("alloc", caller, args)
        if self.hold is not None:
            await self.hold.wait()
        if caller.request_id in self.answers:
            known: ContextInfo = self.answers[caller.request_id]
            return known
        info = ContextInfo(
            id=self.new_id(),
            model=args.model,
            owner=caller.principal.name,
            tenant=caller.principal.tenant,
            state=ContextState.IDLE,
            num_tokens=0,
            max_tokens=args.max_tokens or 1024,
            priority=args.priority,
            nice=args.nice,
            durability=args.durability,
            labels=args.labels,
            created_at=1.0,
            last_used_at=2.0,
            seed=args.seed or 0,
        )
        self.contexts[info.id] = info
        if caller.request_id:
            self.answers[caller.request_id] = info
        return info

    async def fork(self, caller: Caller, args: ForkArgs) -> ContextInfo:
        self.note("fork", caller, args)
        parent = self._find(args.context_id)
        child = replace(parent, id=self.new_id(), parent=parent.id, labels=args.labels)
        self.contexts[child.id] = child
        return child

    async def free(self, caller: Caller, context_id: str) -> None:
        self.note("free", caller, context_id)
        self._find(context_id)
        del self.contexts[context_id]

    def stat(self, caller: Caller, context_id: str) -> ContextInfo:
        self.note("stat", caller, context_id)
        return self._find(context_id)

    def list_contexts(self, caller: Caller, args: ListArgs) -> ListPage[ContextInfo]:
        self.note("list_contexts", caller, args)
        return self._page(self.contexts, args)

    async def read(self, caller: Caller, context_id: str, offset: int, limit: int) -> ContextText:
        self.note("read", caller, (context_id, offset, limit))
        info = self._find(context_id)
        positions = range(offset, min(offset + limit, info.num_tokens))
        return ContextText(offset, tuple(map(token_at, positions)), "".join(map(piece_at, positions)), info.num_tokens)

    async def truncate(self, caller: Caller, context_id: str, num_tokens: int) -> ContextInfo:
        self.note("truncate", caller, (context_id, num_tokens))
        if num_tokens > self._find(context_id).num_tokens:
            raise OutOfRange(f"The context has fewer than {num_tokens} tokens.")
        return self._change(context_id, num_tokens=num_tokens)

    async def suspend(self, caller: Caller, context_id: str) -> ContextInfo:
        self.note("suspend", caller, context_id)
        return self._change(context_id, state=ContextState.SUSPENDED)

    async def suspend_to_disk(self, caller: Caller, context_id: str) -> ContextInfo:
        self.note("suspend_to_disk", caller, context_id)
        return self._change(context_id, state=ContextState.SUSPENDED)

    async def resume(self, caller: Caller, context_id: str) -> ContextInfo:
        self.note("resume", caller, context_id)
        return self._change(context_id, state=ContextState.IDLE)

    async def set(self, caller: Caller, args: SetArgs) -> ContextInfo:
        self.note("set", caller, args)
        return self._change(args.context_id, nice=args.nice or 0, labels=args.labels)

    async def grant(self, caller: Caller, context_id: str, grant: Grant) -> ContextInfo:
        self.note("grant", caller, (context_id, grant))
        return self._change(context_id, grants=(grant,))

    async def revoke(self, caller: Caller, context_id: str, grantee: str) -> ContextInfo:
        self.note("revoke", caller, (context_id, grantee))
        return self._change(context_id, grants=())

    # ----------------------------------------------------------------------------------------------------------------- inference

    async def infer(self, caller: Caller, args: InferArgs) -> AsyncIterator[StreamEvent]:
        self.note("infer", caller, args)
        info = self._find(args.context_id)
        if caller.request_id not in self.answers:
            start = info.num_tokens + INPUT_TOKENS
            output = Output(start, start + (args.max_tokens or 256), args.sampling.num_logprobs >= 0)
            self.outputs[info.id] = output
            self.answers[caller.request_id] = output
            self._change(info.id, num_tokens=output.end)
        output = self.answers[caller.request_id]
        yield Started(request=caller.request_id, offset=output.start, input_tokens=INPUT_TOKENS)
        async for event in self._follow(output, output.start):
            yield event

    async def attach(self, caller: Caller, context_id: str, offset: int) -> AsyncIterator[StreamEvent]:
        self.note("attach", caller, (context_id, offset))
        self._find(context_id)
        output = self.outputs[context_id]
        async for event in self._follow(output, offset):
            yield event

    async def _follow(self, output: Output, offset: int) -> AsyncIterator[StreamEvent]:
        self.num_streams += 1
        try:
            position = offset
            while position < output.end and output.reason is FinishReason.LENGTH:
                end = min(position + 1 + position % 3, output.end)
                logprobs = tuple(TokenLogprob(-0.5, ((1, -0.5),)) for _ in range(position, end)) if output.wants_logprobs else ()
                text = "".join(map(piece_at, range(position, end)))
                yield Delta(position, tuple(map(token_at, range(position, end))), text, logprobs)
                position = end
                await asyncio.sleep(self.token_interval_s)
            yield Finished(output.reason, Usage(input_tokens=INPUT_TOKENS, output_tokens=position - output.start, queue_s=0.25))
        finally:
            self.num_streams -= 1

    async def cancel(self, caller: Caller, context_id: str) -> bool:
        self.note("cancel", caller, context_id)
        self._find(context_id)
        output = self.outputs.get(context_id)
        if output is None:
            return False
        output.reason = FinishReason.CANCELLED
        return True

    async def score(self, caller: Caller, args: ScoreArgs) -> Score:
        self.note("score", caller, args)
        tokens = args.input.tokens if isinstance(args.input, TokenInput) else tuple(range(len(args.input.text)))
        return Score(tokens, tuple(TokenLogprob(-1.0) for _ in tokens))

    # -------------------------------------------------------------------------------------------------------------------- models

    async def register_model(self, caller: Caller, args: RegisterArgs) -> ModelInfo:
        self.note("register_model", caller, args)
        self.models[args.name] = ModelInfo(args.name, args.path, ModelState.REGISTERED, quant=args.quant)
        return self.models[args.name]

    async def load_model(self, caller: Caller, args: RegisterArgs) -> AsyncIterator[LoadProgress | ModelInfo]:
        self.note("load_model", caller, args)
        for done in (0, 50, 100):
            yield LoadProgress("weights", done, 100)
        self.models[args.name] = ModelInfo(args.name, args.path, ModelState.RESIDENT, size_bytes=100)
        yield self.models[args.name]

    async def pin_model(self, caller: Caller, name: str) -> ModelInfo:
        self.note("pin_model", caller, name)
        self.models[name] = replace(self.stat_model(caller, name), is_pinned=True)
        return self.models[name]

    async def unpin_model(self, caller: Caller, name: str) -> ModelInfo:
        self.note("unpin_model", caller, name)
        self.models[name] = replace(self.stat_model(caller, name), is_pinned=False)
        return self.models[name]

    async def unload_model(self, caller: Caller, name: str, device: str = "") -> ModelInfo:
        self.note("unload_model", caller, name)
        self.models[name] = replace(self.stat_model(caller, name), state=ModelState.REGISTERED)
        return self.models[name]

    async def remove_model(self, caller: Caller, name: str) -> None:
        self.note("remove_model", caller, name)
        self.models.pop(name)

    def stat_model(self, caller: Caller, name: str) -> ModelInfo:
        self.note("stat_model", caller, name)
        if name not in self.models:
            raise NotFound("model", name)
        return self.models[name]

    def list_models(self, caller: Caller, args: ListArgs) -> ListPage[ModelInfo]:
        self.note("list_models", caller, args)
        return self._page(self.models, args)

    # -------------------------------------------------------------------------------------------------------------------- images

    async def checkpoint(self, caller: Caller, args: CheckpointArgs) -> ImageInfo:
        self.note("checkpoint", caller, args)
        info = self._find(args.context_id)
        image = ImageInfo(
            id=self.new_id(),
            context_id=info.id,
            model=info.model,
            owner=info.owner,
            tenant=info.tenant,
            num_tokens=info.num_tokens,
            num_pages=3,
            size_bytes=4096,
            created_at=3.0,
            name=args.name,
        )
        self.images[image.id] = image
        return image

    async def restore(self, caller: Caller, image_id: str, labels: Mapping[str, str]) -> Restored:
        self.note("restore", caller, (image_id, labels))
        if image_id not in self.images:
            raise NotFound("image", image_id)
        image = self.images[image_id]
        info = await self.alloc(caller, AllocArgs(image.model, labels=labels))
        return Restored(self._change(info.id, num_tokens=image.num_tokens), 2, 1, "the dtype differs")

    async def list_images(self, caller: Caller, args: ListArgs) -> ListPage[ImageInfo]:
        self.note("list_images", caller, args)
        return self._page(self.images, args)

    async def verify_image(self, caller: Caller, image_id: str) -> Verified:
        self.note("verify_image", caller, image_id)
        return Verified(("page 2 does not hold its checksum",), 4096)

    async def delete_image(self, caller: Caller, image_id: str) -> None:
        self.note("delete_image", caller, image_id)
        self.images.pop(image_id)

    # --------------------------------------------------------------------------------------------------------------------- admin

    async def add_tenant(self, caller: Caller, path: str, weight: int, limits: Limits) -> TenantInfo:
        self.note("add_tenant", caller, (path, weight, limits))
        self.tenants[path] = TenantInfo(path, weight, limits, created_at=4.0)
        return self.tenants[path]

    async def set_tenant(self, caller: Caller, path: str, weight: int | None, limits: Limits | None, revision: str = "") -> TenantInfo:
        self.note("set_tenant", caller, (path, weight, limits, revision))
        old = self.tenants[path]
        self.tenants[path] = replace(old, weight=weight or old.weight, limits=limits or old.limits)
        return self.tenants[path]

    def list_tenants(self, caller: Caller, args: ListArgs) -> ListPage[TenantInfo]:
        self.note("list_tenants", caller, args)
        return self._page(self.tenants, args)

    async def remove_tenant(self, caller: Caller, path: str, force: bool) -> int:
        self.note("remove_tenant", caller, (path, force))
        self.tenants.pop(path)
        return 2

    async def add_token(self, caller: Caller, tenant: str, name: str, roles: frozenset[Role], lifetime_s: float) -> NewToken:
        self.note("add_token", caller, (tenant, name, roles, lifetime_s))
        info = TokenInfo(f"t{len(self.tokens)}", tenant, name, roles, created_at=5.0, expires_at=lifetime_s)
        self.tokens[info.id] = info
        return NewToken(info, "secret")

    async def list_tokens(self, caller: Caller, args: ListArgs) -> ListPage[TokenInfo]:
        self.note("list_tokens", caller, args)
        return self._page(self.tokens, args)

    async def remove_token(self, caller: Caller, token_id: str) -> None:
        self.note("remove_token", caller, token_id)
        self.tokens.pop(token_id)

    async def drain(self, caller: Caller, timeout_s: float) -> Drained:
        self.note("drain", caller, timeout_s)
        return Drained(3, 1)

    async def top(self, caller: Caller, interval_s: float, count: int) -> AsyncIterator[TopFrame]:
        self.note("top", caller, (interval_s, count))
        for i in range(count or 3):
            yield TopFrame(
                at=float(i),
                uptime_s=1.0,
                running=1,
                waiting=2,
                num_contexts=len(self.contexts),
                tokens_per_s=3.0,
                prefill_tokens_per_s=4.0,
                tiers=(TierUse("device", 100, 50, 25, {"lab": 25}),),
                tenants=tuple(self.tenants.values()),
                workers=(WorkerStatus("cpu:0", "cpu", 17, "running", 0, 0.5),),
                models=tuple(self.models.values()),
                boot_generation=1,
            )

    def list_devices(self, caller: Caller, name: str = "") -> tuple[DeviceReport, ...]:
        self.note("list_devices", caller, name)
        if name not in ("", "cpu0"):
            raise NotFound("device", name)
        return (DeviceReport("cpu0", "running", driver="cpu", memory_bytes=1 << 30),)

    def read_memory(self, caller: Caller, num_decisions: int = 0) -> MemoryReport:
        self.note("read_memory", caller, num_decisions)
        total = TierTotal("device", 100, 40, 30, {"kv": 50, "weights": 10})
        account = TierAccount("lab/ann", "device", {"kv": 50}, 50, 30, 60, 20, 0, 2, 8)
        decision = PathDecision(2.0, "m", "1" * 32, 100, 96, "host", 0.25, "recompute", 0.5, None)
        return MemoryReport((total,), (account,), (decision,) * min(num_decisions, 1))

    async def usage(self, caller: Caller, args: UsageArgs) -> ListPage[UsageRecord]:
        self.note("usage", caller, args)
        records = {
            "lab/ann": UsageRecord("lab/ann", 3600.0, False, 3, 30, 10, 12, 2_500_000, 7_000, 1500, 250, 0, 1, 500_000),
            "lab/bob": UsageRecord("lab/bob", 3600.0, True, 0, 0, 0, 0, 0, -5, 0, 0, 0, 0, 0),
            SYSTEM: UsageRecord(SYSTEM, 3600.0, False, 0, 0, 0, 0, 1_000, 0, 0, 0, 0, 0, 0),
        }
        return self._page(records, ListArgs(args.page_size, args.page_token))

    def shares(self, caller: Caller, args: ListArgs) -> ListPage[ShareRecord]:
        self.note("shares", caller, args)
        lab = ShareRecord("lab", 1, 1.0, 1.0, 1.0, 900, 1000, 1.0, 1.0, 5000, 3, 1)
        ann = ShareRecord("lab/ann", 3, 0.75, 0.75, 0.25, 225, 1732, 0.9, 0.9, 1250, 2, 1)
        bob = ShareRecord("lab/bob", 1, 0.25, 0.25, 0.75, 675, 577, 0.1, 0.1, 3750, 1, 0)
        return self._page({item.tenant: item for item in (lab, ann, bob)}, args)

    def explain_context(self, caller: Caller, context_id: str) -> Explanation:
        self.note("explain_context", caller, context_id)
        return self._explanation(f"context {context_id}", QueuePlace(2, 3, 5, 1, 700))

    def explain_model(self, caller: Caller, name: str) -> Explanation:
        self.note("explain_model", caller, name)
        return self._explanation(f"model {name}", None)

    def explain_request(self, caller: Caller, request_id: str) -> Explanation:
        self.note("explain_request", caller, request_id)
        return replace(self._explanation(f"request {request_id}", None), outlook=OUTLOOK)

    def list_requests(self, caller: Caller, args: ListArgs) -> ListPage[Outlook]:
        self.note("list_requests", caller, args)
        return ListPage((OUTLOOK,))

    @staticmethod
    def _explanation(subject: str, queue: QueuePlace | None) -> Explanation:
        return Explanation(
            subject=subject,
            state="ready",
            summary="It waits.",
            placements=(Placement("host", 64, 2),),
            obstacles=(Obstacle("FRAMES", "it needs 12 B more.", "device", "", 12, 4),),
            holders=(Holding("device", "lab/bob", "kv", "", "running", 50),),
            remedies=(Remedy(Action.RAISE_LIMIT, "device", 64, "lab"),),
            queue=queue,
        )

    async def fsck(self, caller: Caller) -> AsyncIterator[PartChecked]:
        self.note("fsck", caller, None)
        yield PartChecked("books", 12, "pages")
        yield PartChecked("journal", 3, "records", 99, ("it does not hold",))

    async def events(self, caller: Caller, follow: bool, since: int) -> AsyncIterator[EventRecord]:
        self.note("events", caller, (follow, since))
        for sequence in range(max(since, 1), 4):
            yield EventRecord(sequence, 1.0, "WorkerLost", {"device": "cpu:0"})
