"""Which limits may be soft or hard, and what each is unless the administrator says so.

    soft   the request is accepted and waits behind everybody else until it is within the limit
    hard   the request is refused (RESOURCE_EXHAUSTED), and told when it is worth asking again

The other limits (contexts, queue, bytes) are bounds of what there is at all: nothing could wait behind them.
"""

from __future__ import annotations

from typing import Final

from kerneld.calls import LimitMode, Limits
from kerneld.errors import InvalidArgument

DEFAULT_MODES: Final = {
    "requests_per_minute": LimitMode.HARD,
    "tokens_per_minute": LimitMode.HARD,
    "loads_per_hour": LimitMode.HARD,
    "max_running": LimitMode.SOFT,
}


def mode_of(limits: Limits, name: str) -> LimitMode:
    """What a limit does with a request that is above it."""
    return limits.modes.get(name, DEFAULT_MODES[name])


def check_modes(limits: Limits) -> None:
    """Whether each limit that is given a mode can have one. Raises: InvalidArgument, naming those that can."""
    for name in limits.modes:
        if name in DEFAULT_MODES:
            continue
        is_limit = name != "modes" and name in Limits.__dataclass_fields__
        problem = "is always hard" if is_limit else "is no limit"
        raise InvalidArgument(f"limits.modes[{name!r}]", f"{problem}; soft or hard can be {', '.join(DEFAULT_MODES)}.")
