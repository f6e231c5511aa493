"""How a tenant stands among its siblings in the tree of shares, for people and displays."""

from __future__ import annotations

from dataclasses import dataclass

from kerneld.sharenode import OWN, SCALE, ShareNode


@dataclass(frozen=True, slots=True)
class Standing:
    """One tenant. Microseconds of device time; those of counters are at weight 1."""

    path: str
    weight: int
    factor_milli: int  # of the weight, in thousandths
    counter_us: int
    lag_us: int  # by how much it is ahead of its active sibling of least counter, itself included; negative: behind. 0 if none is active
    service_us: int  # charged to it and all below it, refunds taken off
    is_active: bool  # something waits at it or below that may be next
    num_waiting: int  # requests in line, at it and below


def standing_of(node: ShareNode) -> Standing:
    """The standing of a tenant's node. Walks what is below it."""
    assert node.parent is not None, "the root has no siblings"
    least = node.parent.least_served.least()
    return Standing(
        path=node.path,
        weight=node.weight,
        factor_milli=node.factor_milli,
        counter_us=node.counter // SCALE,
        lag_us=(node.counter - least.counter) // SCALE if least else 0,
        service_us=node.service,
        is_active=node.is_active,
        num_waiting=_num_waiting(node),
    )


def _num_waiting(node: ShareNode) -> int:
    if node.name == OWN:
        return sum(node.num_by_rank)
    return sum(_num_waiting(child) for child in node.children.values())
