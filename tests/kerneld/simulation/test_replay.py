"""Requests of a daemon's event log."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from kerneld.calls import FinishReason, Priority
from kerneld.eventbus import EventBus
from kerneld.events import Event, RequestArrived, RequestFinished
from kerneld.simulation.replay import Replay
from kerneld.simulation.workload import Job, TenantLoad, WorkloadInvalid
from tests.kerneld.rig import Rig, in_loop, running


def arrived(request: str, tenant: str = "lab/ann", num_input: int = 7, max_tokens: int = 64) -> RequestArrived:
    return RequestArrived(request, "c" + request, tenant, num_input, max_tokens, Priority.BATCH, 2, 30.0)


def finished(request: str, num_output: int, reason: FinishReason) -> RequestFinished:
    return RequestFinished(request, "c" + request, "lab/ann", reason, 7, 0, num_output, 0.5, 1.0)


def log_of(tmp_path: Path, *events: tuple[float, Event]) -> Path:
    """A log as the daemon's bus gives it and `kernelctl events -o json` prints it."""
    now = [0.0]
    bus = EventBus(lambda: now[0])
    for at, event in events:
        now[0] = at
        bus.publish(event)
    path = tmp_path / "events.jsonl"
    path.write_text("".join(json.dumps(asdict(record)) + "\n" for record in bus._ring))
    return path


def test_requests_come_again_as_they_came(tmp_path: Path) -> None:
    replay = Replay.read(
        log_of(
            tmp_path,
            (1000.0, arrived("1")),
            (1000.5, arrived("2", tenant="lab/bob")),
            (1003.0, finished("1", 20, FinishReason.STOP)),
            (1004.0, finished("2", 64, FinishReason.LENGTH)),
        )
    )

    assert replay.jobs == (
        Job("lab/ann", 0.0, 7, 20, 64, Priority.BATCH, 2, 30.0),
        Job("lab/bob", 0.5, 7, 64, 64, Priority.BATCH, 2, 30.0),
    )
    assert (replay.duration_s, replay.num_missed) == (5.0, 0)


def test_a_request_without_an_end_counts_as_what_it_asked_for(tmp_path: Path) -> None:
    [job] = Replay.read(log_of(tmp_path, (5.0, arrived("1", max_tokens=9)))).jobs

    assert (job.num_output, job.max_tokens) == (9, 9)


def test_a_request_that_ended_without_output_counts_as_what_it_asked_for(tmp_path: Path) -> None:
    log = log_of(tmp_path, (5.0, arrived("1", max_tokens=9)), (6.0, finished("1", 0, FinishReason.CANCELLED)))

    assert Replay.read(log).jobs[0].num_output == 9


def test_an_input_of_nothing_is_one_token(tmp_path: Path) -> None:
    assert Replay.read(log_of(tmp_path, (5.0, arrived("1", num_input=0)))).jobs[0].num_input == 1


def test_tenants_of_the_log_have_their_parents_and_known_ones_stay(tmp_path: Path) -> None:
    replay = Replay.read(log_of(tmp_path, (5.0, arrived("1", tenant="a/b/c"))))

    assert [tenant.path for tenant in replay.tenants()] == ["a", "a/b", "a/b/c"]
    assert [(tenant.path, tenant.weight) for tenant in replay.tenants([TenantLoad("a/b", weight=4)])] == [
        ("a/b", 4),
        ("a", 1),
        ("a/b/c", 1),
    ]


def test_missing_events_are_counted_and_empty_lines_passed_over(tmp_path: Path) -> None:
    path = log_of(tmp_path, (5.0, arrived("1")))
    path.write_text(json.dumps({"at": 1.0, "name": "EventsMissed", "facts": {"count": "12"}}) + "\n\n" + path.read_text())

    assert Replay.read(path).num_missed == 12


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no request arrives"),
        ("hello\n", "line 1: expected an event"),
        ('{"at": 1}\n', "line 1: expected an event"),
        ('{"at": 1, "name": "RequestArrived", "facts": {"request": "1"}}\n', "request 1: KeyError"),
        ('{"at": 1, "name": "RequestArrived", "facts": {"request": "1", "tenant": "a", "input_tokens": "x"}}\n', "request 1: ValueError"),
    ],
)
def test_a_log_that_is_none_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(text)

    with pytest.raises(WorkloadInvalid, match=said):
        Replay.read(path)


def test_a_log_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(WorkloadInvalid, match="cannot read the event log"):
        Replay.read(tmp_path / "absent.jsonl")


@in_loop
async def test_what_a_daemon_did_can_be_sent_again(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        context_id = await rig.alloc(priority=Priority.BATCH)
        await rig.infer(context_id, range(3, 13), max_tokens=6)
        records = [record async for record in rig.machine.events.follow(0, follow=False)]
    path = tmp_path / "events.jsonl"
    path.write_text("".join(json.dumps(asdict(record)) + "\n" for record in records))
    [job] = Replay.read(path).jobs

    assert (job.tenant, job.num_input, job.num_output, job.max_tokens, job.priority) == ("lab/ann", 10, 6, 6, Priority.BATCH)
