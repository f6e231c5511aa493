"""Who guesses the next tokens of rows: their own past (`drivers.lookup`), or a smaller model that is loaded beside theirs.

A model that guesses keeps keys and values of its own, which nobody pages: a few rows of `WINDOW` tokens. A row that grows past the window
starts anew with the last half of it; that it then sees less costs some right guesses, and nothing else, as every guess is verified. It
draws with the random numbers of the row, so that where both models agree on the probabilities, the guess is what the row samples.

Rows that guess in a step are few (`MOST_STEP_TOKENS`): where many rows share a step, it is bound by arithmetic, and guesses would cost
what they save.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from drivers.arena import Arena
from drivers.cpu_model import CpuModel
from drivers.cpu_runners import Runner
from drivers.errors import DeviceOutOfMemory
from drivers.lookup import Lookup
from drivers.pace import Pace
from drivers.rows import Row, StepRows
from drivers.sampling import Asked, pick_tokens

logger = logging.getLogger(__name__)

MOST_STEP_TOKENS: Final = 16  # of all rows of a step, guesses included
WINDOW: Final = 512
SEATS: Final = 4  # rows that one model guesses for at a time
CHUNK: Final = 64  # tokens that it reads at a time


@dataclass(slots=True)
class Guesser:
    """What is remembered of one row."""

    row: Row
    lookup: Lookup = field(default_factory=Lookup)
    pace: Pace = field(default_factory=Pace)
    first: int = 0  # of the row's tokens, the one at which its window begins
    read: list[int] = field(default_factory=list)  # tokens from there on whose keys and values the model has
    seat: int = -1


class Drafter:
    """Guesses for the rows of one driver."""

    def __init__(self, models: Callable[[], Mapping[int, CpuModel]], granule_bytes: int) -> None:
        """`models` are those that are loaded now, by id."""
        self._models = models
        self._granule_bytes = granule_bytes
        self._guessers: dict[int, Guesser] = {}  # by row slot
        self._used: dict[int, int] = {}  # by model: bytes of the desks that were guessed on since that was asked last
        self._desks: dict[int, _Desk | None] = {}  # by model, as long as it is loaded; None: it cannot guess

    def guess(self, row: Row, most: int) -> list[int]:
        """At most so many tokens that may come after the row's pending one."""
        guesser = self._guessers.get(row.slot)
        if guesser is None or guesser.row is not row:
            guesser = self._guessers[row.slot] = Guesser(row)
        most = guesser.pace.next(most)
        if not most:
            return []
        models = self._models()
        model = models.get(row.draft_model_id)
        desk = None if model is None else self._desk_of(row.draft_model_id, model)
        if desk is None:
            return guesser.lookup.guess(row.past, most)
        self._used[row.draft_model_id] = desk.size_bytes
        guesses = desk.guess(guesser, most, self._is_seated)
        unknown = (idx for idx, token in enumerate(guesses) if token >= models[row.model_id].limit.vocab_size)
        return guesses[: next(unknown, len(guesses))]

    def heard(self, row: Row, num_guessed: int, num_right: int) -> None:
        """What became of a row's last guesses."""
        guesser = self._guessers.get(row.slot)
        if guesser is not None and guesser.row is row:
            guesser.pace.heard(num_guessed, num_right)

    def workspace(self) -> dict[int, int]:
        """What models that guessed since this was asked last have beyond the driver's arena, in bytes."""
        told, self._used = self._used, {}
        return told

    def close(self) -> None:
        """Give everything back."""
        for model_id in list(self._desks):
            self.forget(model_id)
        self._guessers.clear()

    def forget(self, model_id: int) -> None:
        """Give back what a model guesses on: it is being unloaded."""
        desk = self._desks.pop(model_id, None)
        if desk is not None:
            desk.close()

    def _desk_of(self, model_id: int, model: CpuModel) -> _Desk | None:
        """What a model guesses on, made when it is first needed; None, if it cannot guess."""
        if model_id not in self._desks:
            can_guess = model.stream is None and model.limit.max_positions >= model.frames[0].page_tokens
            self._desks[model_id] = self._new_desk(model) if can_guess else None
        return self._desks[model_id]

    def _new_desk(self, model: CpuModel) -> _Desk | None:
        try:
            return _Desk(model, self._granule_bytes)
        except DeviceOutOfMemory as error:
            logger.warning("no memory for a model that is to guess; tokens are looked up", extra={"error": str(error)})
            return None

    def _is_seated(self, guesser: Guesser) -> bool:
        """Whether somebody still sits on the row for which was guessed."""
        return self._guessers.get(guesser.row.slot) is guesser


class _Desk:
    """A model that guesses, and the pages on which it does."""

    def __init__(self, model: CpuModel, granule_bytes: int) -> None:
        self.model = model
        window = min(WINDOW, model.limit.max_positions)
        pages = window // model.frames[0].page_tokens
        self._window = pages * model.frames[0].page_tokens
        self._arena = Arena(SEATS * pages * sum(frame.size_bytes for frame in model.frames), granule_bytes)
        self._tables: list[list[np.ndarray]] = []  # of each seat
        start = 0
        for _seat in range(SEATS):
            tables = []
            for frame in model.frames:
                granules = frame.size_bytes // granule_bytes
                tables.append(start + granules * np.arange(pages))
                start += granules * pages
            self._tables.append(tables)
        self._runner: Runner = model.runner.in_arena(self._arena)
        self._seated: list[Guesser | None] = [None] * SEATS

    @property
    def size_bytes(self) -> int:
        """Memory that it takes beside the driver's arena."""
        return self._arena.size_bytes

    def guess(self, guesser: Guesser, most: int, is_seated: Callable[[Guesser], bool]) -> list[int]:
        """Tokens that may follow. Nothing, if every seat is taken, the model's numbers are not finite, or it does not know a token."""
        if guesser.seat < 0 or self._seated[guesser.seat] is not guesser:
            free = [idx for idx, other in enumerate(self._seated) if other is None or not is_seated(other)]
            if not free:
                return []
            self._seated[free[0]], guesser.seat, guesser.read = guesser, free[0], []
        past, most = guesser.row.past, min(most, self._window - self._window // 2)  # room behind the half that is read
        if len(past) + most - guesser.first > self._window or not guesser.read:
            guesser.first, guesser.read = max(0, len(past) - self._window // 2), []
        known = past[guesser.first :]
        same = next((idx for idx, token in enumerate(guesser.read) if idx >= len(known) or known[idx] != token), len(guesser.read))
        del guesser.read[min(same, len(known) - 1) :]  # what was guessed wrongly; the last token is read again for what follows it
        guesses: list[int] = []
        while len(guesses) < most:
            token = self._next(guesser, known[len(guesser.read) :])
            if token < 0:
                break
            guesses.append(token)
            known.append(token)
        return guesses

    def _next(self, guesser: Guesser, tokens: list[int]) -> int:
        """Read tokens, and draw what follows the last one; -1: there is no telling."""
        if max(tokens) >= self.model.limit.vocab_size:
            return -1
        tables, row = self._tables[guesser.seat], guesser.row
        for start in range(0, len(tokens), CHUNK):
            part = tokens[start : start + CHUNK]
            reader = Row(0, 0, len(guesser.read), part, tables, row.sampling, score_from=-1, output_start=0)
            positions = np.arange(reader.position, reader.position + len(part))
            share = StepRows(0, (reader,), (len(part),), (0,), np.array(part, dtype=np.int64), positions)
            hidden = self._runner.forward(share)
            guesser.read += part
        asked, last = Asked(row, guesser.first + len(guesser.read)), [len(part) - 1]
        drawn = self._runner.draw(hidden, last, [asked])
        if drawn is None:
            drawn = pick_tokens(self._runner.logits(hidden, last), [row], self.model.decision.table.sample, [asked.position])
        return drawn[0].token

    def close(self) -> None:
        self._runner.close()
        self._arena.close()
