"""More models than fit: the demo model under three names on an arena for one, asked in turn, at once, and across deaths."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from kerneld_client import Client, Limits, errors
from tests.e2e.rig import MODEL, DaemonRig

NAMES = ("red", "green", "blue")
PROMPT = "Once upon a time there was"
SETTINGS = (
    "memory.device_bytes=40MiB",  # the model takes 24
    "memory.host_bytes=192MiB",
    "memory.slab_bytes=1MiB",
    "memory.min_residency_s=0",
    "memory.max_model_wait_s=0.2",
    "kerneld.disk_reserve_bytes=0",
)


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonRig]:
    """A daemon that knows the model three times."""
    own = DaemonRig(tmp_path_factory.mktemp("turns"), *SETTINGS)
    own.start()
    with own.connect() as k:
        for name in NAMES:
            k.register(MODEL, name=name)
    yield own
    own.clean_up()


@pytest.fixture
def k(rig: DaemonRig) -> Iterator[Client]:
    """An administrator."""
    with rig.connect() as client:
        yield client


def say(k: Client, name: str, num_tokens: int = 32) -> list[int]:
    """What a new context on a model says."""
    return list(k.alloc(name).infer(PROMPT, max_tokens=num_tokens, temperature=0, ignore_eos=True).result().tokens)


def loads(k: Client) -> list[tuple[str, bool]]:
    """Every load: of which model, and whether all of it came from the host tier."""
    events = [event.facts for event in k.events() if event.name == "ModelLoaded"]
    return [(facts["model"], facts["host_bytes"] == facts["size_bytes"]) for facts in events]


def test_models_asked_in_turn_say_the_same_and_come_back_from_the_host_tier(k: Client) -> None:
    told = say(k, "red")
    for _ in range(2):
        for name in NAMES:
            assert say(k, name) == told
    states = {name: k.model(name) for name in NAMES}
    assert [model.tier for model in states.values()] == ["host", "host", "device"]
    assert all(model.host_bytes == model.bytes for model in states.values())
    assert [is_warm for _, is_warm in loads(k)] == [False] * 3 + [True] * 3


def test_requests_on_all_of_them_at_once_are_answered(k: Client) -> None:
    told = say(k, "red", 64)
    answers: dict[str, list[int]] = {}
    askers = [threading.Thread(target=lambda name=name: answers.update({name: say(k, name, 64)})) for name in NAMES]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join(timeout=120)
    assert answers == dict.fromkeys(NAMES, told)


def test_the_seconds_of_loads_are_charged_whole_to_those_that_were_served(k: Client) -> None:
    say(k, "red")
    since = max(event.sequence for event in k.events()) + 1
    for name in ("green", "blue", "red"):
        say(k, name)
    events = [event for event in k.events(since=since) if event.name in ("ModelLoaded", "LoadCharged")]
    loaded = {event.facts["model"]: round(float(event.facts["seconds"]) * 1e6) for event in events if event.name == "ModelLoaded"}
    tenant = k.whoami().tenant
    paid = [event.facts for event in events if event.name == "LoadCharged" and event.facts["model"] in ("green", "blue")]
    assert [(facts["tenant"], int(facts["load_us"])) for facts in paid] == [(tenant, loaded[facts["model"]]) for facts in paid]
    assert len(paid) == 2


def test_loads_above_the_limit_of_a_tenant_are_refused_and_told_when_to_come(rig: DaemonRig, k: Client) -> None:
    say(k, "red")
    k.add_tenant("guest", limits=Limits(loads_per_hour=1))
    try:
        with rig.connect(token=k.add_token("guest").token) as guest:
            assert len(say(guest, "red", 4)) == 4, "it is there, and costs no load"
            assert len(say(guest, "green", 4)) == 4
            with pytest.raises(errors.QuotaExceeded, match="Tenant 'guest' may start 1 load of models per hour; try again in") as refusal:
                say(guest, "blue", 4)
            assert 3000 < (refusal.value.retry_after_s or 0) <= 3601
            say(k, "blue")
            assert len(say(guest, "blue", 4)) == 4, "another one has loaded it"
    finally:
        k.remove_tenant("guest", force=True)


def test_a_pinned_model_stays_through_the_death_of_its_worker(rig: DaemonRig, k: Client) -> None:
    told = say(k, "red")
    kernelctl = [sys.executable, "-P", "-m", "cli.main", "--socket", str(rig.socket), "model"]
    shown = subprocess.run([*kernelctl, "pin", "red", "-o", "json"], capture_output=True, text=True, check=True)
    assert json.loads(shown.stdout)["is_pinned"]
    with_no_room = k.alloc("green").infer(PROMPT, max_tokens=4, ignore_eos=True).result()
    assert with_no_room.finish_reason == "error"
    assert k.model("red").tier == "device"
    rig.kill_worker(k)
    assert say(k, "red") == told
    assert loads(k)[-1] == ("red", True), "the image outlived the worker"
    k.unpin("red")
    assert say(k, "green") == told
