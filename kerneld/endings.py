"""Endings: how the latest requests ended, for whoever asks why a request is not there any more. Lost at a restart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from kerneld.calls import Grant
from kerneld.holdings import Outlook
from kerneld.request import Request

MOST: Final = 1024


@dataclass(frozen=True, slots=True)
class Ending:
    """A request that ended, and who may know of it."""

    outlook: Outlook
    owner: str
    grants: tuple[Grant, ...]


class Endings:
    """The latest ones, oldest first."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._endings: dict[str, Ending] = {}  # by request id

    def note(self, request: Request, now: float) -> None:
        """A request has ended: its context knows how."""
        context, finished = request.context, request.context.last_finished
        first_token_s = None if request.first_token_at is None else request.first_token_at - request.arrival
        outlook = Outlook(
            request=request.id,
            context_id=context.id,
            tenant=context.tenant,
            model=context.model,
            state="finished",
            priority=context.priority.value,
            nice=context.nice,
            arrived_at=request.arrival,
            queue_s=request.queue_s,
            deadline=request.deadline or 0.0,
            num_preemptions=request.num_preemptions,
            output_tokens=request.num_generated,
            first_token_s=first_token_s,
            reason=finished.reason.value if finished is not None else "",
            detail=finished.detail if finished is not None else "",
            ended_at=now,
        )
        self._endings[request.id] = Ending(outlook, context.owner, tuple(context.grants.values()))
        if len(self._endings) > self._most:
            del self._endings[next(iter(self._endings))]

    def forget(self, tenant: str) -> None:
        """A tenant is gone: a later one of its name is somebody else."""
        self._endings = {request: ending for request, ending in self._endings.items() if ending.outlook.tenant != tenant}

    def beginning(self, beginning: str) -> list[Ending]:
        """How the requests ended whose ids begin like that, oldest first."""
        return [ending for request_id, ending in self._endings.items() if request_id.startswith(beginning)]
