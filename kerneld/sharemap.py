"""ShareMap: the tree of shares at one moment, for whoever looks at it and changes nothing.

A tenant's own requests compete with its children as the hidden child "TENANT/." (see `kerneld.fairshare`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property

from kerneld.sharenode import OWN
from kerneld.standings import Standing
from kerneld.tally import ancestors


class ShareMap:
    """Every node by path, hidden ones too."""

    def __init__(self, standings: Iterable[Standing]) -> None:
        self.nodes: Mapping[str, Standing] = {each.path: each for each in standings}

    @cached_property
    def active(self) -> Mapping[str, list[Standing]]:
        """The nodes with something to run, by the path of their parent; the root's is empty."""
        found: dict[str, list[Standing]] = {}
        for node in self.nodes.values():
            if node.is_active:
                found.setdefault(node.path.rpartition("/")[0], []).append(node)
        return found

    @property
    def total_us(self) -> int:
        """What was charged to everybody, ever."""
        return sum(node.service_us for node in self.nodes.values() if "/" not in node.path)

    def siblings(self, path: str) -> list[Standing]:
        """The others with something to run on the level of a node."""
        return [node for node in self.active.get(path.rpartition("/")[0], ()) if node.path != path]

    def lineage(self, tenant: str) -> Iterator[Standing]:
        """The nodes with which a request of a tenant competes with their siblings, from its own up to the top."""
        for path in (own_path(tenant), *ancestors(tenant)):
            if path in self.nodes:
                yield self.nodes[path]

    def lags_us(self) -> dict[str, float]:
        """Device time that each node with something to run is owed by its siblings, next to what its weight gives it: they add up to 0."""
        lags: dict[str, float] = {}
        for group in self.active.values():
            weights = [weight_of(node) for node in group]
            mean = sum(weight * node.counter_us for weight, node in zip(weights, group, strict=True)) / sum(weights)
            lags |= {node.path: weight * (mean - node.counter_us) for weight, node in zip(weights, group, strict=True)}
        return lags


def parting(tenant: str, other: str) -> str:
    """The node above a tenant's requests on the level where their way from the root parts from that of another's; empty if it does not."""
    mine, theirs = own_path(tenant).split("/"), own_path(other).split("/")
    for depth, (own, foreign) in enumerate(zip(mine, theirs, strict=False), start=1):
        if own != foreign:
            return "/".join(mine[:depth])
    return ""


def weight_of(node: Standing) -> float:
    """A weight as its factor makes it."""
    return node.weight * node.factor_milli / 1000


def own_path(tenant: str) -> str:
    """The node of a tenant's own requests."""
    return f"{tenant}/{OWN}"


def tenant_of(path: str) -> str:
    """The tenant that a node stands for."""
    return path.removesuffix(f"/{OWN}")
