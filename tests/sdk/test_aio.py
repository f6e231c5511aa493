"""The asyncio client has what the blocking one has."""

from __future__ import annotations

import asyncio
import inspect
import pickle
from pathlib import Path
from typing import Any

import pytest

import kerneld_client
from kerneld_client import aio, aio_tenancy, errors, tenancy
from tests.syscalls.rig import Rig

PAIRS = [
    (kerneld_client.Client, aio.Client),
    (tenancy.Tenancy, aio_tenancy.Tenancy),
    (kerneld_client.Context, aio.Context),
    (kerneld_client.Stream, aio.Stream),
]
RENAMED = {"__enter__": "__aenter__", "__exit__": "__aexit__", "__iter__": "__aiter__", "__next__": "__anext__"}


def public(cls: type) -> dict[str, Any]:
    """Methods that a user may call."""
    return {name: item for name, item in vars(cls).items() if inspect.isfunction(item) and (name in RENAMED or not name.startswith("_"))}


@pytest.mark.parametrize(("blocking", "awaitable"), PAIRS, ids=["Client", "Tenancy", "Context", "Stream"])
def test_every_method_is_there_with_the_same_parameters(blocking: type, awaitable: type) -> None:
    theirs = public(awaitable) | {name: item for name, item in vars(awaitable).items() if name in RENAMED.values()}
    for name, method in public(blocking).items():
        twin = theirs[RENAMED.get(name, name)]
        assert list(inspect.signature(twin).parameters) == list(inspect.signature(method).parameters), name
        assert inspect.getdoc(twin) == inspect.getdoc(method), name


def test_connect_takes_the_same_parameters() -> None:
    assert inspect.signature(aio.connect).parameters == inspect.signature(kerneld_client.connect).parameters


def test_all_verbs_are_awaitable(rig: Rig) -> None:
    async def main() -> None:
        async with aio.connect(rig.path, timeout_s=10) as k:
            assert (await k.whoami()).roles == ("admin",)
            assert await k.is_serving()
            assert (await k.load("/m/demo")).state == "resident"
            assert [model.name for model in await k.models()] == ["demo"]
            async with await k.alloc("demo") as context:
                result = await context.infer("hi", max_tokens=4).result()
                assert len(result.tokens) == 4
                assert (await context.stat()).num_tokens == 9
                assert (await (await context.fork()).stat()).parent == context.id
                image = await context.checkpoint()
                assert (await k.restore(image)).restored is not None
                assert [found.id for found in await k.images()] == [image.id]
                assert await context.attach(7).result()
            assert (await k.top()).boot_generation == 1
            assert [event.sequence async for event in k.events()] == [1, 2, 3]
            assert [each.state for each in await k.requests()] == ["waiting"]
            assert (await k.explain(request="2" * 32)).outlook is not None

    asyncio.run(main())


def test_connect_where_nobody_is_fails_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        await aio.connect(tmp_path / "none.sock")

    with pytest.raises(errors.Unavailable, match="Is it running"):
        asyncio.run(main())


def test_handles_cannot_be_pickled(rig: Rig) -> None:
    async def main() -> None:
        async with aio.connect(rig.path) as k:
            context = await k.alloc("demo")
            for handle in (k, context, context.infer("a", max_tokens=1)):
                with pytest.raises(TypeError, match="cannot be pickled"):
                    pickle.dumps(handle)

    asyncio.run(main())


def test_many_tasks_share_one_login(rig: Rig) -> None:
    async def main() -> int:
        async with aio.connect(rig.path) as k:
            rig.identity.logins.clear()
            contexts = await asyncio.gather(*(k.alloc("demo") for _ in range(20)))
            return len({context.id for context in contexts})

    assert asyncio.run(main()) == 20
    assert len(rig.identity.peers) == 2
