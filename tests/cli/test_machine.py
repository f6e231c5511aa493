"""top, events, drain, whoami."""

from __future__ import annotations

import json
from dataclasses import replace

from cli.machine import memory_lines
from kerneld_client.values import TierUse
from tests.cli.fake_client import ACTIVITY, FRAME, Kernelctl

MEMORY = """\
device |############========++++················| 60MiB of 100MiB
        # weights 30MiB  = lab 20MiB  + solo 10MiB
"""


def test_a_tier_without_room_is_drawn_empty() -> None:
    assert list(memory_lines([TierUse("host", 0, 0, 0, {})])) == [f"host   |{'·' * 40}| 0 of 0"]


def test_top_once_shows_one_frame(kernelctl: Kernelctl) -> None:
    shown = kernelctl("top", "--once").stdout

    assert shown.startswith("up 1m15s (boot 5)  running 1  waiting 2  contexts 3  tokens/s 120 out 900 in  jain 0.987\n" + MEMORY)
    assert "cpu0    cpu     4711  running   50%         1\n" in shown
    assert shown.endswith(
        "TENANT   WEIGHT  USED 10S  SERVED 10S    OWED  WAITING  RUNNING  CONTEXTS  KV DEVICE\n"
        "lab     2 x 1.5     75.0%       4.2 s  -13 ms        3        2         1       2MiB\n"
    )


def test_of_many_tenants_top_shows_the_busiest(kernelctl: Kernelctl) -> None:
    many = tuple(replace(ACTIVITY, tenant=f"t{idx}") for idx in range(50))
    kernelctl.client.frame = replace(FRAME, activities=many)

    lines = kernelctl("top").stdout.splitlines()

    assert "tenants: the 20 busiest of 50" in lines
    assert lines[-1].startswith("t19 ")


def test_top_without_a_terminal_prints_frame_after_frame(kernelctl: Kernelctl) -> None:
    frames = [json.loads(line) for line in kernelctl("top", "--count", "2", "-o", "json").stdout.splitlines()]

    assert [frame["running"] for frame in frames] == [1, 2]
    assert kernelctl.client.arguments_of("top_stream") == ((), {"interval_s": 1.0, "count": 2})


def test_top_without_a_terminal_shows_one_frame_unless_more_are_asked_for(kernelctl: Kernelctl) -> None:
    assert kernelctl("top").stdout.count("(boot 5)") == 1
    assert kernelctl("top", "--interval", "5").stdout.count("(boot 5)") == 2


def test_events_are_lines_and_in_json_one_object_per_line(kernelctl: Kernelctl) -> None:
    assert kernelctl("events", "-f", "--since", "8").stdout.endswith("  9  WorkerLost  device=cpu0\n")
    assert kernelctl.client.arguments_of("events") == ((), {"follow": True, "since": 8})
    assert json.loads(kernelctl("events", "-o", "json").stdout)["facts"] == {"device": "cpu0"}


def test_drain_says_what_it_did(kernelctl: Kernelctl) -> None:
    assert kernelctl("drain").stdout == "Drained: 3 requests finished, 1 left for the next start.\n"
    assert json.loads(kernelctl("drain", "-o", "json").stdout) == {"finished": 3, "left_for_next_start": 1}


def test_whoami_shows_the_principal(kernelctl: Kernelctl) -> None:
    assert kernelctl("whoami").stdout == "name    ana\ntenant  lab/ana\nroles   user\nvia     peer\n"
