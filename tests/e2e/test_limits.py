"""Limits of tenants, and whom they protect: counts and facts, never the clock."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from kerneld_client import Client, Context, Limits, errors
from kerneld_client.values import LimitMode
from tests.e2e.rig import FAKE, DaemonRig, fake_model, script, until


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonRig]:
    """A daemon whose steps take five milliseconds, with two rows and a queue of twelve."""
    settings = (script(step_s=0.005), "kerneld.max_rows=2", "kerneld.max_queued=12", "kerneld.max_steps=1")
    own = DaemonRig(tmp_path_factory.mktemp("limits"), *FAKE, *settings)
    own.start()
    with own.connect() as k:
        k.load(fake_model(own.folder), name="toy")
        k.load(fake_model(own.folder, "wide", kv_bytes_per_token=4096, max_positions=4096), name="wide")
    yield own
    own.clean_up()


@pytest.fixture
def k(rig: DaemonRig) -> Iterator[Client]:
    """An administrator."""
    with rig.connect() as client:
        yield client


@pytest.fixture
def tenants(rig: DaemonRig, k: Client) -> Iterator[Tenants]:
    """Makes tenants with limits, and takes them away again."""
    with ExitStack() as stack:
        yield Tenants(rig, k, stack)


class Tenants:
    """Tenants of one test."""

    def __init__(self, rig: DaemonRig, k: Client, stack: ExitStack) -> None:
        self._rig = rig
        self._k = k
        self._stack = stack

    def add(self, path: str, **limits: Any) -> Client:
        """A client of a new tenant."""
        self._k.add_tenant(path, limits=Limits(**limits))
        self._stack.callback(self._k.remove_tenant, path, force=True)
        return self._stack.enter_context(self._rig.connect(token=self._k.add_token(path).token))


def kernelctl(rig: DaemonRig, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What a person types, and what it says."""
    command = [sys.executable, "-P", "-m", "cli.main", "--socket", str(rig.socket), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def run(context: Context, num_tokens: int) -> int:
    """Generate; says how many tokens came."""
    return len(context.infer(tokens=[5, 6], max_tokens=num_tokens, temperature=0, ignore_eos=True).result().tokens)


def test_contexts_are_counted_with_those_of_tenants_beneath(k: Client, tenants: Tenants) -> None:
    lab, ann = tenants.add("lab", max_contexts=2), tenants.add("lab/ann")
    first = lab.alloc("toy")
    ann.alloc("toy")
    for client in (lab, ann):
        with pytest.raises(errors.QuotaExceeded) as refusal:
            client.alloc("toy")
        assert {"limit": "max_contexts", "value": "2", "holder": "lab"}.items() <= refusal.value.facts.items()
    with pytest.raises(errors.QuotaExceeded):
        first.fork()
    first.free()
    assert ann.alloc("toy").stat().tenant == "lab/ann"


def test_requests_above_max_running_wait_and_those_above_max_queued_are_refused(k: Client, tenants: Tenants) -> None:
    lab = tenants.add("lab", max_running=1, max_queued=2)
    contexts = [lab.alloc("toy") for _ in range(4)]
    streams = [contexts[0].infer(tokens=[5], max_tokens=400, ignore_eos=True)]
    next(streams[0])
    streams += [context.infer(tokens=[5], max_tokens=3, ignore_eos=True) for context in contexts[1:3]]

    def counts() -> tuple[int, int]:
        tenant = next(tenant for tenant in k.tenants() if tenant.path == "lab")
        return tenant.num_running, tenant.num_queued

    until(lambda: counts() == (1, 2))
    with pytest.raises(errors.QueueFull) as refusal:
        run(contexts[3], 1)
    assert refusal.value.facts["limit"] == "max_queued"
    assert refusal.value.retry_after_s is not None
    streams[0].cancel()
    assert [len(stream.result().tokens) for stream in streams[1:]] == [3, 3]


@pytest.mark.parametrize(("limit", "used"), [("requests_per_minute", 6), ("tokens_per_minute", 600)])
def test_a_rate_says_exactly_when_to_come_again(tenants: Tenants, limit: str, used: int) -> None:
    lab = tenants.add("lab", **{limit: used})
    context = lab.alloc("toy")

    def use_it_up() -> None:
        for _ in range(20):
            context.infer(tokens=[5] * 90, max_tokens=10, ignore_eos=True).result()
            context.truncate(0)

    with pytest.raises(errors.QuotaExceeded) as refusal:
        use_it_up()
    assert refusal.value.facts["limit"] == limit
    assert refusal.value.facts["holder"] == "lab"
    assert refusal.value.retry_after_s is not None
    assert 0 < refusal.value.retry_after_s <= 10.0  # until one request, or a hundred tokens, are earned again
    assert f"try again in {math.ceil(refusal.value.retry_after_s)} s" in str(refusal.value)


def test_an_administrator_sets_limits_soft_and_hard_and_sees_them(rig: DaemonRig, k: Client, tenants: Tenants) -> None:
    lab = tenants.add("guest")
    options = (
        "--requests-per-minute",
        "2",
        "--loads-per-hour",
        "4",
        "--soft",
        "loads_per_hour",
        "--max-running",
        "3",
        "--hard",
        "max_running",
    )
    assert kernelctl(rig, "tenant", "set", "guest", *options).returncode == 0
    shown = kernelctl(rig, "tenant", "show", "guest").stdout
    facts = {line.split("  ")[0]: line.split("  ")[-1].strip() for line in shown.splitlines()}
    assert {"requests/min": "2 hard", "loads/hour": "4 soft", "max running": "3 hard"}.items() <= facts.items()
    contexts = [lab.alloc("toy") for _ in range(3)]
    for context in contexts[:2]:
        run(context, 2)
    with pytest.raises(errors.QuotaExceeded) as refusal:
        run(contexts[2], 2)
    assert str(refusal.value).startswith("Tenant 'guest' may use 2 requests per minute; try again in ")
    changed = kernelctl(rig, "tenant", "set", "guest", "--soft", "requests_per_minute", "-o", "json")
    assert json.loads(changed.stdout)["limits"]["modes"] == {"loads_per_hour": "soft", "max_running": "hard", "requests_per_minute": "soft"}
    assert run(contexts[2], 2) == 2, "nobody else is there: it need not wait for its minute"


def test_requests_above_a_soft_rate_run_when_nobody_else_is_there(k: Client, tenants: Tenants) -> None:
    calm, busy = tenants.add("calm", requests_per_minute=1, modes={"requests_per_minute": LimitMode.SOFT}), tenants.add("busy")
    work = [busy.alloc("toy").infer(tokens=[5], max_tokens=300, ignore_eos=True) for _ in range(4)]
    until(lambda: k.top().running == 2)
    since = max(event.sequence for event in k.events()) + 1
    contexts = [calm.alloc("toy") for _ in range(2)]
    limited = [context.infer(tokens=[5], max_tokens=3, ignore_eos=True) for context in contexts]
    assert [len(stream.result().tokens) for stream in limited] == [3, 3]
    for stream in work:
        stream.result()
    admitted = [event.facts["tenant"] for event in k.events(since=since) if event.name == "RequestAdmitted"]
    assert admitted[-1] == "calm"


def test_running_requests_above_a_hard_limit_are_refused(tenants: Tenants) -> None:
    lab = tenants.add("lab", max_running=1, modes={"max_running": LimitMode.HARD})
    contexts = [lab.alloc("toy") for _ in range(2)]
    stream = contexts[0].infer(tokens=[5], max_tokens=400, ignore_eos=True)
    next(stream)
    with pytest.raises(errors.QuotaExceeded, match="Tenant 'lab' has 1 request, as many as may run or wait") as refusal:
        run(contexts[1], 1)
    assert (refusal.value.facts["limit"], refusal.value.facts["retry"]) == ("max_running", "estimate")
    stream.cancel()
    stream.result()
    assert run(contexts[1], 1) == 1


def test_who_reads_a_refusal_is_told_what_to_do(rig: DaemonRig, k: Client, tenants: Tenants) -> None:
    tenants.add("lab", requests_per_minute=1)
    token = rig.folder / "token"
    token.write_text(k.add_token("lab").token)
    token.chmod(0o600)
    with rig.connect(token=token.read_text()) as person:
        context = person.alloc("toy")
        run(context, 2)
    refused = kernelctl(rig, "--token-file", str(token), "infer", context.id)
    assert refused.returncode == 6
    assert re.fullmatch(r"error: Tenant 'lab' may use 1 request per minute; try again in \d+ s\.\n", refused.stderr)


def test_bad_limits_and_weights_say_what_is_accepted(rig: DaemonRig, k: Client, tenants: Tenants) -> None:
    tenants.add("lab")
    for arguments, told in (
        (("--weight", "0"), "0 is not a weight: use 1 to 10000. Who is to get only what others leave uses contexts of the class idle"),
        (("--soft", "max_contexts"), "'max_contexts' is always hard, or is no limit; soft or hard can be max_running,"),
        (("--requests-per-minute", "-1"), "-1 is not in the range x>=0"),
    ):
        refused = kernelctl(rig, "tenant", "set", "lab", *arguments)
        assert (refused.returncode, told in " ".join(refused.stderr.split())) == (2, True), refused.stderr
    with pytest.raises(errors.InvalidArgument, match=r"modes\['max_contexts'\]: is always hard; soft or hard can be requests_per_minute"):
        k.set_tenant("lab", limits=Limits(max_contexts=1, modes={"max_contexts": LimitMode.SOFT}))
    with pytest.raises(errors.InvalidArgument, match=r"modes\['pages'\]: is no limit"):
        k.set_tenant("lab", limits=Limits(modes={"pages": LimitMode.SOFT}))
    with pytest.raises(errors.InvalidArgument, match="weight: use 1 to 10000; it is 0"):
        k.set_tenant("lab", weight=0)
    with pytest.raises(errors.InvalidArgument, match="weight: use 1 to 10000; it is 0"):
        k.add_tenant("eve", weight=0)
    assert (next(t.weight for t in k.tenants() if t.path == "lab"), "eve" in {t.path for t in k.tenants()}) == (1, False)


def test_what_was_used_of_a_rate_outlives_kill_9(tmp_path: Path) -> None:
    own = DaemonRig(tmp_path, *FAKE)
    try:
        own.start()
        with own.connect() as k:
            k.load(fake_model(own.folder), name="toy")
            k.add_tenant("lab", limits=Limits(requests_per_minute=2))
            token = k.add_token("lab").token
        with own.connect(token=token) as lab:
            for _ in range(2):
                run(lab.alloc("toy"), 2)
        own.kill()
        own.start()
        with own.connect(token=token) as lab:
            with pytest.raises(errors.QuotaExceeded) as refusal:
                run(lab.alloc("toy"), 2)
            assert 0 < (refusal.value.retry_after_s or 0) <= 31
    finally:
        own.clean_up()


def test_what_can_never_fit_its_tenant_is_refused_with_needs_and_limit(tenants: Tenants) -> None:
    lab = tenants.add("lab", device_bytes=256 << 10)
    with pytest.raises(errors.KerneldError) as refusal:
        run(lab.alloc("wide"), 2000)
    assert refusal.value.code.name == "FAILED_PRECONDITION"
    facts = refusal.value.facts
    assert (int(facts["limit_bytes"]), int(facts["needed_bytes"]) > 2000 * 4096) == (256 << 10, True)


def test_the_queue_of_the_daemon_is_bounded(k: Client) -> None:
    contexts = [k.alloc("toy") for _ in range(16)]
    streams = [context.infer(tokens=[5], max_tokens=300, ignore_eos=True) for context in contexts[:2]]
    until(lambda: k.top().running == 2)
    streams += [context.infer(tokens=[5], max_tokens=3, ignore_eos=True) for context in contexts[2:]]
    refused: list[str] = []
    for stream in streams:
        try:
            stream.result()
        except errors.QueueFull as refusal:
            refused.append(refusal.facts["limit"])
    assert refused == ["max_queued"] * (16 - 2 - 12)
    for context in contexts:
        context.free()


def test_a_fork_storm_of_one_tenant_leaves_the_others_their_turn(k: Client, tenants: Tenants) -> None:
    storm, calm = tenants.add("storm", max_contexts=100, max_queued=8), tenants.add("calm")
    parent = storm.alloc("toy")
    run(parent, 30)
    forks = [parent.fork() for _ in range(99)]
    with pytest.raises(errors.QuotaExceeded):
        parent.fork()
    streams = [fork.infer(tokens=[7], max_tokens=200, ignore_eos=True, detach_grace_s=0) for fork in forks[:10]]
    next(streams[0])
    context = calm.alloc("toy")
    since = max(event.sequence for event in k.events()) + 1
    assert run(context, 20) == 20
    ended = [event for event in k.events(since=since) if event.name == "RequestFinished"]
    assert sum(event.facts["tenant"] == "storm" for event in ended) <= 2  # as many as there are rows
    for stream in streams:
        stream.close()


def admitted_order(k: Client, since: int, contexts: list[Context]) -> list[int]:
    """The contexts, by their place in the list, in the order in which their requests got rows."""
    of_request = {e.facts["request"]: e.facts["context"] for e in k.events(since=since) if e.name == "RequestArrived"}
    order = [of_request.get(e.facts["request"], "") for e in k.events(since=since) if e.name == "RequestAdmitted"]
    ids = [context.id for context in contexts]
    return [ids.index(context_id) for context_id in order if context_id in ids]


def test_a_persons_requests_are_served_by_niceness_then_arrival(k: Client, tenants: Tenants) -> None:
    lab = tenants.add("lab", max_running=1)
    busy = lab.alloc("toy")
    stream = busy.infer(tokens=[5], max_tokens=900, ignore_eos=True)
    next(stream)
    contexts = [lab.alloc("toy", nice=nice) for nice in (10, 0, -10, 0)]
    since = max(event.sequence for event in k.events()) + 1
    waiting = []
    for idx, context in enumerate(contexts):
        waiting.append(context.infer(tokens=[5], max_tokens=3, ignore_eos=True))
        until(lambda seen=idx: sum(e.name == "RequestArrived" for e in k.events(since=since)) == seen + 1)  # type: ignore[misc]
    stream.cancel()
    for one in waiting:
        one.result()
    assert admitted_order(k, since, contexts) == [2, 1, 3, 0]
