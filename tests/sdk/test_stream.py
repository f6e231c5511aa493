"""Streams that resume: cut connections, restarted daemons, expired logins."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import kerneld_client
from kerneld.errors import DataLoss, Draining
from kerneld_client import aio, errors
from tests.syscalls.fake_kernel import piece_at, token_at
from tests.syscalls.rig import CuttingProxy, Rig

NUM_TOKENS = 300
EXPECTED = [(position, token_at(position)) for position in range(5, 5 + NUM_TOKENS)]
TEXT = "".join(piece_at(position) for position, _ in EXPECTED)


def pairs(deltas: list[kerneld_client.Delta]) -> list[tuple[int, int]]:
    """Each token with its offset."""
    return [(delta.offset + i, token) for delta in deltas for i, token in enumerate(delta.tokens)]


ProxyMaker = Callable[[int], CuttingProxy]


@pytest.fixture
def cutting(rig: Rig, tmp_path: Path) -> Iterator[ProxyMaker]:
    """Make a proxy that cuts as a seed says; it is stopped at the end."""
    proxies: list[CuttingProxy] = []

    def make(seed: int) -> CuttingProxy:
        proxies.append(CuttingProxy(rig, tmp_path / "proxy.sock", random_cuts(seed)).start())
        return proxies[-1]

    yield make
    for proxy in proxies:
        proxy.stop()


def random_cuts(seed: int) -> list[int]:
    """After how many answered bytes each connection is cut; the first lasts for `connect`."""
    chance = random.Random(seed)
    return [chance.randrange(600, 1200), *(chance.randrange(1, 1500) for _ in range(10))]


@pytest.mark.parametrize("seed", range(8))
def test_a_stream_that_is_cut_at_random_has_no_gap_and_no_duplicate(rig: Rig, cutting: ProxyMaker, seed: int) -> None:
    proxy = cutting(seed)
    with kerneld_client.connect(proxy.path, timeout_s=20) as client:
        stream = client.alloc("demo").infer("hi", max_tokens=NUM_TOKENS)
        deltas = list(stream)
    result = stream.result()
    assert pairs(deltas) == EXPECTED
    assert (result.text, result.offset, result.usage.input_tokens) == (TEXT, 5, 5)
    assert proxy.num_cut >= 3
    assert len(rig.kernel.outputs) == 1  # however often it was asked for, it was one request


@pytest.mark.parametrize("seed", range(4))
def test_an_asyncio_stream_that_is_cut_at_random_has_no_gap_and_no_duplicate(rig: Rig, cutting: ProxyMaker, seed: int) -> None:
    proxy = cutting(seed)

    async def main() -> list[kerneld_client.Delta]:
        async with aio.connect(proxy.path, timeout_s=20) as client:
            context = await client.alloc("demo")
            return [delta async for delta in context.infer("hi", max_tokens=NUM_TOKENS)]

    assert pairs(asyncio.run(main())) == EXPECTED
    assert proxy.num_cut >= 3
    assert len(rig.kernel.outputs) == 1


def test_a_daemon_that_was_restarted_is_logged_in_to_again_and_streams_go_on(rig: Rig) -> None:
    rig.kernel.token_interval_s = 0.002
    with kerneld_client.connect(rig.path) as client:
        streams = [client.alloc("demo").infer("hi", max_tokens=NUM_TOKENS) for _ in range(4)]
        first = [next(stream) for stream in streams]
        before = rig.identity
        rig.stop()
        rig.start()
        rest = [list(stream) for stream in streams]
    assert before is not rig.identity
    assert len(rig.identity.peers) == 1  # four streams, one new login
    assert [pairs([head, *tail]) for head, tail in zip(first, rest, strict=True)] == [EXPECTED] * 4


def test_unary_calls_outlast_a_restart(rig: Rig, client: kerneld_client.Client) -> None:
    rig.stop()
    starter = threading.Timer(0.1, rig.start)
    starter.start()
    assert client.alloc("demo").id
    starter.join()


def test_a_daemon_that_does_not_come_back_ends_the_stream_in_time(rig: Rig) -> None:
    rig.kernel.token_interval_s = 3600
    with kerneld_client.connect(rig.path, reconnect_s=0.3) as client:
        stream = client.alloc("demo").infer("hi")
        next(stream)
        rig.stop()
        with pytest.raises(errors.Unavailable):
            next(stream)
        with pytest.raises(errors.Unavailable):
            stream.result()


def test_a_login_that_was_forgotten_is_renewed_once(rig: Rig, client: kerneld_client.Client) -> None:
    rig.identity.logins.clear()
    assert client.whoami().name
    assert len(rig.identity.peers) == 2


def test_an_api_token_that_was_removed_is_not_tried_twice(rig: Rig) -> None:
    with pytest.raises(errors.Unauthenticated):
        kerneld_client.connect(rig.path, token="removed")
    assert rig.registry.get_sample_value("kerneld_syscalls_total", {"verb": "WhoAmI", "code": "UNAUTHENTICATED"}) == 1


def test_attach_reads_from_an_offset_to_the_end(client: kerneld_client.Client) -> None:
    context = client.alloc("demo")
    context.infer("hi", max_tokens=20).result()
    result = context.attach(15).result()
    assert (result.offset, result.tokens) == (15, tuple(token_at(position) for position in range(15, 25)))


def test_the_result_after_reading_some_is_the_whole(client: kerneld_client.Client) -> None:
    stream = client.alloc("demo").infer("hi", max_tokens=20, logprobs=1)
    next(stream)
    result = stream.result()
    assert len(result.tokens) == len(result.logprobs) == 20
    assert result.finish_reason == "length"
    assert list(stream) == []


def test_streams_run_together_from_the_moment_they_are_made(rig: Rig, client: kerneld_client.Client) -> None:
    rig.kernel.token_interval_s = 3600
    streams = [client.alloc("demo").infer("hi") for _ in range(3)]
    next(streams[2])
    assert rig.kernel.num_streams == 3


def test_cancel_ends_the_request_and_the_stream_says_so(rig: Rig, client: kerneld_client.Client) -> None:
    rig.kernel.token_interval_s = 0.005
    stream = client.alloc("demo").infer("hi", max_tokens=1000)
    next(stream)
    assert stream.cancel()
    assert stream.result().finish_reason == "cancelled"


def test_a_stream_that_was_closed_ends_and_has_no_result(rig: Rig, client: kerneld_client.Client) -> None:
    rig.kernel.token_interval_s = 3600
    with client.alloc("demo").infer("hi") as stream:
        next(stream)
        threading.Timer(0.05, stream.close).start()
        assert list(stream) == []
    with pytest.raises(errors.Unavailable, match="attach"):
        stream.result()


def test_a_daemon_that_drains_refuses_a_new_request_at_once(rig: Rig, client: kerneld_client.Client) -> None:
    rig.kernel.failures["infer"] = Draining("The daemon is draining.")
    with pytest.raises(errors.Draining):
        client.alloc("demo").infer("hi").result()
    assert [verb for verb, _, _ in rig.kernel.seen].count("infer") == 1


def test_an_error_that_is_an_answer_ends_the_stream(rig: Rig, client: kerneld_client.Client) -> None:
    rig.kernel.failures["infer"] = DataLoss("The journal is torn.")
    with pytest.raises(errors.DataLoss, match="torn"):
        client.alloc("demo").infer("hi").result()


def test_an_asyncio_stream_can_be_awaited_until_it_began(rig: Rig) -> None:
    async def main() -> tuple[int | None, int, str]:
        client = await aio.connect(rig.path)
        async with client, await client.alloc("demo") as context:
            stream = await context.infer("hi", max_tokens=20)
            began_at = stream.offset
            result = await stream.result()
            return began_at, len(result.tokens), result.text

    assert asyncio.run(main()) == (5, 20, "".join(map(piece_at, range(5, 25))))


def test_an_asyncio_stream_that_was_closed_ends(rig: Rig) -> None:
    rig.kernel.token_interval_s = 3600

    async def main() -> list[kerneld_client.Delta]:
        async with aio.connect(rig.path) as client:
            stream = (await client.alloc("demo")).infer("hi")
            await anext(stream)
            asyncio.get_running_loop().call_later(0.05, stream.close)
            return [delta async for delta in stream]

    assert asyncio.run(main()) == []


def test_a_task_that_is_cancelled_while_it_reads_is_cancelled(rig: Rig) -> None:
    rig.kernel.token_interval_s = 3600

    async def main() -> None:
        async with aio.connect(rig.path) as client:
            stream = (await client.alloc("demo")).infer("hi")
            await anext(stream)
            async with asyncio.timeout(0.05):
                await anext(stream)

    with pytest.raises(TimeoutError):
        asyncio.run(main())
