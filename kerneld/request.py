"""The request: one infer in flight, from admission to its finish reason.

    QUEUED <-> RUNNING -> FINISHED        preemption leads back to QUEUED, at the old place; the loss of a worker too, before all others
       '------------------^

Positions of its context while it runs (`output_start` never changes):

    0          output_start - num_input   output_start                  num_tokens
    |---- past ----|-------- input --------|-------- output -------------|

Invariants
1. `num_generated == context.num_tokens - output_start`: the output is the end of the context.
2. A row slot is held if and only if the state is RUNNING.
3. A request is charged for its input once, however often it is preempted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from drivers.contract import Sampling, TokenLogprob
from kerneld.calls import FinishReason, InferArgs, Priority, Usage
from kerneld.context import Context
from kerneld.pricing.tariff import Tariff
from kerneld.stream import OutputLog
from kerneld.transcript import Transcript

UNCOUNTED: Final = -1  # no rank


class RequestState(Enum):
    """Where a request is."""

    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"


class Place(Enum):
    """Where a request waits; the places are drawn in `kerneld.waiting`."""

    NOWHERE = "nowhere"
    LINE = "line"
    FRONT = "front"
    PARKED = "parked"
    ABSENT = "absent"
    DEFERRED = "deferred"


@dataclass(slots=True, eq=False)
class Request:
    """One infer in flight."""

    # Written once, when the call is accepted.
    id: str  # 32 hexadecimal digits
    context: Context
    args: InferArgs
    sampling: Sampling  # with seed and stop tokens resolved
    num_input: int  # tokens that the call appended to the context
    output_start: int  # position of the first output token
    max_tokens: int  # output tokens at most, at least 1
    arrival: float  # Unix seconds; kept through preemption and restart
    log: OutputLog
    transcript: Transcript
    deadline: float | None = None  # Unix seconds
    queue_until: float | None = None  # Unix seconds; by then it is seated for the first time, or ends
    detach_grace_s: float = 10.0
    reserved_bytes: int = 0  # of the journal, given back at the end
    score_from: int = -1  # >= 0: nothing is sampled, the input from here on is scored

    # Written by the scheduler.
    state: RequestState = RequestState.QUEUED
    ticket: int = 0  # its entry where it waits; 0: it does not wait
    place: Place = Place.NOWHERE  # where it waits
    missing: str = ""  # the model that it waits for, where that is why it waits
    is_parked: bool = False  # it waits for something that is on its way, beside the line
    is_interrupted: bool = False  # it lost its row through no decision, and has none since
    defer_until: float = 0.0  # Unix seconds; > 0: it waits beside the line because of a soft limit
    turn: int = 0  # its number among admissions; kept while it is interrupted
    rank: int = 0  # of its class: a lower one goes first, a higher one gives way first; changes when the scheduler hears of it
    counted_rank: int = UNCOUNTED  # under which the shares count it in line
    is_held: bool = False  # the shares hold its tenant's place for it
    num_passed: int = 0  # times that one behind it in its own queue was admitted before it
    is_charged: bool = False  # its input was paid for
    tariff: Tariff | None = None  # that it was admitted by
    num_prepaid: int = 0  # output tokens that are paid for and have not come
    num_charged: int = 0  # output tokens that came and are paid for; a request that is recovered was charged for all that it has

    # Written by the dispatcher.
    slot: int | None = None
    queued_at: float = 0.0  # since when it waits
    admitted_at: float = 0.0  # last time that it became RUNNING
    num_since_admission: int = 0  # tokens generated since then
    num_preemptions: int = 0
    lost_row_for: str = ""  # why it was not left its row, as long as nobody knows what it costs to have its pages again
    num_fetches: int = 0  # times that it waited for pages from the disk tier since it was last seated

    # Written by the dispatcher; what the caller is told in the end.
    first_token_at: float | None = None
    queue_s: float = 0.0
    compute_s: float = 0.0
    num_cached: int = 0  # input tokens that needed no computing
    num_at_hand: int = 0  # leading tokens that need no computing, as far as a quick look told
    looked_at: int = 0  # when that was, by the stamp of `Prefixes`
    looked_from: int | None = None  # tokens it had itself when it began to look for known pages, since it was last seated
    num_shared: int = 0  # tokens that it took from others of its sharing domain
    pages_restored: int = 0
    pages_recomputed: int = 0
    scores: list[TokenLogprob] = field(default_factory=list)
    num_drafted: int = 0  # guesses that were verified
    num_draft_kept: int = 0

    # Written by recovery.
    num_crashes: int = 0  # worker deaths that it was aboard
    is_alone: bool = False  # to be tried without company, because it may be what kills workers

    @property
    def tenant(self) -> str:
        """Path of the tenant that pays."""
        return self.context.tenant

    @property
    def priority(self) -> Priority:
        """Latency class, as the context has it now."""
        return self.context.priority

    @property
    def num_generated(self) -> int:
        """How many output tokens there are."""
        return self.context.num_tokens - self.output_start

    @property
    def num_remaining(self) -> int:
        """How many output tokens may still come."""
        return self.max_tokens - self.num_generated

    @property
    def needs_logits_from(self) -> int:
        """The first token that has to be computed whatever is known of it, because the logits after it are wanted."""
        return (self.score_from if self.is_scoring else self.context.num_tokens) - 1

    @property
    def is_scoring(self) -> bool:
        """Whether it looks at its input instead of generating."""
        return self.score_from >= 0

    @property
    def is_finished(self) -> bool:
        """Whether it has ended."""
        return self.state is RequestState.FINISHED

    def is_abandoned(self) -> bool:
        """Whether its readers left longer ago than the grace that they asked for."""
        return self.log.is_abandoned(self.detach_grace_s)

    def usage(self) -> Usage:
        """What it has used so far."""
        return Usage(
            input_tokens=self.num_input,
            cached_tokens=self.num_cached,
            output_tokens=self.num_generated,
            pages_restored=self.pages_restored,
            pages_recomputed=self.pages_recomputed,
            queue_s=self.queue_s,
            compute_s=self.compute_s,
            shared_tokens=self.num_shared,
            drafted_tokens=self.num_drafted,
            accepted_tokens=self.num_draft_kept,
        )

    def length_reason(self) -> FinishReason | None:
        """LENGTH when it may generate no more, because of its own limit or the context's."""
        is_full = self.num_remaining <= 0 or (0 < self.context.max_tokens <= self.context.num_tokens)
        return FinishReason.LENGTH if is_full else None
