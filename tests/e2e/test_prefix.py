"""Equal beginnings on the CPU: computed once within a tenant or a group, and never across two tenants."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

import kerneld_client
from kerneld_client import Client, Result
from tests.e2e.rig import DaemonRig

PROMPT = "".join(f"value_{number} = compute({number})\n" for number in range(24))


@pytest.fixture
def tenants(shared_rig: DaemonRig, k: Client) -> Iterator[tuple[Client, Client]]:
    """Clients of two tenants that nothing is known of."""
    names = ("grace", "heidi")
    for name in names:
        k.add_tenant(name)
    with shared_rig.connect(token=k.add_token("grace").token) as grace, shared_rig.connect(token=k.add_token("heidi").token) as heidi:
        yield grace, heidi
    for name in names:
        k.remove_tenant(name, force=True)


def ask(client: Client, text: str, **options: str) -> Result:
    return client.alloc("demo", sharing_group=options.get("group", "")).infer(text, max_tokens=4, temperature=0, ignore_eos=True).result()


def test_a_second_context_takes_pages_and_says_the_same(tenants: tuple[Client, Client]) -> None:
    first, second = ask(tenants[0], PROMPT), ask(tenants[0], PROMPT)

    assert second.tokens == first.tokens
    assert first.usage.shared_tokens == 0
    assert second.usage.shared_tokens >= (first.usage.input_tokens - 1) // 16 * 16 > 0


def test_no_work_is_saved_across_tenants(tenants: tuple[Client, Client]) -> None:
    results = [ask(client, PROMPT) for client in tenants]

    assert [result.usage.cached_tokens for result in results] == [0, 0]
    assert results[0].tokens == results[1].tokens


def test_members_of_a_group_share_what_they_put_into_it(k: Client, tenants: tuple[Client, Client]) -> None:
    group = k.add_sharing_group("both", ["grace", "heidi"])

    results = [ask(client, PROMPT, group="both") for client in tenants]

    assert group.members == ("grace", "heidi")
    assert [result.usage.shared_tokens > 0 for result in results] == [False, True]
    assert [each.name for each in tenants[0].sharing_groups()] == ["both"]
    with pytest.raises(kerneld_client.KerneldError):
        k.remove_sharing_group("both")
    for client in tenants:
        for context in client.contexts():
            client.context(context.id).free()
    k.remove_sharing_group("both")


def test_requests_at_once_compute_their_beginning_once(tenants: tuple[Client, Client]) -> None:
    questions = [f"{PROMPT}x{number}" for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda text: ask(tenants[0], text), questions))

    total = sum(result.usage.input_tokens for result in results)
    assert total - sum(result.usage.cached_tokens for result in results) <= total // 8 + 8 * 24
