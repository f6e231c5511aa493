"""The heap of siblings, against a sorted list."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kerneld.shareheap import ShareHeap


@dataclass(eq=False)
class Node:
    """A sibling."""

    name: str
    counter: int = 0
    lead: int = 0
    is_active: bool = False
    is_new: bool = False


names = st.integers(0, 7)


class LifeOfHeap(RuleBasedStateMachine):
    """Numbers that grow, seldom fall, and nodes that come and go."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes = [Node(f"n{i}") for i in range(8)]
        self.line: ShareHeap[Node] = ShareHeap(counts_class=True)
        self.least_served: ShareHeap[Node] = ShareHeap(counts_class=False)

    def enter(self, node: Node) -> None:
        for heap in (self.line, self.least_served):
            heap.enter(node)

    @rule(idx=names, lead=st.integers(0, 9))
    def wake(self, idx: int, lead: int) -> None:
        node = self.nodes[idx]
        node.is_active, node.is_new, node.lead = True, True, lead
        self.enter(node)

    @rule(idx=names)
    def sleep(self, idx: int) -> None:
        self.nodes[idx].is_active = False

    @rule(idx=names, num=st.integers(0, 20))
    def grow(self, idx: int, num: int) -> None:
        self.nodes[idx].counter += num
        self.nodes[idx].is_new = False

    @rule(idx=names, num=st.integers(0, 20))
    def fall(self, idx: int, num: int) -> None:
        node = self.nodes[idx]
        node.counter -= num
        if node.is_active:
            self.enter(node)

    @rule(idx=names)
    def leave(self, idx: int) -> None:
        self.nodes[idx].is_active = False
        for heap in (self.line, self.least_served):
            heap.drop(self.nodes[idx])

    @rule()
    def rebuild(self) -> None:
        for heap in (self.line, self.least_served):
            heap.rebuild(node for node in self.nodes if node.is_active)

    @invariant()
    def keys_are_low_enough(self) -> None:  # invariant 1
        for heap in (self.line, self.least_served):
            heap.check()
            assert all(node in heap for node in self.nodes if node.is_active)

    @rule()
    def look(self) -> None:
        active = [node for node in self.nodes if node.is_active]
        by_deadline = sorted(active, key=lambda node: (node.counter + node.lead, not node.is_new, node.name))
        by_counter = sorted(active, key=lambda node: (node.counter, not node.is_new, node.name))
        assert self.line.least() is (by_deadline[0] if active else None)
        assert self.least_served.least() is (by_counter[0] if active else None)

    @rule(most=st.integers(0, 9), window=st.integers(0, 30))
    def look_further(self, most: int, window: int) -> None:
        active = sorted((node.counter + node.lead, not node.is_new, node.name) for node in self.nodes if node.is_active)
        near = [name for number, _is_old, name in active if number <= active[0][0] + window][:most]
        assert [node.name for node in self.line.first(most, window)] == near


TestLifeOfHeap = LifeOfHeap.TestCase
TestLifeOfHeap.settings = settings(stateful_step_count=40)
