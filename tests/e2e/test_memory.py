"""Who holds what, why something waits, and whether all of it holds: a daemon with several tenants, as its administrator sees it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from kerneld_client import Client, Context, Limits, errors
from kerneld_client.memory_values import LimitOutcome, Memory, TierAccount
from tests.e2e.rig import FAKE, ROOT, DaemonRig, fake_model, script, until

MIB = 1 << 20
TOKEN_BYTES = 4096


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[DaemonRig]:
    """A daemon whose steps take twenty milliseconds, with twelve MiB of device memory for KV of four KiB per token."""
    own = DaemonRig(tmp_path, *FAKE, script(step_s=0.02), "kerneld.max_steps=1", "memory.page_file_bytes=8MiB")
    own.start()
    yield own
    own.clean_up()


@pytest.fixture
def k(rig: DaemonRig) -> Iterator[Client]:
    """An administrator; a model is there."""
    with rig.connect() as client:
        client.load(fake_model(rig.folder, kv_bytes_per_token=TOKEN_BYTES, max_positions=4096, weights_bytes=4 * MIB), name="toy")
        yield client


@pytest.fixture
def tenant(rig: DaemonRig, k: Client) -> Iterator[Tenants]:
    """Makes tenants."""
    with ExitStack() as stack:
        yield Tenants(rig, k, stack)


class Tenants:
    """Clients of tenants that are made as they are asked for."""

    def __init__(self, rig: DaemonRig, k: Client, stack: ExitStack) -> None:
        self._rig = rig
        self._k = k
        self._stack = stack

    def __call__(self, path: str, **limits: int) -> Client:
        self._k.add_tenant(path, limits=Limits(**limits))
        return self._stack.enter_context(self._rig.connect(token=self._k.add_token(path).token))


def filled(client: Client, num_tokens: int) -> Context:
    """A context with so many tokens."""
    context = client.alloc("toy")
    context.infer(tokens=[7] * (num_tokens - 2), max_tokens=2, temperature=0, ignore_eos=True).result()
    return context


def account(memory: Memory, owner: str, tier: str = "device") -> TierAccount:
    return next(each for each in memory.accounts if (each.owner, each.tier) == (owner, tier))


def run(rig: DaemonRig, *arguments: str) -> subprocess.CompletedProcess[str]:
    """kernelctl, as a person types it."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "sdk" / "python")])
    command = [sys.executable, "-P", "-m", "cli.main", "--socket", str(rig.socket), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": paths})


def offline_fsck(rig: DaemonRig) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "sdk" / "python")])
    command = [sys.executable, "-P", "-m", "cli.daemon", "fsck", f"--state={rig.state}", f"--socket={rig.socket}"]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": paths})


def test_the_ledger_shows_everybody_to_the_administrator_and_each_tenant_itself(k: Client, tenant: Tenants) -> None:
    ann, bob = tenant("lab/ann", device_guarantee_bytes=2 * MIB), tenant("bob")
    filled(ann, 640)
    filled(bob, 320)

    seen = k.memory()

    held = account(seen, "lab/ann")
    assert (held.kinds["kv"], held.guarantee_bytes, held.borrowed_bytes) == (640 * TOKEN_BYTES, 2 * MIB, 640 * TOKEN_BYTES - 2 * MIB)
    assert account(seen, "lab").used_bytes == held.used_bytes
    assert account(seen, "models").kinds == {"weights": 4 * MIB}
    device = seen.tiers[0]
    assert sum(sum(each.kinds.values()) for each in seen.accounts if each.tier == "device") == device.total_bytes - device.free_bytes
    assert {each.owner for each in bob.memory().accounts if each.tier == "device"} == {"bob", "models", "others"}
    assert account(bob.memory(), "others").kinds == {"kv": 640 * TOKEN_BYTES}


def test_a_guarantee_above_the_machine_is_refused_with_the_sum_and_who_has_the_others(k: Client, tenant: Tenants) -> None:
    tenant("lab/ann", device_guarantee_bytes=10 * MIB)
    tenant("bob")
    with pytest.raises(errors.WrongState) as refusal:
        k.set_tenant("bob", limits=Limits(device_guarantee_bytes=7 * MIB))
    facts = refusal.value.facts
    assert (refusal.value.reason, facts["outcome"], int(facts["sum_bytes"])) == ("GUARANTEE_CONFLICT", "conflict", 17 * MIB)
    assert json.loads(facts["holders"]) == {"lab/ann": 10 * MIB, "bob": 7 * MIB}
    with pytest.raises(errors.WrongState):
        k.set_tenant("lab", limits=Limits(device_bytes=9 * MIB))
    assert k.set_tenant("bob", limits=Limits(device_guarantee_bytes=6 * MIB)).changes[0].outcome is LimitOutcome.APPLIED


def test_whoever_changes_limits_that_somebody_changed_meanwhile_is_told(k: Client, tenant: Tenants) -> None:
    tenant("lab")
    seen = next(each for each in k.tenants() if each.path == "lab").revision
    assert k.set_tenant("lab", limits=Limits(host_bytes=MIB), revision=seen).revision != seen
    with pytest.raises(errors.Conflict) as refusal:
        k.set_tenant("lab", limits=Limits(host_bytes=2 * MIB), revision=seen)
    assert refusal.value.reason == "STALE_REVISION"


def test_a_limit_below_use_is_deferred_until_what_runs_has_ended(k: Client, tenant: Tenants) -> None:
    ann = tenant("ann")
    filled(ann, 320)
    stream = ann.alloc("toy").infer(tokens=[9] * 64, max_tokens=400, ignore_eos=True)
    next(stream)
    since = max(event.sequence for event in k.events())

    applied = k.set_tenant("ann", limits=Limits(device_bytes=4 * MIB)).changes[0]
    deferred = k.set_tenant("ann", limits=Limits(device_bytes=256 << 10)).changes[0]

    assert (applied.field, applied.outcome) == ("device_bytes", LimitOutcome.APPLIED)
    assert deferred.outcome is LimitOutcome.DEFERRED
    assert deferred.awaited_bytes > 0
    assert "running" in {holding.state for holding in deferred.awaited_from}
    stream.cancel()
    until(lambda: any(event.name == "LimitApplied" for event in k.events(since=since)))
    assert account(k.memory(), "ann").used_bytes <= 256 << 10
    assert account(k.memory(), "ann").excess_bytes == 0


@pytest.mark.parametrize("tier", ["host", "disk"])
def test_limits_of_the_lower_tiers_take_hold_while_nothing_runs(k: Client, tenant: Tenants, tier: str) -> None:
    ann = tenant("ann")
    contexts = [filled(ann, 640) for _ in range(3)]
    for context in contexts:
        context.suspend(to_disk=True)
    for context in contexts[:2]:
        context.resume()
        context.infer(tokens=[5], max_tokens=1, ignore_eos=True).result()
    until(lambda: account(k.memory(), "ann", tier).used_bytes > MIB)
    since = max(event.sequence for event in k.events())

    k.set_tenant("ann", limits=Limits(**{f"{tier}_bytes": 512 << 10}))

    until(lambda: any(event.name == "LimitApplied" and event.facts["tier"] == tier for event in k.events(since=since)))
    assert account(k.memory(), "ann", tier).used_bytes <= 512 << 10
    for context in contexts:
        context.resume()
        assert len(context.infer(tokens=[5], max_tokens=3, ignore_eos=True).result().tokens) == 3


def test_pins_are_capped_and_survive_a_restart(rig: DaemonRig, k: Client, tenant: Tenants) -> None:
    ann = tenant("ann", device_guarantee_bytes=2 * MIB)
    kept, other = filled(ann, 400), filled(ann, 400)
    assert kept.set(pinned=True).pinned_tokens == 400
    assert account(k.memory(), "ann").pinned_bytes == 400 * TOKEN_BYTES
    with pytest.raises(errors.QuotaExceeded) as refusal:
        other.set(pinned=True)
    assert (refusal.value.reason, refusal.value.facts["limit_bytes"]) == ("PINNED_TOO_MUCH", str(2 * MIB))

    rig.kill()
    rig.start()
    with rig.connect() as again:
        assert again.context(kept.id).stat().pinned_tokens == 400
        assert again.context(kept.id).truncate(100).pinned_tokens == 100
        assert again.context(kept.id).set(pinned=False).pinned_tokens == 0


def test_what_can_never_fit_names_the_smallest_change(k: Client, tenant: Tenants) -> None:
    ann = tenant("ann", device_bytes=2 * MIB)
    with pytest.raises(errors.CannotFit) as refusal:
        filled(ann, 1000)
    assert refusal.value.facts["remedy"] == "raise the device limit of ann to 4 MiB"
    assert "What would help: raise the device limit of ann to 4 MiB." in str(refusal.value)
    assert json.loads(refusal.value.facts["remedies"])[0]["action"] == "raise_limit"


def test_explain_says_what_a_request_waits_for_and_what_would_help(k: Client, tenant: Tenants) -> None:
    ann, bob = tenant("ann"), tenant("bob", max_running=1)
    stream = bob.alloc("toy").infer(tokens=[9] * 64, max_tokens=600, ignore_eos=True)
    next(stream)
    waiting = bob.alloc("toy")
    second = waiting.infer(tokens=[9] * 64, max_tokens=4, ignore_eos=True)

    until(lambda: waiting.stat().state != "idle")
    told = k.explain(context_id=waiting.id)
    assert [obstacle.code for obstacle in told.obstacles] == ["RUNNING_LIMIT"]
    assert told.queue is not None
    assert (told.queue.tenant_waiting, told.queue.running) == (1, 1)
    with pytest.raises(errors.NotFound):
        ann.explain(context_id=waiting.id)
    stream.cancel()
    assert len(second.result().tokens) == 4
    idle = k.explain(context_id=waiting.id)
    assert idle.state == "idle"
    assert idle.placements[0].tier == "device"


def test_a_model_that_does_not_fit_says_who_holds_the_device_and_what_would_help(rig: DaemonRig, k: Client, tenant: Tenants) -> None:
    ann = tenant("ann", device_guarantee_bytes=8 * MIB)
    filled(ann, 1900)
    huge = fake_model(rig.folder, "huge", weights_bytes=12 * MIB)
    with pytest.raises(errors.WrongState) as refusal:
        k.load(huge, name="huge")
    assert "What would help: " in str(refusal.value)
    assert json.loads(refusal.value.facts["holders"])["ann"] >= 7 * MIB
    told = run(rig, "explain", "huge").stdout
    assert "what would help, the smallest change first" in told
    assert account(k.memory(), "ann").used_bytes >= 7 * MIB, "what is guaranteed stays"


def test_a_pinned_model_in_the_way_is_to_be_unpinned(rig: DaemonRig, k: Client) -> None:
    k.pin("toy")
    huge = fake_model(rig.folder, "huge", weights_bytes=14 * MIB)
    with pytest.raises(errors.WrongState) as refusal:
        k.load(huge, name="huge")
    assert refusal.value.facts["remedy"] == "unpin the model toy (4 MiB)"
    ended = k.alloc("huge").infer(tokens=[9] * 8, max_tokens=2).result()
    assert "'huge' could not be loaded" in ended.detail
    assert "kernelctl explain huge" in ended.detail


def test_a_request_that_a_guarantee_leaves_no_room_is_told_whose_context_to_move_out(k: Client, tenant: Tenants) -> None:
    ann, bob = tenant("ann", device_guarantee_bytes=8 * MIB - 200 * 1024), tenant("bob")
    filled(ann, 2000)  # less than a page above its guarantee
    ended = bob.alloc("toy").infer(tokens=[9] * 1500, max_tokens=2, ignore_eos=True).result()
    assert str(ended.finish_reason) == "error"
    assert "What would help: suspend a context of ann to disk (8000 KiB)." in ended.detail


def test_explain_counts_pages_as_ps_does(rig: DaemonRig, k: Client, tenant: Tenants) -> None:
    context, other = filled(tenant("ann"), 640), filled(tenant("bob"), 641)
    assert [(place.tier, place.num_pages) for place in k.explain(context_id=k.alloc("toy").id).placements] == []
    context.suspend(to_disk=True)
    told = k.explain(context_id=context.id)
    assert [(place.tier, place.num_pages) for place in told.placements] == [("disk", 40)]
    assert context.stat().pages.disk == 40
    assert "before it is resumed" in told.summary
    rig.stop()
    rig.start()
    with rig.connect() as again:
        lost = sum(place.num_pages for place in again.explain(context_id=other.id).placements if place.tier in ("disk", "nowhere"))
    assert lost == 40, "none is forgotten, wherever it is"


def test_fsck_finds_everything_whole_and_then_what_was_damaged(rig: DaemonRig, k: Client, tenant: Tenants) -> None:
    image = filled(tenant("ann"), 200).checkpoint()
    online = run(rig, "fsck", "-o", "json")
    parts = {part["part"]: part for part in map(json.loads, online.stdout.splitlines())}
    assert online.returncode == 0
    assert {"books", "host tier", "disk tier", "images", "journal", "database", "audit log"} == parts.keys()
    assert (parts["images"]["num_checked"], parts["host tier"]["num_checked"] > 0) == (1, True)
    busy = offline_fsck(rig)
    assert busy.returncode == 1
    assert "kernelctl fsck" in busy.stderr

    rig.stop()
    assert offline_fsck(rig).returncode == 0
    page = next(path for path in (rig.state / "images" / "pages").rglob("*") if path.is_file())
    page.write_bytes(page.read_bytes()[:-1] + b"\xff")
    damaged = offline_fsck(rig)
    assert damaged.returncode == 1
    assert image.id in damaged.stdout
    assert "problem" in damaged.stdout
