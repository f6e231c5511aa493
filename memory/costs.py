"""What it costs to have a page again: by a copy from a tier below, or by computing its tokens once more.

Everything is in seconds, and every figure was measured: bandwidths when the device came, the pace of prefill when the model was loaded,
and both again whenever a plan has moved pages or read input. Prefill of tokens at positions [start, end) is taken to cost

    base * (end - start) + slope * (start + ... + end - 1)

where the slope, which is what attention adds, is fitted only where the observations show one.

Invariants
1. Without a measured pace of prefill nothing is computed again that can be copied; without a measured bandwidth a copy is free.
2. Asking changes nothing: a decision stands in the ring only after `record`.
3. What is kept of a context is a prefix of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from typing import NamedTuple

from memory.decisions import Decision, DecisionRing, Way
from memory.pace import Allowance, CopyPace
from memory.page import Space
from memory.retention import is_cached
from memory.table import Page, PageTable

FORGET = 0.8  # what the old figure keeps when a new one of some size comes
MIN_BYTES = 64 << 10  # a copy of less says more about the clock than about the link
MIN_PREFILL_TOKENS = 16
USUAL_PREFILL_TOKENS = 256  # a prefill of so many tokens makes the ones before count as `FORGET` says; a shorter one less
SLOPE_SPREAD = 0.05  # the mean positions of observations must differ so much, relatively, before a slope is believed


class Link(Enum):
    """Two tiers between which pages are copied."""

    HOST_TO_DEVICE = "host to device"
    DEVICE_TO_HOST = "device to host"
    DISK_TO_HOST = "disk to host"
    HOST_TO_DISK = "host to disk"


class PrefillFit:
    """Seconds of prefill as a function of position: least squares over observations that slowly lose weight."""

    def __init__(self, seconds_per_token: float) -> None:
        self._first_s = seconds_per_token
        self._sums = [0.0] * 5  # per observation of n tokens at mean position p, y seconds per token: n, n p, n p^2, n y, n p y

    def note(self, start: int, end: int, seconds: float) -> None:
        """Tokens at [start, end) were computed in so many seconds."""
        count = end - start
        mean, pace = (start + end - 1) / 2, seconds / count
        fresh = (count, count * mean, count * mean * mean, count * pace, count * mean * pace)
        keep = FORGET ** (count / USUAL_PREFILL_TOKENS)
        self._sums = [keep * old + new for old, new in zip(self._sums, fresh, strict=True)]

    def terms(self) -> tuple[float, float]:
        """Seconds per token at position 0, and what each position adds."""
        weight, first, second, pace, cross = self._sums
        if not weight:
            return self._first_s, 0.0
        mean, level = first / weight, pace / weight
        variance = second / weight - mean * mean
        if variance <= (SLOPE_SPREAD * max(mean, 1.0)) ** 2:
            return level, 0.0
        slope = (cross / weight - mean * level) / variance
        slope = min(max(slope, 0.0), level / max(mean, 1.0))  # neither faster at the end, nor less than nothing at the start
        return level - slope * mean, slope

    def seconds(self, start: int, end: int) -> float:
        """What tokens at [start, end) will cost."""
        base, slope = self.terms()
        return base * (end - start) + slope * (start + end - 1) / 2 * (end - start)


class Costs:
    """The measured costs of one device, and what follows from them."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """`clock` dates decisions; durations come from whoever measured them."""
        self._clock = clock
        self._rates: dict[tuple[str, Link], float] = {}  # seconds per byte, by model; "" is the machine's
        self._prefill: dict[str, PrefillFit] = {}
        self._models: dict[int, str] = {}  # by space
        self.decisions = DecisionRing()
        self.pace = CopyPace()

    # ------------------------------------------------------------------------------------------------------------------ what was measured

    def measured(self, link: Link, num_bytes: int, seconds: float) -> None:
        """A bandwidth was measured on purpose: it replaces what was known, for every model."""
        if num_bytes > 0 and seconds > 0:
            self._rates = {key: rate for key, rate in self._rates.items() if key[1] is not link}
            self._rates["", link] = seconds / num_bytes

    def know_model(self, model: str, space_ids: Sequence[int], prefill_s: float) -> None:
        """A model was loaded, and took so many seconds per token in its first prefill; 0: its driver does not say (invariant 1)."""
        self._models.update(dict.fromkeys(space_ids, model))
        if prefill_s > 0 and model not in self._prefill:
            self._prefill[model] = PrefillFit(prefill_s)

    def forget_model(self, model: str) -> None:
        """A model was removed."""
        self._models = {space_id: name for space_id, name in self._models.items() if name != model}
        self._rates = {key: rate for key, rate in self._rates.items() if key[0] != model}
        self._prefill.pop(model, None)

    def note_copy(self, link: Link, num_bytes: int, seconds: float, space_ids: Sequence[int] = ()) -> None:
        """Pages were copied in use: of one model, if all spaces are its."""
        if num_bytes < MIN_BYTES or seconds <= 0:
            return
        models = {self._models.get(space_id, "") for space_id in space_ids}
        for key in {("", link), (models.pop() if len(models) == 1 else "", link)}:
            fresh = seconds / num_bytes
            self._rates[key] = FORGET * self._rates.get(key, fresh) + (1 - FORGET) * fresh

    def note_prefill(self, space_id: int, start: int, end: int, seconds: float) -> None:
        """Tokens at [start, end) were computed. Models whose driver told no pace at load are not followed (invariant 1)."""
        fit = self._prefill.get(self._models.get(space_id, ""))
        if fit is not None and end - start >= MIN_PREFILL_TOKENS and seconds > 0:
            fit.note(start, end, seconds)

    # ------------------------------------------------------------------------------------------------------------------ what follows

    def copy_s(self, link: Link, num_bytes: int, space_id: int) -> float:
        """Seconds of a copy."""
        rate = self._rates.get((self._models.get(space_id, ""), link))
        return (self._rates.get(("", link), 0.0) if rate is None else rate) * num_bytes

    def recompute_s(self, space_id: int, start: int, end: int) -> float:
        """Seconds of computing tokens at [start, end) once more; infinite where no pace is known (invariant 1)."""
        if end <= start:
            return 0.0
        fit = self._prefill.get(self._models.get(space_id, ""))
        return float("inf") if fit is None else fit.seconds(start, end)

    def allowance(self, num_pages: int, *, has_rows: bool) -> Allowance:
        """What a plan may copy down ahead of need; `num_pages` bounds it until the bandwidth is known."""
        rate = self._rates.get(("", Link.DEVICE_TO_HOST), 0.0)
        return Allowance(self.pace.budget(rate, has_rows=has_rows), num_pages)

    def is_worth_keeping(self, page: Page) -> bool:
        """Whether a page that leaves the device would come back from the host tier sooner than by computing it again.

        One that stands before a page that was kept is kept too: invariant 3 would lose that one with it.
        """
        if is_cached(page):
            return False
        for table in page.holders:
            pages = table.pages[page.group]
            if page.idx + 1 < len(pages) and pages[page.idx + 1].is_below:
                return True
        space = page.space
        start = page.idx * space.page_tokens
        back_s = self.copy_s(Link.HOST_TO_DEVICE, space.device_frame_bytes, page.space_id)
        return back_s <= self.recompute_s(page.space_id, start, start + space.page_tokens)

    def note_dropped(self, pages: Iterable[Page]) -> None:
        """Pages were evicted without a copy: where they are cheaper to compute than to copy back, that goes into the ring, by context."""
        dropped: dict[PageTable, list[Page]] = {}
        for page in pages:
            dropped.setdefault(page.holders[0], []).append(page)
        for table, gone in dropped.items():
            start, end = min(page.idx for page in gone) * table.page_tokens, (max(page.idx for page in gone) + 1) * table.page_tokens
            num_bytes = sum(page.space.device_frame_bytes for page in gone)
            again_s = self.recompute_s(table.spaces[0].space_id, start, end)
            copy_s = self.copy_s(Link.HOST_TO_DEVICE, num_bytes, table.spaces[0].space_id)
            if again_s < copy_s:  # else there was no room for a copy
                model = self._models.get(table.spaces[0].space_id, "")
                costs = (Way.RECOMPUTE, again_s, Way.HOST, copy_s)
                self.decisions.record(Decision(self._clock(), model, table.label, end, start, *costs))

    def choose(self, table: PageTable, num_tokens: int, label: str) -> Decision:
        """The cheapest way to have tokens [0, num_tokens) of a table on the device; pages behind the first lost one cannot be had.

        Every prefix of what is there may be kept, with the rest computed again; the longest of the cheapest is chosen.
        """
        prefixes = self._prefixes(table, num_tokens)
        best = min(reversed(prefixes), key=lambda prefix: prefix.seconds)
        at_once = max((prefix for prefix in prefixes if prefix.slowest is Way.DEVICE), key=lambda prefix: prefix.num_tokens)
        chosen = best.slowest if best.num_tokens == num_tokens or best.slowest is not Way.DEVICE else Way.RECOMPUTE
        if chosen is not Way.RECOMPUTE:  # what comes behind the pages of the device could be computed instead; or all of it
            other, other_s = Way.RECOMPUTE, (prefixes[0] if chosen is Way.DEVICE else at_once).seconds
        else:
            other, other_s = (prefixes[-1].slowest if len(prefixes) > 1 else Way.RECOMPUTE), prefixes[-1].seconds
        return Decision(
            at=self._clock(),
            model=self._models.get(table.spaces[0].space_id, ""),
            label=label,
            num_tokens=num_tokens,
            keep_tokens=best.num_tokens,
            chosen=chosen,
            predicted_s=_known(best.seconds),
            alternative=other,
            alternative_s=_known(other_s),
            copied_bytes=best.copied_bytes,
        )

    def _prefixes(self, table: PageTable, num_tokens: int) -> list[_Prefix]:
        """What every prefix that can be kept would cost, the empty one first; those within the pages of the device count as one."""
        space_id, page_tokens = table.spaces[0].space_id, table.page_tokens
        num_pages = -(-num_tokens // page_tokens)
        resident = min(*table.resident, num_pages)
        prefixes = [_Prefix(0, Way.DEVICE, self.recompute_s(space_id, 0, num_tokens), 0)]
        fetch_s, copied, slowest = 0.0, 0, Way.DEVICE
        for idx in range(max(resident - 1, 0), min(num_pages, *map(len, table.pages))):
            pages = [group[idx] for group in table.pages]
            if any(page.is_lost for page in pages):
                break  # invariant 3
            for page, space in zip(pages, table.spaces, strict=True):
                if page.device_frame is None:
                    fetch_s += self._fetch_s(page, space)
                    copied += space.device_frame_bytes
                    slowest = Way.DISK if page.host_frame is None or slowest is Way.DISK else Way.HOST
            keep = min((idx + 1) * page_tokens, num_tokens)
            prefixes.append(_Prefix(keep, slowest, fetch_s + self.recompute_s(space_id, keep, num_tokens), copied))
        return prefixes

    def _fetch_s(self, page: Page, space: Space) -> float:
        """Seconds until a page that is on host or disk is on the device."""
        up_s = self.copy_s(Link.HOST_TO_DEVICE, space.device_frame_bytes, space.space_id)
        if page.host_frame is not None:
            return up_s
        return up_s + self.copy_s(Link.DISK_TO_HOST, space.host_frame_bytes, space.space_id)


class _Prefix(NamedTuple):
    """Tokens that are kept, the slowest tier that they come from, what that and computing the rest costs, and what is copied up."""

    num_tokens: int
    slowest: Way
    seconds: float
    copied_bytes: int


def _known(seconds: float) -> float | None:
    return None if seconds == float("inf") else seconds
