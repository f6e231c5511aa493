"""A driver of one's own: a bag of words that forgets.

It runs any Llama-like directory on the host CPU, of which it uses the two tables alone. What it keeps of a token is its embedding row, in
the frames that the kernel names; what a row says next is

    logits = head @ sum of weight(age) * embedding[token]     over its last 64 tokens, read back through its page table

where weight is 0.9 ** age, but below zero for the last eight: so it says words that it has heard, and none twice in a row. That is no
language model worth the name. All the rest is real: pages, moves to the host tier, chunks, batches, draws, scores, parking.
`python -P -m drivers.conformance bag` holds it to the contract.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec
import torch
from torch import Tensor

from drivers.arena import Arena, FrameShape, device_bytes
from drivers.arrival import Parts
from drivers.contract import Capabilities, InspectSpec, KvGroupSpec
from drivers.errors import ModelUnsupported
from drivers.host_driver import Described, HostDriver
from drivers.models.loader import PageShape, model_spec, open_model
from drivers.rows import StepRows
from drivers.sampling import Asked, Pick

VERSION = "1.0"
FADING = 0.9
JUST_SAID = 8  # tokens that count against being said again
MEMORY = 64  # tokens; it has forgotten what is older
LOUDNESS = 20.0  # of logits


@dataclass(frozen=True, slots=True)
class Bag:
    """A loaded model, see `drivers.host_driver.HostModel`."""

    embedding: Tensor  # [vocab, hidden], rows of length 1
    head: Tensor  # [vocab, hidden], rows of length `LOUDNESS`
    pages: Tensor  # [frames, page_tokens, hidden], all of the arena
    runs_on: str = "a bag of words"

    def forward(self, share: StepRows) -> Tensor:
        """Keep the tokens of a step in the frames of their rows; answers the bag behind each, `[num_tokens, hidden]`."""
        bags = []
        for row, count, start in zip(share.rows, share.counts, share.starts, strict=True):
            table, end = torch.from_numpy(row.tables[0]), row.position + count
            tokens = torch.from_numpy(share.tokens[start : start + count])
            self.pages[self._places(table, row.position, end)] = self.embedding[tokens]
            bags += [self._bag(table, last) for last in range(row.position, end)]
        return torch.stack(bags)

    def logits(self, hidden: Tensor, tokens: Sequence[int]) -> Tensor:
        """One product each, not one for all: the same bits, whoever else is in the step."""
        return torch.stack([self.head @ hidden[token] for token in tokens])

    def draw(self, _hidden: Tensor, _tokens: Sequence[int], _asked: Sequence[Asked]) -> list[Pick] | None:
        """There is no shorter way than by logits."""
        return None

    def _bag(self, table: Tensor, last: int) -> Tensor:
        first = max(0, last + 1 - MEMORY)
        words = self.pages[self._places(table, first, last + 1)]
        age = torch.arange(last - first, -1, -1).unsqueeze(1)
        return (words * torch.where(age < JUST_SAID, -(FADING**age), FADING**age)).sum(0)

    def _places(self, table: Tensor, first: int, end: int) -> tuple[Tensor, Tensor]:
        """Frames of the positions [first, end), and where in them."""
        positions, page_tokens = torch.arange(first, end), self.pages.shape[1]
        return table[positions // page_tokens], positions % page_tokens


class BagDriver(HostDriver):
    """See `drivers.contract.Driver`."""

    def probe(self) -> Capabilities:
        return Capabilities("bag", VERSION, "a bag in host memory", device_bytes(), ("float32",), batch_invariant=True, gives_back=True)

    def describe(self, source: InspectSpec, pages: PageShape) -> Described:
        """The first and the last segment of a model are read, the embedding and the head; a page is one layer of embedding rows."""
        files = open_model(source, pages.dtype)
        hidden = files.config.hidden_size
        if files.quant or hidden % 2:
            raise ModelUnsupported("The bag driver reads float weights, and rows of an even number of columns.")
        files = replace(files, segments=(files.segments[0], files.segments[-1]))
        granules = -(-pages.page_tokens * hidden * pages.dtype.itemsize // pages.granule_bytes)
        group = KvGroupSpec(num_layers=1, frame_bytes=granules * pages.granule_bytes)
        told = msgspec.structs.replace(model_spec(files, pages), groups=(group,), numerics=f"bag {VERSION}/{pages.page_tokens}")
        return Described(told, files, (FrameShape(1, pages.page_tokens, 1, hidden // 2, group.frame_bytes, pages.dtype),))

    def build(self, described: Described, weights: Parts, arena: Arena) -> Bag:
        embedding, head = weights[0]["embedding"], weights[-1].get("head", weights[0]["embedding"])
        assert isinstance(embedding, Tensor), "quantized weights were refused"
        assert isinstance(head, Tensor), "and so was a quantized head"
        tables = torch.nn.functional.normalize(embedding), LOUDNESS * torch.nn.functional.normalize(head)
        return Bag(*tables, arena.token_views(described.frames[0])[0][:, 0, 0])
