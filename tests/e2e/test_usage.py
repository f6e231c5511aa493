"""Usage and shares of a real daemon: they add up with what the streams said, before and after a restart and a death."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kerneld_client import Client, errors
from kerneld_client.values import Usage
from tests.e2e.rig import FAKE, ROOT, DaemonRig, fake_model

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "sdk" / "python")])}
TENANTS = {"lab/ann": 1, "lab/bob": 3}


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[DaemonRig]:
    """A daemon on a fake device."""
    own = DaemonRig(tmp_path, *FAKE)
    own.start()
    yield own
    own.clean_up()


def kernelctl(rig: DaemonRig, *arguments: str) -> str:
    """What a command prints that succeeds."""
    command = [sys.executable, "-P", "-m", "cli.main", f"--socket={rig.socket}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def records(rig: DaemonRig, *arguments: str) -> dict[str, dict[str, Any]]:
    """What a command lists, by tenant."""
    return {record["tenant"]: record for record in json.loads(kernelctl(rig, *arguments, "-o", "json"))}


def tokens_of(record: dict[str, Any]) -> tuple[int, int, int, int]:
    return record["requests"], record["input_tokens"], record["cached_tokens"], record["output_tokens"]


def work(rig: DaemonRig, tokens: dict[str, str], num_requests: int) -> dict[str, tuple[int, int, int, int]]:
    """Let every tenant run requests, each of them twice; what their streams said."""
    said = {}
    for number, (tenant, token) in enumerate(tokens.items()):
        with rig.connect(token=token) as client:
            usages = [run(client, 10 * number + idx // 2, 5 + number) for idx in range(2 * num_requests)]
        fields = ((1, usage.input_tokens, usage.cached_tokens, usage.output_tokens) for usage in usages)
        said[tenant] = tuple(map(sum, zip(*fields, strict=True)))
    return said  # type: ignore[return-value]


def run(client: Client, seed: int, max_tokens: int) -> Usage:
    """One request on a context of its own."""
    prompt = [3 + (seed * 97 + idx) % 200 for idx in range(40)]
    usage = client.alloc("toy").infer(tokens=prompt, max_tokens=max_tokens, temperature=0, ignore_eos=True).result().usage
    assert usage is not None
    return usage


def test_usage_is_what_the_streams_said_and_outlives_the_daemon(rig: DaemonRig) -> None:
    with rig.connect() as k:
        k.load(fake_model(rig.folder), name="toy")
        for tenant, weight in TENANTS.items():
            k.add_tenant(tenant, weight=weight)
        tokens = {tenant: k.add_token(tenant).token for tenant in TENANTS}

    first = work(rig, tokens, 2)
    found = records(rig, "usage", "--since", "1h")
    assert {tenant: tokens_of(found[tenant]) for tenant in TENANTS} == first
    assert all(found[tenant]["cached_tokens"] > 0 and found[tenant]["service_us"] > 0 for tenant in TENANTS)
    totals = {tenant.path: (tenant.input_tokens, tenant.output_tokens) for tenant in rig.connect().tenants()}
    assert {tenant: totals[tenant] for tenant in TENANTS} == {tenant: (said[1], said[3]) for tenant, said in first.items()}

    assert rig.stop() == 0
    rig.start()
    rig.connect().close()
    kept = records(rig, "usage")
    assert {tenant: tokens_of(kept[tenant]) for tenant in TENANTS} == first
    assert {tenant: kept[tenant]["device_s"] for tenant in TENANTS} == {tenant: found[tenant]["device_s"] for tenant in TENANTS}

    second = work(rig, tokens, 1)
    service = {tenant: record["service_us"] for tenant, record in records(rig, "share").items()}
    rig.kill()  # what was not written is lost, at most what the last 15 seconds brought; service is not
    rig.start()
    rig.connect().close()
    after = records(rig, "usage")
    for tenant in TENANTS:
        whole = tuple(map(sum, zip(first[tenant], second[tenant], strict=True)))
        assert all(least <= count <= most for least, count, most in zip(first[tenant], tokens_of(after[tenant]), whole, strict=True))
        assert after[tenant]["service_us"] >= service[tenant] > kept[tenant]["service_us"]


def test_shares_are_drawn_as_a_tree_with_weights_and_factors(rig: DaemonRig) -> None:
    with rig.connect() as k:
        for tenant, weight in TENANTS.items():
            k.add_tenant(tenant, weight=weight)
        token = k.add_token("lab/ann").token
    found = records(rig, "share", "-l")
    assert [(found[tenant]["share"], found[tenant]["factor_milli"]) for tenant in TENANTS] == [(0.25, 1000), (0.75, 1000)]
    lines = kernelctl(rig, "share", "-l").splitlines()
    assert lines[0].split()[:3] == ["TENANT", "WEIGHT", "SHARE"]
    assert [line.split()[0] for line in lines if line.startswith("  ")] == ["ann", "bob"]
    assert kernelctl(rig, "share") == "\n".join(lines) + "\n"
    with rig.connect(token=token) as ann:
        assert [record.tenant for record in ann.shares()] == ["lab", "lab/ann"]
        assert {record.tenant for record in ann.usage()} <= {"lab", "lab/ann"}
        with pytest.raises(errors.NotFound):
            ann.usage("lab/bob")
