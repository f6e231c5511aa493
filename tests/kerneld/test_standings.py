"""How tenants stand among their siblings, for displays."""

from __future__ import annotations

from kerneld.fairshare import FairShare
from kerneld.standings import Standing


def test_standings_tell_weight_counter_lag_service_and_who_waits() -> None:
    shares = FairShare()
    shares.add("lab", 2)
    shares.add("lab/ann")
    shares.add("solo")
    shares.set_factor("lab", 500)
    shares.charge("lab/ann", 30)
    shares.charge("solo", 100)
    for path in ("lab/ann", "lab/ann", "lab", "solo"):
        shares.enqueue(path)

    standings = {each.path: each for each in shares.standings()}

    assert standings["lab"] == Standing("lab", 2, 500, counter_us=30, lag_us=0, service_us=30, is_active=True, num_waiting=3)
    assert standings["solo"] == Standing("solo", 1, 1000, counter_us=100, lag_us=70, service_us=100, is_active=True, num_waiting=1)
    assert list(standings) == ["lab", "lab/ann", "solo"]


def test_who_waits_for_nothing_may_be_behind() -> None:
    shares = FairShare()
    for path in ("idle", "busy"):
        shares.add(path)
    shares.enqueue("busy")
    shares.charge("busy", 40)

    idle = next(each for each in shares.standings() if each.path == "idle")

    assert (idle.lag_us, idle.is_active, idle.num_waiting) == (-40, False, 0)


def test_a_closed_tenant_is_not_active_but_its_requests_wait() -> None:
    shares = FairShare()
    shares.add("a")
    shares.enqueue("a")
    shares.set_open("a", False)

    [standing] = shares.standings()

    assert (standing.is_active, standing.num_waiting) == (False, 1)
