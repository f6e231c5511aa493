"""A model on a split device: one part on each stage, and hidden states that go round.

stage 0     embedding | its layers ------.            .--> last norm | head
stage 1                                   `> its layers
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from torch import Tensor

from drivers.contract import OpReport
from drivers.rows import ModelLimit, StepRows
from drivers.sampling import Asked, Pick
from drivers.split.pages import SplitFrame
from drivers.split.plan import SplitPlan
from drivers.split.stage import StageModel


@dataclass(frozen=True, slots=True)
class SplitModel:
    """A loaded model. Frozen: a load makes one. It is the `Head` of its rows too."""

    plan: SplitPlan
    models: tuple[StageModel, ...]  # by stage
    limit: ModelLimit
    frames: tuple[SplitFrame, ...]  # of each KV group
    space_ids: tuple[int, ...]
    offsets: tuple[int, ...]  # of each bundle

    @property
    def tails(self) -> tuple[SplitFrame, ...]:
        """Of each KV group, where what lies behind a row's last token has to be zero (`drivers.tails`)."""
        return self.frames if any(model.needs_clean_pages for model in self.models) else ()

    @property
    def prefill_s(self) -> float:
        """Seconds per token of a short input; 0, if a part does not say."""
        paces = [model.prefill_s for model in self.models]
        return sum(paces) if all(paces) else 0.0

    def forward(self, share: StepRows) -> Tensor:
        """Compute the step's tokens and write their keys and values; answers hidden states `[num_tokens, hidden]`."""
        first, *others = self.models
        hidden = first.run_layers(share, None)
        for model in others:
            hidden = model.run_layers(share, hidden)
        return hidden

    def logits(self, hidden: Tensor, tokens: Sequence[int]) -> Tensor:
        """Logits `[n, vocab]` of those tokens of the step."""
        return self.models[0].logits(hidden, tokens)

    def draw(self, hidden: Tensor, tokens: Sequence[int], asked: Sequence[Asked]) -> list[Pick] | None:
        """See `drivers.stepping.Head`."""
        return self.models[0].draw(hidden, tokens, asked)

    def runs_on(self) -> str:
        """Which part computes what, in a few words."""
        shares, told = self.plan.shares, []
        for part, granule, model in zip(self.plan.parts, shares.granule_bytes, self.models, strict=True):
            layers = f"layers {part.layers.start} to {part.layers.stop - 1}"
            told.append(f"{layers} on {100 * granule / shares.total_bytes:.0f} % of the memory: {model.runs_on()}")
        return "; ".join(told)

    def ops(self) -> tuple[OpReport, ...]:
        """What runs each op, part by part."""
        return tuple(
            msgspec.structs.replace(report, why=f"part {idx}: {report.why}")
            for idx, model in enumerate(self.models)
            for report in model.ops()
        )

    def close(self) -> None:
        """Forget what the stages keep beyond their arenas."""
        for model in self.models:
            model.close()
