"""Row: a request in a row slot of the device, and how far its plans reach.

    0            position        reach                 total
    |---- KV done ----|- on its way -|---- pending -------|          while its input is being read (prefill)
    |------------ KV done ------------|- on its way -|               once it generates: every step computes the token sampled before

Invariants
1. `position` counts tokens whose KV was computed by finished steps.
2. `in_flight` is the sum of what outstanding plans are still to compute for the row; a plan that was cut gives back what it did not do.
3. `samples_planned` counts output tokens sampled since its seat, or promised by outstanding plans; it never passes `max_output`, so that
   no step runs for nothing.
4. `sent` is the row's page tables as the device knows them; frames in it cover `reach` tokens.
5. Until it is told, nothing of its context has changed: it may leave again as if it had never sat.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from drivers.contract import FramePatch, RowStart
from kerneld.request import Request
from kerneld.step import RowNeed
from kerneld.weights.rooms import RoomWanted
from memory.decisions import Decision
from memory.page import Eviction, Move
from memory.pager import Want
from memory.table import PageTable


@dataclass(slots=True, eq=False)
class Row:
    """A seated request."""

    request: Request
    slot: int
    table: PageTable
    position: int
    total: int  # tokens known at its seat: the end of its prefill
    max_output: int  # tokens it may sample; 0 for a row that only scores
    samples_planned: int = 0
    in_flight: int = 0
    is_over: bool = False  # it left; what the device still says of it is not heard
    is_told: bool = False  # a plan that seats it went out
    num_restored: int = 0  # pages that come back from the host tier for it
    num_lost: int = 0  # pages that are computed again for it
    score_from: int = -1
    decision: Decision | None = None  # how its pages come to the device
    sent: list[list[int]] = field(default_factory=list)
    num_relocated: int = 0  # of the table, when it was sent

    @property
    def reach(self) -> int:
        """Tokens whose KV will be there once all outstanding plans are done."""
        return self.position + self.in_flight

    def need(self) -> RowNeed | None:
        """What the scheduler may give it in the next quantum; None if no step would do anything for it."""
        pending = self.total - self.reach
        left = self.max_output - self.samples_planned
        if self.is_over or (pending <= 0 and left <= 0):
            return None
        return RowNeed(self.request, max(pending, 1), max(left, 1), self.reach)

    def part(self, num_tokens: int, num_steps: int) -> Part:
        """What a plan of `num_steps` does to it whose first step computes `num_tokens` of its pending tokens."""
        if self.reach + num_tokens < self.total or self.max_output == 0:
            return Part(self, num_tokens, num_tokens, 0)
        return Part(self, num_tokens, num_tokens + num_steps - 1, num_steps)

    def want(self, num_computed: int) -> Want:
        """The pages that it needs on the device while a plan computes `num_computed` more tokens; all of its input at least."""
        return Want(self.table, self.reach, max(self.reach + num_computed, self.total))

    def start(self, model_id: int, adapter_id: int = 0, draft_model_id: int = 0) -> RowStart:
        """Tell the device of it for the first time."""
        context, sampling = self.request.context, self.request.sampling
        groups = range(len(self.table.space_ids))
        self.sent = [self.table.frames(group) for group in groups]
        self.is_told, self.num_relocated = True, self.table.num_relocated
        return RowStart(
            slot=self.slot,
            model_id=model_id,
            position=self.position,
            tokens=tuple(context.tokens[self.position :]),
            frames=tuple(tuple(frames) for frames in self.sent),
            sampling=sampling,
            history=tuple(context.tokens[: self.position]) if sampling.has_penalties or sampling.draft_tokens else (),
            output_start=self.request.output_start,
            score_from=self.score_from,
            adapter_id=adapter_id,
            draft_model_id=draft_model_id,
        )

    def patches(self, page_tokens: int) -> list[FramePatch]:
        """Tell the device what changed in its page tables: before the page that is written next, only pages that were relocated."""
        first = self.reach // page_tokens if self.num_relocated == self.table.num_relocated else 0
        self.num_relocated = self.table.num_relocated
        patches = []
        for group, known in enumerate(self.sent):
            frames = self.table.frames(group, first)
            if known[first:] != frames:
                known[first:] = frames
                patches.append(FramePatch(self.slot, group, first, tuple(frames)))
        return patches


@dataclass(slots=True, eq=False)
class Part:
    """A row's part in one plan: what is still to come of it."""

    row: Row
    num_first: int  # tokens of its first step
    num_computed: int  # tokens of all its steps that have not ended
    num_samples: int  # of those steps

    def depart(self) -> None:
        """The plan is on its way."""
        self.row.in_flight += self.num_computed
        self.row.samples_planned += self.num_samples

    def step(self, step_idx: int, num_sampled: int) -> None:
        """A step of the plan has ended that computed some of the row; one that failed computed none. Drafts that were kept are computed."""
        num_tokens = (self.num_first if step_idx == 0 else 1) + max(num_sampled - 1, 0)
        self.row.position += num_tokens
        self.row.in_flight -= num_tokens
        self.num_computed -= num_tokens
        self.num_samples -= num_sampled

    def arrive(self) -> None:
        """The plan has ended, perhaps early: what it did not do is open again."""
        self.row.in_flight -= self.num_computed
        self.row.samples_planned -= self.num_samples


@dataclass(slots=True, eq=False)
class Flight:
    """A plan on its way to the device and back."""

    seq: int
    num_steps: int
    parts: dict[int, Part]  # by row slot
    moves: tuple[Move, ...] = ()
    clears: tuple[int, ...] = ()  # row slots
    starts: tuple[int, ...] = ()
    room: RoomWanted | None = None  # what this plan evicts pages for; it wants no row's pages then
    is_cut: bool = False
    evictions: tuple[Eviction, ...] = ()
