"""A context as the log tells it, in the making while a log is replayed. What records do to it is `kerneld.state.replay`'s."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

from kerneld import calls
from kerneld.calls import Durability, Priority
from kerneld.state.records import Admit, Alloc, ContextSnapshot, Finish, pack_tokens


@dataclass(slots=True)
class ContextRecord:
    """A live context as the log tells it. The first fields are those of its Alloc."""

    context_id: bytes
    owner: str
    tenant: str
    model: str
    fingerprint: str
    max_tokens: int
    priority: Priority
    nice: int
    durability: Durability
    labels: dict[str, str]
    seed: int
    created_at: float
    parent: bytes
    fork_at: int
    tokens: array[int]
    adapter: str
    sharing_group: str
    last_used_at: float
    is_suspended: bool = False
    pinned_tokens: int = 0
    failure: str = ""
    grants: dict[str, calls.Grant] = field(default_factory=dict)  # by grantee
    active: Admit | None = None  # without its input, which is among the tokens
    last_request: bytes = b""
    last_finish: Finish | None = None
    last_admit: Admit | None = None  # of the request that finished last, while what it generated stands at the end

    @property
    def output(self) -> array[int]:
        """What the active request has generated so far; empty if there is none."""
        return self.tokens[self.active.output_start :] if self.active else array("I")

    def snapshot(self) -> ContextSnapshot:
        """Everything of it in one record."""
        facts = {name: getattr(self, name) for name in Alloc.__struct_fields__}
        alloc = Alloc(**facts | {"labels": dict(self.labels), "tokens": pack_tokens(self.tokens)})
        return ContextSnapshot(
            alloc=alloc,
            is_suspended=self.is_suspended,
            failure=self.failure,
            grants=tuple(self.grants.values()),
            active=self.active,
            last_request=self.last_request,
            last_finish=self.last_finish,
            last_used_at=self.last_used_at,
            pinned_tokens=self.pinned_tokens,
            last_admit=self.last_admit,
        )
