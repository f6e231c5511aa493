"""Several tenants on one machine: nobody sees, takes or slows what is another's."""

from __future__ import annotations

import pytest

import kerneld_client
from kerneld_client import Client, errors
from tests.e2e.rig import DaemonRig


def test_another_tenants_handle_is_not_found(shared_rig: DaemonRig, k: Client) -> None:
    k.add_tenant("alice")
    k.add_tenant("bob")
    context = None
    with shared_rig.connect(token=k.add_token("alice").token) as alice, shared_rig.connect(token=k.add_token("bob").token) as bob:
        context = alice.alloc("demo")
        with pytest.raises(errors.NotFound):
            bob.context(context.id).stat()
        with pytest.raises(errors.NotFound):
            bob.context(context.id).infer("x", max_tokens=1).result()
        assert context.id not in {item.id for item in bob.contexts()}
        context.grant("tenant:bob", ["read"])
        assert bob.context(context.id).stat().id == context.id
        with pytest.raises(errors.NotFound):
            bob.context(context.id).infer("x", max_tokens=1).result()
    assert context.id in {item.id for item in k.contexts(all=True)}


def test_a_tenant_is_removed_only_with_force_while_contexts_live(shared_rig: DaemonRig, k: Client) -> None:
    k.add_tenant("carol")
    with shared_rig.connect(token=k.add_token("carol").token) as carol:
        context = carol.alloc("demo")
        context.infer("import os\n" * 10, max_tokens=4).result()
    with pytest.raises(kerneld_client.KerneldError) as refusal:
        k.remove_tenant("carol")
    assert refusal.value.code.name == "FAILED_PRECONDITION"
    assert k.remove_tenant("carol", force=True) == 1
    assert "carol" not in {tenant.path for tenant in k.tenants()}
    assert "carol" not in {owner for tier in k.top().tiers for owner in tier.kv_bytes}


def test_a_limit_is_named_when_it_is_reached(shared_rig: DaemonRig, k: Client) -> None:
    k.add_tenant("dave", limits=kerneld_client.Limits(max_contexts=1))
    with shared_rig.connect(token=k.add_token("dave").token) as dave:
        dave.alloc("demo")
        with pytest.raises(errors.QuotaExceeded) as refusal:
            dave.alloc("demo")
    assert refusal.value.facts["holder"] == "dave"


def test_what_can_never_fit_is_refused_with_the_numbers(shared_rig: DaemonRig, k: Client) -> None:
    k.add_tenant("eve", limits=kerneld_client.Limits(device_bytes=1 << 20))
    with shared_rig.connect(token=k.add_token("eve").token) as eve, pytest.raises(kerneld_client.KerneldError) as refusal:
        eve.alloc("demo").infer("import os\n", max_tokens=900).result()
    assert refusal.value.code.name == "FAILED_PRECONDITION"
    assert int(refusal.value.facts["needed_bytes"]) > 1 << 20


def test_the_same_request_id_answers_the_same(k: Client) -> None:
    before = len(k.contexts())
    first = k.alloc("demo", request_id="once-and-only-once")
    again = k.alloc("demo", request_id="once-and-only-once")
    assert first.id == again.id
    assert len(k.contexts()) == before + 1
    with pytest.raises(kerneld_client.KerneldError) as refusal:
        k.alloc("demo", request_id="once-and-only-once", nice=3)
    assert refusal.value.code.name == "ABORTED"
