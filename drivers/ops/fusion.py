"""The fusion pass: covers a list of calls with implementations, at the least cost.

    rms_norm   linear   head_norm   rope   kv_write   paged_attention   linear   add
    |-- norm_linear --| |-------- rope_kv_write ----| |- as it is ----| |- linear_add -|

It is a shortest path: cost[i] is that of the calls from i on, over every implementation that may stand at i. One may if

1. the ops are those that it covers, and each call takes the output of the call before it as its first input;
2. all other inputs are there before the run begins: nothing that the run writes, but by rule 1;
3. what is read after the run was written, inside it, by a call that the implementation leaves visible (nobody else reads an inner value);
4. it does not overwrite what is read after it;
5. it supports the shapes.

Nothing here knows what an op means. The pass is a function of its arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from drivers.ops.calls import Call, Description
from drivers.ops.implementation import Implementation, Shapes

NOT_COVERED = 1e6  # the cost of a call that nothing can run


@dataclass(frozen=True, slots=True)
class Choice:
    """What runs one call of the fused list, and which cheaper implementations were refused there."""

    call: Call
    implementation: Implementation | None  # None: nothing covers it
    refused: tuple[tuple[str, str], ...] = ()  # name of an implementation, why not

    @property
    def cost(self) -> float:
        """Of this call."""
        return self.implementation.cost if self.implementation is not None else NOT_COVERED


@dataclass(frozen=True, slots=True)
class Cover:
    """A model's calls, fused: what runs each of them. `[0]` is the first list, then each layer, then the last."""

    lists: tuple[tuple[Choice, ...], ...]

    @property
    def description(self) -> Description:
        """The fused calls."""
        first, *layers, last = (tuple(choice.call for choice in choices) for choices in self.lists)
        return Description(first, tuple(layers), last)

    @property
    def gaps(self) -> tuple[str, ...]:
        """Why calls are not covered, each reason once; none: all are."""
        missing = [choice for choices in self.lists for choice in choices if choice.implementation is None]
        whys = [f"{choice.call.op}: {choice.refused[0][1] if choice.refused else 'there is none'}" for choice in missing]
        return tuple(dict.fromkeys(whys))


def fuse(description: Description, implementations: Sequence[Implementation], shapes: Callable[[int], Shapes]) -> Cover:
    """Cover all lists of a description; `shapes` tells of the list of that index, as in `Cover.lists`."""
    lists = [(calls, {"residual"}) for calls in (description.first, *description.layers)] + [(description.last, {"logits"})]
    return Cover(tuple(fuse_calls(calls, kept, implementations, shapes(idx)) for idx, (calls, kept) in enumerate(lists)))


def fuse_calls(calls: Sequence[Call], kept: set[str], implementations: Sequence[Implementation], shapes: Shapes) -> tuple[Choice, ...]:
    """The cheapest cover of one list, whose values `kept` are read by others afterwards."""
    live = _live_after(calls, kept)
    best: list[tuple[float, tuple[Choice, ...]]] = [(0.0, ())] * (len(calls) + 1)
    for start in reversed(range(len(calls))):
        refused: list[tuple[str, str]] = []
        options: list[tuple[float, tuple[Choice, ...]]] = []
        for implementation in implementations:
            end = start + len(implementation.covers)
            call = _standing_for(calls[start:end], implementation, live[end - 1]) if end <= len(calls) else None
            if call is None:
                continue
            why = implementation.supports(call, shapes)
            if why:
                refused.append((implementation.name, why))
            else:
                options.append((implementation.cost + best[end][0], (Choice(call, implementation), *best[end][1])))
        options = options or [(NOT_COVERED + best[start + 1][0], (Choice(calls[start], None), *best[start + 1][1]))]
        cost, chosen = min(options, key=lambda option: (option[0], len(option[1])))
        best[start] = (cost, (replace(chosen[0], refused=tuple(refused)), *chosen[1:]))
    return best[0][1]


def borders(cover: Cover, implementations: Sequence[Implementation], shapes: Callable[[int], Shapes]) -> tuple[Choice | None, ...]:
    """Between each list and the next: what stands for the last call of the one and the first of the other, where that is cheaper than both.

    Whoever runs two lists one behind the other may run that in their place; it takes parts of the second list alone. A list that is run by
    itself ends with what its own last call writes.
    """
    found = (_border(cover.lists[idx], cover.lists[idx + 1], implementations, shapes(idx + 1)) for idx in range(len(cover.lists) - 1))
    return tuple(found)


def _border(before: Sequence[Choice], after: Sequence[Choice], implementations: Sequence[Implementation], shapes: Shapes) -> Choice | None:
    if not before or not after or before[-1].call.parts:
        return None
    pair = (before[-1].call, after[0].call)
    live = {name for choice in after[1:] for name in choice.call.inputs} | {"residual"}
    options = [
        Choice(call, each)
        for each in implementations
        if len(each.covers) == 2 and (call := _standing_for(pair, each, live)) is not None and not each.supports(call, shapes)
    ]
    cheapest = min(options, key=lambda choice: choice.cost, default=None)
    return cheapest if cheapest is not None and cheapest.cost < before[-1].cost + after[0].cost else None


def _live_after(calls: Sequence[Call], kept: set[str]) -> list[set[str]]:
    """For each call, the values that are read after it."""
    live: list[set[str]] = []
    wanted = set(kept)
    for call in reversed(calls):
        live.append(set(wanted))
        wanted = (wanted - set(call.outputs)) | set(call.inputs)
    return live[::-1]


def _standing_for(run: Sequence[Call], implementation: Implementation, live: set[str]) -> Call | None:
    """The one call that means a run; None if the implementation may not stand for it (rules 1 to 4)."""
    if tuple(call.op for call in run) != implementation.covers:
        return None
    writer: dict[str, int] = {}  # of each value written: the last call that writes it
    inputs: list[str] = []
    for idx, call in enumerate(run):
        outer = call.inputs[1:] if idx else call.inputs
        if (idx and call.inputs[:1] != _handed_on(run[idx - 1])) or writer.keys() & set(outer):
            return None
        inputs += outer
        writer |= dict.fromkeys(call.outputs, idx)
    visible = {idx % len(run) for idx in implementation.visible}
    outputs = tuple(dict.fromkeys(name for idx in sorted(visible) for name in run[idx].outputs))
    if any(name in live and idx not in visible for name, idx in writer.items()):
        return None
    if implementation.overwrites and run[0].inputs[0] in live - set(outputs):
        return None
    if len(run) == 1:
        return run[0]
    parts = tuple(part for call in run for part in call.parts)
    settings = tuple(each for call in run for each in call.settings)
    return Call(implementation.op, tuple(dict.fromkeys(inputs)), outputs, parts, settings, tuple(run))


def _handed_on(call: Call) -> tuple[str, ...]:
    """The value that the next call of a run takes first: what this one gave, or, of one that gives nothing, what it took."""
    return call.outputs[:1] or call.inputs[:1]
