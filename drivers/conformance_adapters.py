"""Checks of adapters: they change their own rows and no others. A driver that knows none refuses every adapter with ModelUnsupported."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from drivers.conformance_bench import Bench, How, Subject, require
from drivers.contract import InspectSpec, RowRun, StepResult
from drivers.errors import ModelCorrupt, ModelUnsupported, PlanRejected, UnknownModel

ADAPTER_ID = 5


@contextlib.contextmanager
def _adapted(subject: Subject) -> Iterator[Bench | None]:
    """Give a bench with the adapter loaded; None where there is none for this model, or the driver knows none."""
    with subject.bench() as bench:
        if subject.adapter_path is None:
            yield None
            return
        try:
            told = bench.load_adapter(ADAPTER_ID, subject.adapter_path)
        except ModelUnsupported:
            yield None
            return
        require(told.groups == () and len(told.segments) >= 1, "an adapter has segments and no KV groups")
        require(told.vocab_size == bench.model.vocab_size, "an adapter speaks the language of its base")
        yield bench


def adapters_change_their_own_rows(subject: Subject) -> None:
    """A row with an adapter draws other tokens than one without, the same alone, in chunks and beside others; those are not changed."""
    with _adapted(subject) as bench:
        if bench is None:
            return
        prompt = bench.prompt(24)
        plain, adapted = bench.generate(prompt, 12).tokens, bench.generate(prompt, 12, How(adapter_id=ADAPTER_ID)).tokens
        require(plain != adapted, "an adapter changes what is drawn")
        cut = bench.generate(prompt, 12, How(adapter_id=ADAPTER_ID, chunk=9, quantum=3)).tokens
        require(cut == adapted, "chunks and quanta change nothing")
        hows = [How(slot=0), How(slot=1, adapter_id=ADAPTER_ID), How(slot=2), How(slot=3, adapter_id=ADAPTER_ID)]
        starts = tuple(bench.start(prompt, bench.take(len(prompt) + 12), how) for how in hows)
        steps = bench.submit(12, starts=starts, runs=tuple(RowRun(how.slot, 10 if how.slot > 1 else len(prompt)) for how in hows))
        require(_tokens(steps, 0) == plain, "a row without an adapter is the same beside one with it")
        require(_tokens(steps, 1) == adapted, "a row with an adapter is the same beside one without")
        steps = bench.submit(12, runs=(RowRun(2, len(prompt) - 10), RowRun(3, len(prompt) - 10)))
        require((_tokens(steps, 2), _tokens(steps, 3)) == (plain, adapted), "so are rows whose prefill was cut")


def rows_name_loaded_adapters_of_their_model(subject: Subject) -> None:
    """A row may only name an adapter of its model that is loaded; one that was unloaded comes back under its id."""
    with _adapted(subject) as bench:
        if bench is None or subject.adapter_path is None:
            return
        adapted = bench.generate(bench.prompt(20), 8, How(adapter_id=ADAPTER_ID)).tokens
        bench.load(model_id=2)
        _refused(lambda: bench.generate(bench.prompt(20), 8, How(model_id=2, adapter_id=ADAPTER_ID, frames=bench.take(28))))
        bench.driver.unload(ADAPTER_ID)
        _refused(lambda: bench.generate(bench.prompt(20), 8, How(adapter_id=ADAPTER_ID)))
        bench.load_adapter(ADAPTER_ID, subject.adapter_path)
        require(bench.generate(bench.prompt(20), 8, How(adapter_id=ADAPTER_ID)).tokens == adapted, "it is the same when it is back")


def adapters_of_other_bases_leave_nothing(subject: Subject) -> None:
    """An adapter that does not fit its base is refused by `inspect`, and one whose base is not loaded by `load`."""
    with _adapted(subject) as bench:
        if bench is None or subject.adapter_path is None or subject.other_adapter_path is None:
            return
        with contextlib.suppress(ModelCorrupt, ModelUnsupported):
            bench.driver.inspect(InspectSpec(str(subject.other_adapter_path), base=str(subject.model_path)))
            require(False, "an adapter with more layers than its base is refused")
        with contextlib.suppress(UnknownModel, PlanRejected):
            bench.load_adapter(ADAPTER_ID + 1, subject.adapter_path, base_id=77)
            require(False, "an adapter whose base is not loaded is refused")
        _refused(lambda: bench.generate(bench.prompt(20), 8, How(adapter_id=ADAPTER_ID + 1)))


def _refused(run: Callable[[], object]) -> None:
    with contextlib.suppress(PlanRejected):
        run()
        require(False, "a row that names no loaded adapter of its model raises PlanRejected")


def _tokens(steps: list[StepResult], slot: int) -> tuple[int, ...]:
    return tuple(token for step in steps for row in step.rows if row.slot == slot for token in row.tokens)


CHECKS = (adapters_change_their_own_rows, rows_name_loaded_adapters_of_their_model, adapters_of_other_bases_leave_nothing)
