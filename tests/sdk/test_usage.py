"""Usage and shares through both clients."""

from __future__ import annotations

import asyncio

import pytest

import kerneld_client
from kerneld.usage.report import Span, UsageArgs
from kerneld_client import aio, errors
from tests.syscalls.rig import Rig


def test_usage_is_read_to_its_last_page(client: kerneld_client.Client, rig: Rig) -> None:
    found = client.usage("lab", since=10.0, until=20.0, by="hour")
    assert [(record.tenant, record.is_removed) for record in found] == [("lab/ann", False), ("lab/bob", True), ("(system)", False)]
    assert (found[0].device_s, found[0].load_s, found[0].device_page_s, found[1].service_us) == (2.5, 0.5, 1.5, -5)
    asked = [args for verb, _caller, args in rig.kernel.seen if verb == "usage"]
    assert asked == [UsageArgs("lab", 10.0, 20.0, Span.HOUR), UsageArgs("lab", 10.0, 20.0, Span.HOUR, page_token="2")]


def test_shares_are_read_to_the_last_page(client: kerneld_client.Client) -> None:
    assert [(record.tenant, record.factor_milli) for record in client.shares()] == [("lab", 1000), ("lab/ann", 1732), ("lab/bob", 577)]


def test_the_system_may_be_asked_for_by_its_name(client: kerneld_client.Client, rig: Rig) -> None:
    client.usage("(system)")
    assert rig.kernel.seen[-1][2].tenant == "(system)"


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"tenant": "(others)"}, "tenant"),
        ({"tenant": "lab//x"}, "tenant"),
        ({"since": -1.0}, "since"),
        ({"since": float("nan")}, "since"),
        ({"until": 1e12}, "until"),
        ({"by": "week"}, "by"),
    ],
)
def test_what_cannot_be_is_refused_by_name(client: kerneld_client.Client, arguments: dict[str, object], field: str) -> None:
    with pytest.raises(errors.InvalidArgument, match=f"{field}: "):
        client.usage(**arguments)  # type: ignore[arg-type]


def test_the_asyncio_client_says_the_same(client: kerneld_client.Client, rig: Rig) -> None:
    async def main() -> None:
        async with aio.connect(rig.path, timeout_s=10) as k:
            assert await k.usage() == client.usage()
            assert await k.shares() == client.shares()

    asyncio.run(main())


@pytest.mark.parametrize("role", ["viewer", "user", "operator", "admin"])
def test_everybody_may_ask(rig: Rig, role: str) -> None:
    with kerneld_client.connect(rig.path, token=role) as k:
        assert k.usage()
        assert k.shares()
