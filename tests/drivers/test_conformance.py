"""Every driver passes the suite, and the suite catches drivers that break a rule."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from drivers.conformance import CHECKS, Check, main, run, subject_of
from drivers.conformance_bench import Subject
from drivers.conformance_promises import drafts_change_nothing
from drivers.contract import (
    Capabilities,
    CopyTimes,
    Driver,
    InspectSpec,
    LoadedModel,
    LoadSpec,
    ModelSpec,
    OpenSpec,
    OpReport,
    Plan,
    StepResult,
    TokenLogprob,
)
from drivers.cpu import CpuDriver
from drivers.errors import PageCorrupt, UnknownModel
from drivers.fake import FakeDriver
from drivers.split.driver import SplitDriver


class InTorch(CpuDriver):
    """Leaves native code alone."""

    def open(self, spec: OpenSpec, host_fd: int | None) -> None:
        super().open(msgspec.structs.replace(spec, options={"native": "off", **spec.options}), host_fd)


class InBfloat16(CpuDriver):
    """Computes in bfloat16."""

    def open(self, spec: OpenSpec, host_fd: int | None) -> None:
        super().open(msgspec.structs.replace(spec, dtype="bfloat16"), host_fd)


SUBJECTS: dict[str, tuple[str, Callable[[], Driver] | None]] = {
    "fake": ("fake", None),
    "cpu": ("cpu", None),
    "cpu in torch": ("cpu", InTorch),
    "cpu in bfloat16": ("cpu", InBfloat16),
    "split": ("split", None),
    "split unevenly, in torch": ("split", lambda: SplitDriver(options={"shares": "1,3", "0.native": "off", "1.native": "off"})),
}


@pytest.fixture(scope="module", params=SUBJECTS)
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    name, make = SUBJECTS[request.param]
    with subject_of(name) as subject:
        yield subject if make is None else replace(subject, make=make)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_driver_conforms(subject: Subject, check: Check) -> None:
    check(subject)


def test_every_check_says_its_rule() -> None:
    assert all((check.__doc__ or "").endswith(".") for check in CHECKS)
    assert len({check.__name__ for check in CHECKS}) == len(CHECKS)


class KeepsZeroedFrames(FakeDriver):
    """Leaves zeroes out."""

    def apply(self, plan: Plan) -> None:
        super().apply(msgspec.structs.replace(plan, zeros=()))


class LosesMoves(FakeDriver):
    """Leaves page copies out."""

    def apply(self, plan: Plan) -> None:
        super().apply(msgspec.structs.replace(plan, moves=()))


class ZeroesLast(FakeDriver):
    """Zeroes frames after pages were moved into them."""

    def apply(self, plan: Plan) -> None:
        super().apply(msgspec.structs.replace(plan, zeros=()))
        super().apply(Plan(plan.boot_generation, plan.seq, zeros=plan.zeros, num_steps=0)) if not plan.num_steps else None


class HidesCorruption(FakeDriver):
    """Names only the first of the corrupt pages."""

    def apply(self, plan: Plan) -> None:
        try:
            super().apply(plan)
        except PageCorrupt as error:
            raise PageCorrupt(error.move_idxs[:1]) from error


class TakesAnyOption(FakeDriver):
    """Opens whatever it is told."""

    def open(self, spec: OpenSpec, host_fd: int | None) -> None:
        super().open(msgspec.structs.replace(spec, options={}), host_fd)


class ForgetsStops(FakeDriver):
    """Says of no row that it stopped."""

    def step(self, step_idx: int) -> StepResult:
        result = super().step(step_idx)
        return msgspec.structs.replace(result, rows=tuple(msgspec.structs.replace(row, is_stopped=False) for row in result.rows))


class SilentLoad(FakeDriver):
    """Tells no progress."""

    def load(self, spec: LoadSpec, progress: Callable[[int, int], None]) -> LoadedModel:
        return super().load(spec, lambda done, total: None)


class UnloadsAnything(FakeDriver):
    """Is content to unload what is not there."""

    def unload(self, model_id: int) -> None:
        try:
            super().unload(model_id)
        except UnknownModel:
            return


class IgnoresMaxPositions(FakeDriver):
    """Runs models as long as they are."""

    def inspect(self, spec: InspectSpec) -> ModelSpec:
        return super().inspect(InspectSpec(spec.path))


class ParksNothing(FakeDriver):
    """Says that it parked, and copied nothing."""

    def park(self, model_id: int, host_offsets: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(0 for _ in host_offsets)


class TrustsImages(FakeDriver):
    """Takes what is in the host tier for good."""

    def load(self, spec: LoadSpec, progress: Callable[[int, int], None]) -> LoadedModel:
        return msgspec.structs.replace(super().load(spec, progress), num_corrupt=0)


class SaysNothingOfItself(FakeDriver):
    """Has no name."""

    def probe(self) -> Capabilities:
        return msgspec.structs.replace(super().probe(), device_name="")


class IgnoresSeeds(FakeDriver):
    """Draws the same whatever the seed."""

    def apply(self, plan: Plan) -> None:
        starts = tuple(msgspec.structs.replace(start, sampling=msgspec.structs.replace(start.sampling, seed=0)) for start in plan.starts)
        super().apply(msgspec.structs.replace(plan, starts=starts))


class MiscountsWork(FakeDriver):
    """Counts rows for tokens."""

    def step(self, step_idx: int) -> StepResult:
        result = super().step(step_idx)
        return msgspec.structs.replace(result, num_tokens=len(result.rows))


class TellsCopiesAgain(FakeDriver):
    """Adds up what it copied since it was opened."""

    total = 0

    def copied(self) -> CopyTimes:
        self.total += super().copied().up_bytes
        return CopyTimes(self.total, 1.0, self.total, 1.0)


class ForgetsAdapters(FakeDriver):
    """Runs every row without its adapter."""

    def apply(self, plan: Plan) -> None:
        super().apply(msgspec.structs.replace(plan, starts=tuple(msgspec.structs.replace(start, adapter_id=0) for start in plan.starts)))


class TakesAnyQuantization(FakeDriver):
    """Looks at the path alone."""

    def inspect(self, spec: InspectSpec) -> ModelSpec:
        return super().inspect(msgspec.structs.replace(spec, quant="", kv_quant=""))

    def load(self, spec: LoadSpec, progress: Callable[[int, int], None]) -> LoadedModel:
        plain = msgspec.structs.replace(spec.source, quant="", kv_quant="")
        return super().load(msgspec.structs.replace(spec, source=plain), progress)


class FeelsCompany(FakeDriver):
    """Rounds otherwise where rows share a step."""

    def step(self, step_idx: int) -> StepResult:
        result = super().step(step_idx)
        nudged = [tuple(TokenLogprob(entry.logprob - 1e-12, entry.top) for entry in row.logprobs) for row in result.rows]
        if len(result.rows) < 2:
            return result
        rows = [msgspec.structs.replace(row, logprobs=told) for row, told in zip(result.rows, nudged, strict=True)]
        return msgspec.structs.replace(result, rows=tuple(rows))


class GuessesWithoutSayingSo(FakeDriver):
    """Guesses three tokens right, and states no drafts."""

    def open(self, spec: OpenSpec, host_fd: int | None) -> None:
        super().open(msgspec.structs.replace(spec, options={"draft_hits": "3", **spec.options}), host_fd)

    def probe(self) -> Capabilities:
        return msgspec.structs.replace(super().probe(), drafts=False)


class KeepsWrongGuesses(FakeDriver):
    """Takes the first guess of a row for right."""

    def step(self, step_idx: int) -> StepResult:
        result = super().step(step_idx)
        rows = [
            msgspec.structs.replace(row, tokens=tuple(token + 1 for token in row.tokens)) if row.num_drafted else row for row in result.rows
        ]
        return msgspec.structs.replace(result, rows=tuple(rows))

    def open(self, spec: OpenSpec, host_fd: int | None) -> None:
        super().open(msgspec.structs.replace(spec, options={"draft_hits": "1", **spec.options}), host_fd)


class NamesNoOps(FakeDriver):
    """Says of an op neither what it is nor how often it is called."""

    def load(self, spec: LoadSpec, progress: Callable[[int, int], None]) -> LoadedModel:
        return msgspec.structs.replace(super().load(spec, progress), ops=(OpReport("", ""),))


class Stumbles(FakeDriver):
    """Has a bug that is no driver error."""

    def park(self, model_id: int, host_offsets: tuple[int, ...]) -> tuple[int, ...]:
        raise ZeroDivisionError("of its own making")


@pytest.mark.parametrize(
    ("driver", "names"),
    [
        (TakesAnyQuantization, {"unknown_quantizations_leave_nothing"}),
        (FeelsCompany, {"invariant_rows_have_the_same_bits"}),
        (GuessesWithoutSayingSo, {"drafts_change_nothing"}),
        (KeepsWrongGuesses, {"drafts_change_nothing"}),
        (NamesNoOps, {"loads_say_what_they_did"}),
        (Stumbles, {"parked_weights_come_back", "parked_weights_are_checked"}),
        (ForgetsAdapters, {"adapters_change_their_own_rows", "rows_name_loaded_adapters_of_their_model"}),
        (KeepsZeroedFrames, {"zeroed_frames_are_seen", "zeroed_host_frames_hold_nothing"}),
        (LosesMoves, {"resume_through_the_host_tier", "copies_are_copies", "host_pages_say_what_they_are", "corrupt_page_is_named"}),
        (ZeroesLast, {"zeros_come_before_moves"}),
        (HidesCorruption, {"corrupt_page_is_named"}),
        (TakesAnyOption, {"unknown_option_is_refused"}),
        (TellsCopiesAgain, {"copies_are_told_once"}),
        (ForgetsStops, {"stop_token_ends_a_row"}),
        (SilentLoad, {"load_tells_progress"}),
        (UnloadsAnything, {"unload_gives_the_room_back", "refused_models_leave_nothing"}),
        (IgnoresMaxPositions, {"shorter_positions_are_kept"}),
        (SaysNothingOfItself, {"probe_states_sane_capabilities"}),
        (ParksNothing, {"parked_weights_come_back", "parking_knows_its_models_and_bounds"}),
        (TrustsImages, {"parked_weights_are_checked"}),
        (IgnoresSeeds, {"draws_follow_seed_and_position"}),
        (MiscountsWork, {"results_count_their_work"}),
    ],
)
def test_a_driver_that_breaks_a_rule_is_caught(driver: Callable[[], Driver], names: set[str]) -> None:
    with subject_of("fake") as good:
        broken = Subject(driver, good.model_path, good.refused_paths, good.adapter_path, good.other_adapter_path)
        caught = {outcome.name for outcome in run(broken) if outcome.complaint}

    assert names <= caught


def test_the_report_names_every_check_and_the_exit_code_is_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fake"]) == 0
    lines = capsys.readouterr().out.splitlines()

    assert len(lines) == len(CHECKS) + 1
    assert lines[-1] == f"fake: {len(CHECKS)} of {len(CHECKS)} checks passed"


def test_guesses_that_are_right_conform() -> None:
    class Guesses(FakeDriver):
        def open(self, spec: OpenSpec, host_fd: int | None) -> None:
            super().open(msgspec.structs.replace(spec, options={"draft_hits": "3", **spec.options}), host_fd)

    with subject_of("fake") as good:
        drafts_change_nothing(replace(good, make=Guesses))


def test_lines_of_json_name_a_check_before_it_begins(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fake", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    assert [line["begins"] for line in lines[:-1:2]] == [line["name"] for line in lines[1:-1:2]] == [check.__name__ for check in CHECKS]
    assert lines[-1] == {"passed": len(CHECKS), "of": len(CHECKS)}


def test_a_model_that_cannot_run_fails_the_suite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fake", "--model", str(tmp_path / "absent")]) == 1
    assert "ModelCorrupt" in capsys.readouterr().out


def test_an_unknown_driver_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["no-such-driver"]) == 2
    assert "is none of" in capsys.readouterr().err
