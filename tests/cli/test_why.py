"""why: when a request has its turn, who is ahead of it, and what is in its way."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import cast

import pytest

from cli.why import estimate_text, explain_last
from kerneld_client import Client
from kerneld_client.errors import NotFound
from kerneld_client.memory_values import StartEstimate
from tests.cli.fake_client import EXPLANATION, OUTLOOK, FakeClient, Kernelctl

WHY = """\
request bbbbbbbbbbbb of lab/ana, on context aaaaaaaaaaaa, is waiting
  Its request waits: it needs 12 MiB more of the device.
  It starts in about 4.2 s; estimates of the last 64 requests were off by 31% (median).
  In line: number 5 of all, number 2 of its tenant's.
  Class batch, nice 2, waited 3.2 s, preempted 1 time, 7 output tokens.

who shares with it, the least served first (*: its own tenant, or one above it)
     TENANT    WEIGHT  AHEAD BY  SERVICE  WAITING  RUNNING
     others         1    0.0 ms    1.5 s        1        4
  *  lab/ana  2 x 0.5    4.2 ms    2.5 s        3        2

in its way
  frames         it needs 12 MiB more of the device.

who holds the device
      14MiB  context cccccccccccc of lab/ana (running)
      14MiB  model small
       1MiB  a context of lab/ana (running)

what would help, the smallest change first
  - unload the model small (14 MiB)
"""
LIST = """\
REQUEST       CONTEXT       TENANT   STATE    PLACE  STARTS IN  WAITED  TOKENS  MODEL
cccccccccccc  aaaaaaaaaaaa  lab/ana  running                     3.2 s       7  small
bbbbbbbbbbbb  aaaaaaaaaaaa  lab/ana  waiting      5     ~4.2 s   3.2 s       7  small
"""
WAITS = replace(EXPLANATION, outlook=OUTLOOK)


def test_a_request_is_told_when_it_starts_and_who_is_ahead(kernelctl: Kernelctl) -> None:
    kernelctl.client.explanation = WAITS

    assert kernelctl("why", "bbb").stdout == WHY
    assert kernelctl.client.arguments_of("explain") == ((), {"request": "b" * 32})
    assert json.loads(kernelctl("why", "bbb", "-o", "json").stdout)["outlook"]["estimate"] == {
        "seconds": 4.21,
        "error": 0.312,
        "num_judged": 64,
    }


def test_a_context_is_taken_for_its_request(kernelctl: Kernelctl) -> None:
    kernelctl.client.explanation = replace(EXPLANATION, state="idle", summary="it is idle.")

    shown = kernelctl("why", "c1").stdout

    assert shown == "context aaaaaaaaaaaa is idle, and no request waits or runs on it\n  It is idle.\n"
    assert kernelctl.client.arguments_of("explain") == ((), {"context_id": "c1"})


def test_without_a_subject_the_requests_are_listed_with_their_places(kernelctl: Kernelctl) -> None:
    assert kernelctl("why").stdout == LIST
    assert kernelctl.client.arguments_of("requests") == ((), {"all": False})
    assert kernelctl("why", "-o", "name").stdout == f"{'c' * 32}\n{'b' * 32}\n"
    assert json.loads(kernelctl("why", "--all", "-o", "json").stdout)[1]["position"] == 5


def test_one_that_ended_says_how_it_went(kernelctl: Kernelctl) -> None:
    ended = replace(OUTLOOK, state="finished", reason="stop", arrived_at=time.time() - 70, ended_at=time.time() - 60)
    kernelctl.client.explanation = replace(EXPLANATION, summary="It ended: stop.", outlook=ended)

    lines = kernelctl("why", "b" * 32).stdout.splitlines()

    assert lines[0].endswith("is finished")
    assert lines[1:] == ["  It ended: stop.", "  It ended 1m ago, 10s after its arrival; first token after 500 ms."]


def test_the_beginning_of_one_that_ended_is_known_to_the_daemon(kernelctl: Kernelctl) -> None:
    assert kernelctl("why", "FFFF").exit_code == 0
    assert kernelctl.client.arguments_of("explain") == ((), {"request": "ffff"})


def test_a_whole_id_of_nobody_is_of_no_request_and_no_context(kernelctl: Kernelctl) -> None:
    kernelctl.client.error = NotFound("There is no context.", facts={"noun": "context"})

    missing = kernelctl("why", "f" * 32)

    assert missing.exit_code == 3
    assert f"error: There is no request or context '{'f' * 32}'; of requests that ended, the latest are remembered" in missing.stderr
    assert "`kernelctl why` lists requests" in missing.stderr


def test_a_beginning_that_the_daemon_does_not_know_either_is_of_no_request_and_no_context() -> None:
    client = FakeClient(error=NotFound("There is no request.", facts={"noun": "request"}))

    with pytest.raises(NotFound, match="There is no request or context 'FFFF'; of requests that ended"):
        explain_last(cast("Client", client), "FFFF", request="ffff")
    assert client.arguments_of("explain") == ((), {"request": "ffff"})


def test_for_how_long_a_request_is_deferred_is_said_once(kernelctl: Kernelctl) -> None:
    text = "it is above a soft limit that holds for lab/ana: it joins the line in 113.5 s, or when nobody else is there."
    held = replace(OUTLOOK, state="deferred", deferred_until=time.time() + 113.5)
    summary = "Its request waits: a soft limit holds it back."
    obstacle = replace(EXPLANATION.obstacles[0], code="DEFERRED", text=text)
    kernelctl.client.explanation = replace(EXPLANATION, summary=summary, obstacles=(obstacle,), outlook=held)

    shown = kernelctl("why", "bbb").stdout

    assert shown.count(text) == 1
    assert "1m53s" not in shown


def test_nobody_with_that_id_is_not_found(kernelctl: Kernelctl) -> None:
    missing = kernelctl("why", "xyz")

    assert missing.exit_code == 3
    assert "There is no request or context 'xyz'." in missing.stderr
    assert "`kernelctl why` lists requests" in missing.stderr


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (StartEstimate(None, None, 0), "When it starts is unknown as yet."),
        (StartEstimate(0.0, 0.1, 1), "It starts with the next step; estimates of the last 1 request were off by 10% (median)."),
        (StartEstimate(90.0, None, 0), "It starts in about 1m30s; no such estimate was judged yet."),
    ],
)
def test_an_estimate_says_what_it_is_worth(estimate: StartEstimate, text: str) -> None:
    assert estimate_text(estimate) == text
