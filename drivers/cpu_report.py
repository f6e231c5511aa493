"""What runs each op of a model, and why: told with a load, and shown by `kernelctl device show`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

import torch

from drivers.contract import OpReport
from drivers.cpu_ops import Decision, OpChooser
from drivers.models.config import Foreign
from drivers.native.draw_check import NAME
from drivers.ops.fusion import Choice


def runs_on(decision: Decision, ops: OpChooser) -> str:
    """What computes a model, in a few words."""
    if decision.program is not None and ops.engine is not None:
        return f"native code ({ops.engine.level}), {_threads(ops.engine.num_threads)}"
    return f"torch, {_threads(torch.get_num_threads())}; native code does not apply: {decision.why_torch}"


def _threads(num: int) -> str:
    return f"{num} thread{'s' if num > 1 else ''}"


def op_reports(decision: Decision, ops: OpChooser, segments: Collection[int] | None = None) -> tuple[OpReport, ...]:
    """A line for each op and what runs it, in the order of a forward pass, and one for each that is in quarantine.

    `segments`: those that are run here; None: all.
    """
    if decision.files.config.foreign is not None:
        return _foreign(decision.files.config.foreign)
    here = [choices for idx, choices in enumerate(decision.cover.lists) if segments is None or idx in segments]
    head = here.pop() if decision.draws and (segments is None or len(decision.cover.lists) - 1 in segments) else ()
    counted = Counter(_report(choice) for choices in here for choice in choices)
    found = [OpReport(report.op, report.implementation, report.covers, num, report.why) for report, num in counted.items()]
    if head:
        found.append(_head_sample(head))
    for name, error in ops.bad.items():
        why = f"it disagreed with its definition, by {error:.3g} times what is tolerated"
        found.append(OpReport(name.partition(".")[2], name, why=why, is_quarantined=True))
    return tuple(found)


def _head_sample(head: Sequence[Choice]) -> OpReport:
    """What comes behind the layers of a model whose tokens are drawn natively."""
    covers = tuple(op for choice in head if choice.implementation is not None for op in choice.implementation.covers)
    return OpReport("head_sample", NAME, (*covers, "sample"), 1, f"one call for {len(covers) + 1}; logits stay inside")


def _foreign(foreign: Foreign) -> tuple[OpReport, ...]:
    """Of a model that its modules in transformers compute, what is ours: keys, values and attention."""
    capped = sum(settings.softcap != 0.0 for settings in foreign.attention)
    whys = {"torch": "what stands around it is computed by the model's modules in transformers", "reference": "it has a softcap"}
    counts = {"torch": len(foreign.attention) - capped, "reference": capped}
    attention = (
        OpReport("paged_attention", f"{name}.paged_attention", ("paged_attention",), num, whys[name]) for name, num in counts.items() if num
    )
    return (OpReport("kv_write", "torch.kv_write", ("kv_write",), len(foreign.attention), whys["torch"]), *attention)


def _report(choice: Choice) -> OpReport:
    chosen = choice.implementation
    assert chosen is not None, "a model with a call that nothing runs is not loaded"
    better = [f"{name}: {why}" for name, why in choice.refused]
    why = "; ".join(better) if better else f"one call for {len(chosen.covers)}" if len(chosen.covers) > 1 else "the cheapest that applies"
    return OpReport(choice.call.op, chosen.name, chosen.covers, 1, why)
