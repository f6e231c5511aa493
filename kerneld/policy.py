"""The numbers that the scheduler decides by. Times of service are microseconds of device time, as the tariffs count it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SchedulerPolicy:
    """Figures of the configuration, in the scheduler's units."""

    max_step_tokens: int = 512  # of one step, all rows together
    max_steps: int = 8  # of a quantum, when nobody waits
    min_service_tokens: int = 64  # that a request generates before it may be preempted for another
    courtesy_us: int = 250_000  # service by which such a one may be ahead of who has many rows, and is next all the same; 0: none
    preempt_lag_us: int = 250_000  # service by which the victim's tenant must be ahead of the waiting one's
    # Service by which a tenant may be ahead of who is next and still go first, where more of its request's KV is at hand; 0: never.
    locality_lag_us: int = 50_000
    # Service by which a tenant with requests of a class may be ahead before others go first, at weight 1: interactive, batch, idle.
    slices_us: tuple[int, int, int] = (0, 250_000, 1_000_000)
    share_cap_us: int = 60_000_000  # that a tenant may be ahead of the others when it begins to wait, at weight 1; 0: any distance
    held_cap_us: int = 10_000_000  # that it may be behind them after it waited for pages or for a model; 0: any distance
    gap_factor: float = 1.8  # a step with input in it may take so many times what it would for its decoding rows alone
    token_gap_s: float = 0.0  # or as long as this, where that is longer: nobody minds such a pause between two tokens
    max_quantum_s: float = 0.25  # predicted; a quantum of one step may take longer
    growth_share: float = 0.5  # of the output that is expected of running rows, how much room is kept for before others are seated
