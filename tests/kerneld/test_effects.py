"""Idempotency keys: the same call again gets the same answer and does nothing, another call with the same key is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from kerneld.calls import (
    Access,
    AllocArgs,
    Caller,
    CheckpointArgs,
    ForkArgs,
    Grant,
    InferArgs,
    Limits,
    RegisterArgs,
    SetArgs,
    TokenInput,
)
from kerneld.errors import Conflict, KernelError
from tests.kerneld.rig import ADMIN, ANN, GREEDY, Output, Rig, in_loop, oracle, prompt_of, read_all, running, with_id
from tests.kerneld.small_disk import full_disk

Call = Callable[[Rig, Caller, str], Awaitable[Any]]


async def infer(rig: Rig, caller: Caller, context: str) -> Output:
    output = await read_all(rig.kernel.infer(caller, InferArgs(context, TokenInput(prompt_of(9, 3)), 5, GREEDY, True, ignore_eos=True)))
    return Output(tokens=output.tokens, offset=output.offset)


async def load(rig: Rig, caller: Caller, _context: str) -> Any:
    args = RegisterArgs("m", str(rig.folder / "models" / "m"))
    return [item async for item in rig.kernel.load_model(caller, args)][-1]


CALLS: dict[str, Call] = {
    "alloc": lambda rig, caller, _context: rig.kernel.alloc(caller, AllocArgs("m")),
    "fork": lambda rig, caller, context: rig.kernel.fork(caller, ForkArgs(context)),
    "free": lambda rig, caller, context: rig.kernel.free(caller, context),
    "truncate": lambda rig, caller, context: rig.kernel.truncate(caller, context, 5),
    "suspend": lambda rig, caller, context: rig.kernel.suspend(caller, context),
    "resume": lambda rig, caller, context: rig.kernel.resume(caller, context),
    "set": lambda rig, caller, context: rig.kernel.set(caller, SetArgs(context, nice=4)),
    "grant": lambda rig, caller, context: rig.kernel.grant(caller, context, Grant("tenant:lab/bob", frozenset({Access.READ}))),
    "revoke": lambda rig, caller, context: rig.kernel.revoke(caller, context, "tenant:lab/bob"),
    "infer": infer,
    "cancel": lambda rig, caller, context: rig.kernel.cancel(caller, context),
    "checkpoint": lambda rig, caller, context: rig.kernel.checkpoint(caller, CheckpointArgs(context)),
    "register_model": lambda rig, caller, _context: rig.kernel.register_model(caller, RegisterArgs("m", str(rig.folder / "models" / "m"))),
    "load_model": load,
    "unload_model": lambda rig, caller, _context: rig.kernel.unload_model(caller, "m"),
    "add_tenant": lambda rig, caller, _context: rig.kernel.add_tenant(caller, "lab/eve", 2, Limits()),
    "set_tenant": lambda rig, caller, _context: rig.kernel.set_tenant(caller, "lab/bob", 5, None),
    "remove_tenant": lambda rig, caller, _context: rig.kernel.remove_tenant(caller, "lab/bob", True),
}


@pytest.mark.parametrize("verb", list(CALLS))
@in_loop
async def test_the_same_call_again_gets_the_same_answer_and_does_nothing(tmp_path: Path, verb: str) -> None:
    async with running(Rig(tmp_path)) as rig:
        context = await rig.alloc()
        await rig.infer(context, prompt_of(1, 9), 3)
        caller = with_id(ADMIN, "key", b"one")
        first = await CALLS[verb](rig, caller, context)
        before = facts(rig)
        assert await CALLS[verb](rig, caller, context) == first
        assert facts(rig) == before
        with pytest.raises(Conflict) as refusal:
            await CALLS[verb](rig, with_id(ADMIN, "key", b"two"), context)
        assert refusal.value.reason == "REQUEST_ID_REUSED"
        other = "alloc" if verb != "alloc" else "fork"
        with pytest.raises(Conflict):
            await CALLS[other](rig, caller, context)
        assert facts(rig) == before


@pytest.mark.parametrize("verb", ["alloc", "fork", "free", "truncate", "suspend", "set", "infer", "cancel", "checkpoint", "add_tenant"])
@in_loop
async def test_an_answer_outlives_the_daemon(tmp_path: Path, verb: str) -> None:
    async with running(Rig(tmp_path)) as rig:
        context = await rig.alloc()
        await rig.infer(context, prompt_of(1, 9), 3)
        caller = with_id(ADMIN, "key", b"one")
        await CALLS[verb](rig, caller, context)
        before = facts(rig)
        await rig.die_and_return()
        await rig.until(lambda: rig.machine.devices.first.models.get("m").is_resident)
        await CALLS[verb](rig, caller, context)
        assert facts(rig) == before


@pytest.mark.parametrize("verb", ["alloc", "fork", "truncate", "suspend", "set", "grant", "infer", "checkpoint", "add_tenant"])
@in_loop
async def test_a_call_that_failed_is_not_remembered(tmp_path: Path, verb: str) -> None:
    async with running(Rig(tmp_path)) as rig:
        context = await rig.alloc()
        await rig.infer(context, prompt_of(1, 9), 3)
        before = facts(rig)
        caller = with_id(ADMIN, "key", b"one")
        with full_disk(), pytest.raises(KernelError):
            await CALLS[verb](rig, caller, context)
        assert facts(rig) == before
        await CALLS[verb](rig, caller, context)
        assert facts(rig) != before


@in_loop
async def test_the_same_call_while_the_first_is_under_way_is_told_so(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        caller = with_id(ADMIN, "key", b"one")
        calls = [asyncio.ensure_future(CALLS["add_tenant"](rig, caller, "")) for _ in range(2)]
        first, second = await asyncio.gather(*calls, return_exceptions=True)
        assert not isinstance(first, BaseException)
        assert first.path == "lab/eve"
        assert isinstance(second, Conflict)
        assert second.reason == "CALL_UNDER_WAY"


@in_loop
async def test_an_infer_asked_for_again_while_it_runs_is_the_same_stream(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        context = await rig.alloc()
        caller = with_id(ANN, "key")
        args = InferArgs(context, TokenInput(prompt_of(1, 9)), 40, GREEDY, True, ignore_eos=True)
        first = asyncio.ensure_future(read_all(rig.kernel.infer(caller, args)))
        await rig.until(lambda: len(rig.tokens(context)) > 20)
        second = await read_all(rig.kernel.infer(caller, args))
        assert (await first).tokens == second.tokens == oracle(prompt_of(1, 9), 40)
        assert (await first).started is not None
        assert second.started is not None
        assert second.started.request == (await first).started.request  # type: ignore[union-attr]
        await rig.infer(context, (), 3)
        with pytest.raises(Conflict):
            await read_all(rig.kernel.infer(caller, args))


def facts(rig: Rig) -> Any:
    """Everything that a verb could have changed."""
    machine = rig.machine
    contexts = {
        context.id: (context.tokens.tolist(), context.state, context.nice, dict(context.labels), dict(context.grants), context.last_request)
        for context in machine.contexts
    }
    tenants = [(row.path, row.weight) for row in machine.tenants]
    models = [(model.name, model.is_resident) for model in machine.devices.first.models]
    return contexts, tenants, models, sorted(path.name for path in (rig.state / "images").rglob("*") if path.is_file())
