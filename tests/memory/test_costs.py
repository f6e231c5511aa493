"""What a page costs to have again, and which way is chosen."""

from __future__ import annotations

import pytest

from memory.costs import Costs, Link, PrefillFit
from memory.decisions import RING, Decision, DecisionRing, Way
from memory.page import Space
from memory.table import Page, PageTable

PT = 4
SPACE = Space(1, PT, 1 << 20, (1 << 20) + 4096)
HOST_S, DISK_S = 0.001, 0.01  # per page


def known_costs(prefill_s: float = 0.001) -> Costs:
    """Costs of a model "m": a page comes from the host in 1 ms, from the disk in 11 ms, is computed in 4 `prefill_s`."""
    costs = Costs(clock=lambda: 7.0)
    costs.measured(Link.HOST_TO_DEVICE, SPACE.device_frame_bytes, HOST_S)
    costs.measured(Link.DISK_TO_HOST, SPACE.host_frame_bytes, DISK_S)
    costs.know_model("m", (1,), prefill_s)
    return costs


def table_of(places: str) -> PageTable:
    """A table with one page per letter: d(evice), h(ost), f(ar, on disk), or . for a lost one."""
    table = PageTable("lab", (SPACE,))
    for idx, place in enumerate(places):
        page = Page(1, 0, idx)
        page.device_frame = idx if place == "d" else None
        page.host_frame = idx if place == "h" else None
        page.disk_frame = idx if place == "f" else None
        page.holders.append(table)
        table.pages[0].append(page)
    table.resident[0] = len(places) - len(places.lstrip("d"))
    return table


@pytest.mark.parametrize(
    ("places", "prefill_s", "chosen", "keep_tokens", "predicted_s", "alternative", "alternative_s"),
    [
        ("dddd", 0.001, Way.DEVICE, 16, 0.0, Way.RECOMPUTE, 0.016),
        ("ddhh", 0.001, Way.HOST, 16, 0.002, Way.RECOMPUTE, 0.008),
        ("hhhh", 0.0001, Way.RECOMPUTE, 0, 0.0016, Way.HOST, 0.004),
        ("ddhh", 0.0001, Way.RECOMPUTE, 8, 0.0008, Way.HOST, 0.002),
        ("hhff", 0.001, Way.HOST, 8, 0.002 + 0.008, Way.RECOMPUTE, 0.016),
        ("hhff", 0.01, Way.DISK, 16, 0.002 + 0.022, Way.RECOMPUTE, 0.16),
        ("hh.h", 0.001, Way.HOST, 8, 0.002 + 0.008, Way.RECOMPUTE, 0.016),
        ("d...", 0.001, Way.RECOMPUTE, 4, 0.012, Way.DEVICE, 0.012),
        ("....", 0.001, Way.RECOMPUTE, 0, 0.016, Way.RECOMPUTE, 0.016),
    ],
)
def test_the_cheapest_prefix_is_kept_and_the_rest_computed(
    *, places: str, prefill_s: float, chosen: Way, keep_tokens: int, predicted_s: float, alternative: Way, alternative_s: float
) -> None:
    decision = known_costs(prefill_s).choose(table_of(places), 16, "ctx")

    assert (decision.chosen, decision.keep_tokens, decision.alternative) == (chosen, keep_tokens, alternative)
    assert decision.predicted_s == pytest.approx(predicted_s)
    assert decision.alternative_s == pytest.approx(alternative_s)
    assert (decision.at, decision.model, decision.label, decision.num_tokens) == (7.0, "m", "ctx", 16)


def test_without_a_pace_of_prefill_everything_that_is_there_is_kept() -> None:
    decision = known_costs(prefill_s=0.0).choose(table_of("dhf."), 16, "ctx")

    assert (decision.chosen, decision.keep_tokens, decision.predicted_s, decision.alternative_s) == (Way.DISK, 12, None, None)


def test_a_copy_that_was_never_measured_is_free() -> None:
    costs = Costs(clock=lambda: 0.0)
    costs.know_model("m", (1,), 1e-9)

    assert costs.choose(table_of("hh"), 8, "ctx").keep_tokens == 8


def test_no_tokens_cost_nothing_in_any_way() -> None:
    decision = known_costs().choose(table_of(""), 0, "ctx")

    assert (decision.chosen, decision.predicted_s, decision.keep_tokens) == (Way.DEVICE, 0.0, 0)


def test_a_page_whose_recompute_is_cheaper_than_its_way_back_is_not_worth_keeping() -> None:
    page = table_of("d").pages[0][0]

    assert known_costs(prefill_s=0.001).is_worth_keeping(page)
    assert not known_costs(prefill_s=0.0001).is_worth_keeping(page)
    assert known_costs(prefill_s=0.0).is_worth_keeping(page)


def test_a_page_before_one_that_was_kept_is_worth_keeping() -> None:
    first, second, third = table_of("dhd").pages[0]

    kept = [known_costs(prefill_s=0.0001).is_worth_keeping(page) for page in (first, second, third)]

    assert kept == [True, False, False]


def test_copies_in_use_move_the_rate_of_their_model_and_the_machines() -> None:
    costs = known_costs()
    costs.know_model("other", (2,), 0.001)
    before = costs.copy_s(Link.HOST_TO_DEVICE, 1 << 20, 1)

    for _ in range(50):
        costs.note_copy(Link.HOST_TO_DEVICE, 1 << 20, 0.003, (1,))
    costs.note_copy(Link.HOST_TO_DEVICE, 1 << 20, 0.001, (2,))
    costs.note_copy(Link.HOST_TO_DEVICE, 100, 5.0, (2,))  # too small to tell anything

    assert before == pytest.approx(0.001)
    assert costs.copy_s(Link.HOST_TO_DEVICE, 1 << 20, 1) == pytest.approx(0.003, rel=0.01)
    assert costs.copy_s(Link.HOST_TO_DEVICE, 1 << 20, 2) == pytest.approx(0.001)
    assert costs.copy_s(Link.HOST_TO_DEVICE, 1 << 20, 3) == pytest.approx(0.0026, rel=0.01)  # of no model: the machine's


def test_a_new_measurement_replaces_what_was_learned() -> None:
    costs = known_costs()
    costs.note_copy(Link.HOST_TO_DEVICE, 1 << 20, 0.5, (1,))

    costs.measured(Link.HOST_TO_DEVICE, 1 << 20, 0.002)

    assert costs.copy_s(Link.HOST_TO_DEVICE, 1 << 20, 1) == pytest.approx(0.002)


def test_prefill_in_use_replaces_the_pace_of_the_load() -> None:
    costs = known_costs(prefill_s=0.5)

    costs.note_prefill(1, 0, 100, 0.1)
    costs.note_prefill(1, 0, 2, 9.0)  # too few tokens to tell anything

    assert costs.recompute_s(1, 0, 50) == pytest.approx(0.05)


def test_a_model_that_told_no_pace_is_not_followed() -> None:
    costs = known_costs(prefill_s=0.0)

    costs.note_prefill(1, 0, 100, 0.1)

    assert costs.recompute_s(1, 0, 50) == float("inf")


def test_a_removed_model_leaves_no_figures() -> None:
    costs = known_costs()
    costs.note_copy(Link.HOST_TO_DEVICE, 1 << 20, 0.5, (1,))

    costs.forget_model("m")

    assert costs.recompute_s(1, 0, 4) == float("inf")
    assert costs.choose(table_of("h"), 4, "ctx").model == ""


def test_prefill_that_slows_with_position_is_fitted() -> None:
    fit = PrefillFit(1.0)

    for start in (0, 256, 512, 768) * 6:
        fit.note(start, start + 256, sum(0.001 + 1e-6 * position for position in range(start, start + 256)))

    assert fit.terms() == pytest.approx((0.001, 1e-6), rel=1e-3)
    assert fit.seconds(1000, 1200) == pytest.approx(sum(0.001 + 1e-6 * position for position in range(1000, 1200)), rel=1e-3)


def test_prefill_at_one_position_alone_shows_no_slope() -> None:
    fit = PrefillFit(1.0)

    fit.note(0, 64, 0.064)
    fit.note(0, 64, 0.128)

    base, slope = fit.terms()
    assert slope == 0.0
    assert 0.001 < base < 0.002


def test_prefill_never_gets_cheaper_with_position() -> None:
    fit = PrefillFit(1.0)

    fit.note(0, 256, 1.0)
    fit.note(512, 768, 0.1)

    assert fit.terms()[1] == 0.0
    assert fit.terms()[0] > 0.0


def test_the_ring_keeps_the_latest_and_gives_them_newest_first() -> None:
    ring = DecisionRing()
    for idx in range(RING + 5):
        ring.record(Decision(float(idx), "ab"[idx % 2], "ctx", 16, 16, Way.HOST, 0.1, Way.RECOMPUTE, 0.2))

    assert (len(ring), ring.num_recorded) == (RING, RING + 5)
    assert [decision.at for decision in ring.latest(2)] == [1004.0, 1003.0]
    assert [decision.at for decision in ring.latest(2, "b")] == [1003.0, 1001.0]


def test_what_a_decision_cost_is_told_once() -> None:
    ring = DecisionRing()
    decision = known_costs().choose(table_of("hh"), 8, "ctx")
    ring.record(decision)

    ring.settle(decision, 0.004)
    ring.settle(decision, 0.9)

    assert ring.latest()[0].measured_s == 0.004


def test_pages_that_were_dropped_rather_than_copied_are_in_the_ring_by_context() -> None:
    costs, table = known_costs(prefill_s=0.0001), table_of("....")
    table.label, table.reach = "ctx", 16

    costs.note_dropped(table.pages[0][2:])
    known_costs().note_dropped(table.pages[0])  # these were lost for want of room: nothing was chosen

    [decision] = costs.decisions.latest()
    assert (decision.label, decision.chosen, decision.keep_tokens, decision.num_tokens) == ("ctx", Way.RECOMPUTE, 8, 16)
    assert (decision.predicted_s, decision.alternative_s) == (pytest.approx(0.0008), pytest.approx(0.002))
