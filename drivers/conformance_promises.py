"""Checks of what a driver states beyond the least: quantizations, bits that do not depend on company, drafts, and what a load answers."""

from __future__ import annotations

import contextlib

import msgspec

from drivers.conformance_bench import Bench, Generated, How, Subject, open_spec, require
from drivers.contract import (
    Capabilities,
    InspectSpec,
    LoadedModel,
    LoadSpec,
    OpReport,
    RowRun,
    RowStart,
    Sampling,
    StepResult,
    TokenLogprob,
)
from drivers.errors import ModelUnsupported, UnknownModel

TOLD = Sampling(temperature=0.0, num_logprobs=3)
DRAWN = Sampling(temperature=0.9, seed=77, num_logprobs=3)
DRAFT_TOKENS = 4

Told = tuple[tuple[int, ...], tuple[TokenLogprob, ...]]


def unknown_quantizations_leave_nothing(subject: Subject) -> None:
    """A `quant` or `kv_quant` that the driver does not state raises ModelUnsupported in `inspect` and `load`, and changes nothing."""
    with subject.bench() as bench:
        before = bench.generate(bench.prompt(20), 4).tokens
        space_ids = tuple(bench.space(group, model_id=9) for group in range(len(bench.model.groups)))
        for changes in ({"quant": "no such"}, {"kv_quant": "no such"}):
            source = msgspec.structs.replace(InspectSpec(str(bench.model_path)), **changes)
            with contextlib.suppress(ModelUnsupported):
                bench.driver.inspect(source)
                require(False, f"inspect refuses {changes} with ModelUnsupported")
            with contextlib.suppress(ModelUnsupported):
                bench.driver.load(LoadSpec(9, source, space_ids, tuple(0 for _ in bench.model.segments)), _ignore)
                require(False, f"load refuses {changes} with ModelUnsupported")
            with contextlib.suppress(UnknownModel):
                bench.driver.unload(9)
                require(False, "a load that was refused leaves no model")
        require(bench.generate(bench.prompt(20), 4).tokens == before, "refused loads change no weights")


def stated_quantizations_are_told(subject: Subject) -> None:
    """Of each stated quantization, `inspect` tells it in `quant`, other numerics, and no larger weights; or that this model has none."""
    told = subject.make().probe()
    with subject.opened(open_spec(num_slabs=1)) as driver:
        plain = driver.inspect(InspectSpec(str(subject.model_path)))
        for quant in told.quantizations:
            with contextlib.suppress(ModelUnsupported):
                found = driver.inspect(InspectSpec(str(subject.model_path), quant=quant))
                require(found.quant == quant and found.numerics != plain.numerics, f"quant is {quant}, and a part of the numerics")
                sizes = [sum(segment.size_bytes for segment in each.segments) for each in (found, plain)]
                require(sizes[0] <= sizes[1], f"weights in {quant} are no larger than plain ones")
        for kv_quant in told.kv_quantizations:
            with contextlib.suppress(ModelUnsupported):
                found = driver.inspect(InspectSpec(str(subject.model_path), kv_quant=kv_quant))
                require(
                    found.kv_quant == kv_quant and found.numerics != plain.numerics, f"kv_quant is {kv_quant}, and a part of the numerics"
                )


def invariant_rows_have_the_same_bits(subject: Subject) -> None:
    """A driver that states `batch_invariant` gives the same tokens and log-probabilities, bit for bit, alone, in company, in chunks and
    after an interruption; others are not asked."""
    if not subject.make().probe().batch_invariant:
        return
    with subject.bench(batch_invariant=True) as bench:
        prompt = bench.prompt(37)
        for sampling in (TOLD, DRAWN):
            alone = bench.generate(prompt, 16, How(sampling=sampling))
            ways = {"cut into chunks": How(chunk=11, sampling=sampling), "step by step": How(slot=5, quantum=1, sampling=sampling)}
            for way, how in ways.items():
                require(_of(bench.generate(prompt, 16, how)) == _of(alone), f"bit for bit the same {way}")
            require(_in_company(bench, prompt, sampling) == _of(alone), "bit for bit the same beside other rows")
            again = bench.generate(prompt + alone.tokens[:7], 9, How(chunk=13, sampling=sampling))
            require(_of(again) == (alone.tokens[7:], alone.logprobs[7:]), "bit for bit the same where its pages are recomputed from tokens")


def drafts_change_nothing(subject: Subject) -> None:
    """Rows with `draft_tokens` sample what they sample without, as many in a plan as it has steps; who states no drafts makes none."""
    states = subject.make().probe().drafts
    with subject.bench(batch_invariant=subject.make().probe().batch_invariant) as bench:
        prompt = bench.prompt(6) * 4
        for sampling in (TOLD, DRAWN):
            plain = bench.generate(prompt, 24, How(sampling=sampling))
            drafting = msgspec.structs.replace(sampling, draft_tokens=DRAFT_TOKENS)
            starts: tuple[RowStart, ...] = (bench.start(prompt, bench.take(len(prompt) + 24), How(sampling=drafting)),)
            tokens: list[int] = []
            for num_steps, num_pending in ((1, len(prompt)), (2, 1), (16, 1), (5, 1)):
                steps = bench.submit(num_steps, starts=starts, runs=(RowRun(0, num_pending),))
                rows = [row for step in steps for row in step.rows]
                found = [token for row in rows for token in row.tokens]
                require(len(found) == num_steps, f"{num_steps} steps of a plan give {num_steps} tokens, not {len(found)}")
                require(all(row.num_drafted <= DRAFT_TOKENS for row in rows), "no more guesses than were allowed")
                require(states or all(len(row.tokens) == 1 and not row.num_drafted for row in rows), "no guesses where none are stated")
                tokens += found
                starts = ()
            bench.submit(clears=(0,))
            require(tuple(tokens) == plain.tokens, "tokens with guesses are those without")


def loads_say_what_they_did(subject: Subject) -> None:
    """What `load` answers counts the bytes of its segments and the time, and its reports of ops have names, calls and reasons."""
    with subject.bench() as bench:
        loaded = bench.load(model_id=2)
        require(loaded.model_id == 2, "model_id is the one that was asked for")
        require(loaded.bytes_loaded == sum(segment.size_bytes for segment in bench.model.segments), "bytes_loaded counts every segment")
        require(
            loaded.seconds >= loaded.copy_s >= 0.0 and loaded.prefill_s >= 0.0, "times are durations, and copying is a part of the whole"
        )
        require(loaded.host_bytes == 0 == loaded.num_corrupt, "nothing came from a host tier that was not named")
        require(loaded.streamed_bytes == 0, "nothing is streamed where every segment has a place")
        _require_reports(subject.make().probe(), loaded)


def _require_reports(told: Capabilities, loaded: LoadedModel) -> None:
    require(not told.ops or bool(loaded.ops), "a driver that states ops says which of them a model uses")
    for report in loaded.ops:
        require(bool(report.op and report.implementation), f"op and implementation have names: {report}")
        require(report.is_quarantined or report.num_calls > 0, f"what runs is called: {report}")
        require(not report.is_quarantined or (report.num_calls == 0 and bool(report.why)), f"what is in quarantine does not run: {report}")
        require(all(report.covers), f"what is covered has names: {report}")
    running = [report for report in loaded.ops if not report.is_quarantined]
    require(len(set(map(_key, running))) == len(running), "what runs is told once, with all of its calls")


def _key(report: OpReport) -> tuple[str, str, tuple[str, ...], str]:
    return report.op, report.implementation, report.covers, report.why


def _in_company(bench: Bench, prompt: tuple[int, ...], sampling: Sampling) -> Told:
    """What a row gives in slot 2, while others are in prefill or decode beside it, and come and go."""
    others = [bench.prompt(num_tokens, salt) for salt, num_tokens in enumerate((5, 50, 21), start=3)]
    starts = [bench.start(other, bench.take(len(other) + 20), How(slot=slot)) for slot, other in zip((0, 4, 7), others, strict=True)]
    own = bench.start(prompt, bench.take(len(prompt) + 16), How(slot=2, sampling=sampling))
    steps = bench.submit(2, starts=(starts[0], starts[1]), runs=(RowRun(0, 5), RowRun(4, 20)))
    steps += bench.submit(1, starts=(own,), runs=(RowRun(0, 1), RowRun(2, 30), RowRun(4, 30)))
    steps += bench.submit(6, starts=(starts[2],), runs=(RowRun(0, 1), RowRun(2, 7), RowRun(4, 1), RowRun(7, 21)))
    steps += bench.submit(3, clears=(0,), runs=(RowRun(2, 1), RowRun(7, 1)))
    steps += bench.submit(7, runs=(RowRun(2, 1), RowRun(4, 1)))
    bench.submit(clears=(2, 4, 7))
    return _told(steps, 2)


def _told(steps: list[StepResult], slot: int) -> Told:
    rows = [row for step in steps for row in step.rows if row.slot == slot]
    return tuple(token for row in rows for token in row.tokens), tuple(entry for row in rows for entry in row.logprobs)


def _of(generated: Generated) -> Told:
    return generated.tokens, generated.logprobs


def _ignore(_done: int, _total: int) -> None:
    """Progress that nobody looks at."""


CHECKS = (
    unknown_quantizations_leave_nothing,
    stated_quantizations_are_told,
    invariant_rows_have_the_same_bits,
    drafts_change_nothing,
    loads_say_what_they_did,
)
