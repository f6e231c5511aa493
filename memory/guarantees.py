"""Guarantees along the tree of tenants: what they add up to.

A guarantee of "lab" covers those beneath it, so what is promised to a node is the larger of its own guarantee and the sum of what is
promised below it. A tier must have what is promised to all roots together.
"""

from __future__ import annotations

from collections.abc import Mapping

from memory.errors import Holder


def promised(guarantees: Mapping[str, int]) -> dict[str, int]:
    """Bytes that are promised to every node of the tree, by path."""
    sums: dict[str, int] = {}
    below: dict[str, int] = {}
    parts = [owner.split("/") for owner in guarantees]
    nodes = {"/".join(names[:depth]) for names in parts for depth in range(1, len(names) + 1)}
    for name in sorted(nodes, key=lambda each: -each.count("/")):
        sums[name] = max(guarantees.get(name, 0), below.get(name, 0))
        above = name.rpartition("/")[0]
        below[above] = below.get(above, 0) + sums[name]
    return sums


def total(guarantees: Mapping[str, int]) -> int:
    """Bytes that are promised to all roots together."""
    return sum(size for name, size in promised(guarantees).items() if "/" not in name)


def beneath(guarantees: Mapping[str, int], path: str) -> tuple[Holder, ...]:
    """Who has a guarantee, at or beneath a node ("": all), largest first."""
    named = [(name, size) for name, size in guarantees.items() if size]
    held = [Holder(name, size) for name, size in named if not path or name == path or name.startswith(path + "/")]
    return tuple(sorted(held, key=lambda holder: (-holder.size_bytes, holder.owner)))
