"""The Python clients against a real daemon: threads, cut connections, deadlines, readers that leave, and the same stories with await."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import socket
import threading
from collections.abc import Iterator

import pytest

import kerneld_client
from drivers.contract import Sampling
from drivers.fake_model import FakeModel, continuation
from kerneld_client import Client, aio, errors
from tests.e2e.rig import FAKE, DaemonRig, fake_model, free_port, script, until

PROMPT = [11, 12, 13]


def expected(num_tokens: int) -> tuple[int, ...]:
    """What the toy model goes on with after the prompt."""
    return tuple(continuation(FakeModel(), PROMPT, num_tokens, Sampling(temperature=0.0)))


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonRig]:
    """A daemon with a TCP port, which is its `address`, and steps of two milliseconds."""
    address = f"127.0.0.1:{free_port()}"
    own = DaemonRig(tmp_path_factory.mktemp("client"), *FAKE, f"syscalls.tcp={address}", script(step_s=0.002))
    own.address = address
    own.start()
    with own.connect() as k:
        k.load(fake_model(own.folder), name="toy")
    yield own
    own.clean_up()


@pytest.fixture
def k(rig: DaemonRig) -> Iterator[Client]:
    """An administrator."""
    with rig.connect() as client:
        yield client


class Relay:
    """A TCP relay that can cut every connection through it."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> int:
        """Break all connections; says how many there were."""
        broken, self._open = self._open, []
        for connection in broken:
            with contextlib.suppress(OSError):  # it was broken already
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        return len(broken) // 2

    def close(self) -> None:
        """Stop."""
        self._listening.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listening.accept()
            except OSError:
                return
            far = socket.create_connection(self._target)
            self._open += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while chunk := source.recv(1 << 16):
                sink.sendall(chunk)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            return


@pytest.fixture
def relay(rig: DaemonRig) -> Iterator[Relay]:
    """A relay before the daemon's TCP port."""
    own = Relay(rig.address)
    yield own
    own.close()


def test_a_stream_comes_back_after_every_cut_of_its_connection(k: Client, relay: Relay) -> None:
    token = k.add_token("admin", roles=["admin"]).token
    with kerneld_client.connect(relay.address, token=token) as far:
        stream = far.alloc("toy").infer(tokens=PROMPT, max_tokens=300, temperature=0, ignore_eos=True)
        tokens: list[int] = []
        cuts = 0
        for delta in stream:
            assert delta.offset == len(PROMPT) + len(tokens)
            tokens.extend(delta.tokens)
            if len(tokens) > 60 * (cuts + 1) and cuts < 3:
                assert relay.cut() >= 1
                cuts += 1
    assert cuts == 3
    assert tuple(tokens) == expected(300)


def test_sixteen_threads_share_one_client(k: Client) -> None:
    found: list[tuple[int, ...]] = []

    def work() -> None:
        for _ in range(3):
            with k.alloc("toy") as context:
                result = context.infer(tokens=PROMPT, max_tokens=25, temperature=0, ignore_eos=True).result()
                assert context.stat().num_tokens == len(PROMPT) + 25
                found.append(result.tokens)

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert found == [expected(25)] * 48


def test_handles_are_not_pickled(k: Client) -> None:
    context = k.alloc("toy")
    stream = context.infer(tokens=PROMPT, max_tokens=2, ignore_eos=True)
    for handle in (k, context, stream):
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(handle)
    stream.result()


def test_a_deadline_ends_a_request_and_keeps_what_it_gave(k: Client) -> None:
    context = k.alloc("toy")
    result = context.infer(tokens=PROMPT, max_tokens=1000, temperature=0, ignore_eos=True, deadline_s=0.4).result()
    assert result.finish_reason == "deadline"
    assert result.tokens == expected(1000)[: len(result.tokens)]
    assert context.stat().num_tokens == len(PROMPT) + len(result.tokens)
    assert 0 < len(result.tokens) < 1000


def test_a_reader_who_leaves_leaves_his_request_running(k: Client) -> None:
    context = k.alloc("toy")
    stream = context.infer(tokens=PROMPT, max_tokens=60, temperature=0, ignore_eos=True, detach_grace_s=30)
    next(stream)
    stream.close()
    until(lambda: context.stat().state == "idle")
    assert context.attach(len(PROMPT)).result().tokens == expected(60)


def test_without_grace_a_request_ends_with_its_reader(k: Client) -> None:
    context = k.alloc("toy")
    stream = context.infer(tokens=PROMPT, max_tokens=1000, temperature=0, ignore_eos=True, detach_grace_s=0)
    next(stream)
    stream.close()
    until(lambda: context.stat().state == "idle")
    assert context.stat().num_tokens < 900
    assert context.attach(0).result().finish_reason == "cancelled"


def test_many_readers_of_one_stream_see_the_same(k: Client) -> None:
    context = k.alloc("toy")
    stream = context.infer(tokens=PROMPT, max_tokens=100, temperature=0, ignore_eos=True)
    next(stream)
    found: list[tuple[int, ...]] = []
    readers = [threading.Thread(target=lambda: found.append(context.attach(len(PROMPT)).result().tokens)) for _ in range(8)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(timeout=30)
    assert found == [expected(100)] * 8


# ---------------------------------------------------------------------------------------------------------------- the same with await


def test_the_story_with_await(rig: DaemonRig) -> None:
    async def story() -> None:
        async with aio.connect(rig.socket) as k, await k.alloc("toy", labels={"a": "b"}) as context:
            tokens: list[int] = []
            async for delta in context.infer(tokens=PROMPT, max_tokens=40, temperature=0, ignore_eos=True):
                assert delta.offset == len(PROMPT) + len(tokens)
                tokens.extend(delta.tokens)
            assert tuple(tokens) == expected(40)
            child = await context.fork()
            await child.truncate(len(PROMPT))
            again = await child.infer(max_tokens=40, temperature=0, ignore_eos=True).result()
            assert again.tokens == expected(40)
            image = await child.checkpoint(name="mark")
            restored = await k.restore(image)
            assert (await restored.read(len(PROMPT))).tokens == expected(40)
            assert (await k.verify_image(image)).ok
            await child.suspend()
            assert (await child.stat()).state == "suspended"
            await child.free()
            with pytest.raises(errors.NotFound):
                await child.stat()
            assert (await k.top()).models[0].name == "toy"
            assert context.id in {item.id for item in await k.contexts()}
            await k.delete_image(image)

    asyncio.run(story())


def test_a_hundred_streams_with_await_at_once(rig: DaemonRig) -> None:
    async def one(k: aio.Client) -> tuple[int, ...]:
        async with await k.alloc("toy") as context:
            return (await context.infer(tokens=PROMPT, max_tokens=12, temperature=0, ignore_eos=True).result()).tokens

    async def all_of_them() -> list[tuple[int, ...]]:
        async with aio.connect(rig.socket) as k:
            return await asyncio.gather(*(one(k) for _ in range(100)))

    assert asyncio.run(all_of_them()) == [expected(12)] * 100


def test_a_cancelled_task_leaves_no_request_behind(rig: DaemonRig, k: Client) -> None:
    async def begin_and_leave() -> str:
        async with aio.connect(rig.socket) as far:
            context = await far.alloc("toy")
            stream = context.infer(tokens=PROMPT, max_tokens=1000, ignore_eos=True, detach_grace_s=0)
            task = asyncio.ensure_future(stream.result())
            await asyncio.sleep(0.05)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            stream.close()
            return context.id

    context_id = asyncio.run(begin_and_leave())
    until(lambda: k.context(context_id).stat().state == "idle")
