"""mem, explain, fsck, and what becomes of limits."""

from __future__ import annotations

import json
from dataclasses import replace

import yaml

from cli.bars import WEIGHTS, Bar, plain_lines
from cli.memory import bars_of, seconds_text
from tests.cli.fake_client import MEMORY, Kernelctl

LEDGER = """\
device |############========++++················| 60MiB of 100MiB, 40MiB free, 16MiB guaranteed
        # weights 30MiB  = lab/ana 20MiB  + others 10MiB

TENANT   TIER       KV  WEIGHTS   USED  GUARANTEE  LIMIT  BORROWED  OVER LIMIT
lab/ana  device  20MiB        -  20MiB      16MiB  18MiB      4MiB        2MiB
models   device      -    30MiB  30MiB          -      -     30MiB           -
others   device  10MiB        -  10MiB          -      -         -           -
"""
DECISIONS = """\
CONTEXT       MODEL  TOKENS  KEPT  CHOSEN      COST  INSTEAD OF    COST  MEASURED
dddddddddddd  small    1000   992  host       850us  recompute    1.20s    12.5ms
eeeeeeeeeeee  small      16     0  recompute  1.0ms  disk        12.5ms         -
"""
WHY = """\
context aaaaaaaaaaaa is ready
  Its request waits: it needs 12 MiB more of the device.

where its bytes are
  host          3MiB  2 pages
  nowhere          -  1 page, computed when needed

in its way
  frames         it needs 12 MiB more of the device.

in line: number 2 of its tenant's 3; 5 wait, 1 run

who holds the device
      14MiB  context cccccccccccc of lab/ana (running)
      14MiB  model small
       1MiB  a context of lab/ana (running)

what would help, the smallest change first
  - unload the model small (14 MiB)
"""


def test_the_ledger_is_drawn_and_listed(kernelctl: Kernelctl) -> None:
    assert kernelctl("mem").stdout == LEDGER
    assert "PINNED" in kernelctl("mem", "-o", "wide").stdout
    assert json.loads(kernelctl("mem", "-o", "json").stdout)["accounts"][0]["kinds"] == {"kv": 20 << 20}
    assert yaml.safe_load(kernelctl("mem", "-o", "yaml").stdout)["tiers"][0]["guaranteed_bytes"] == 16 << 20
    assert kernelctl("mem", "-o", "name").stdout == "lab/ana\nmodels\nothers\n"


def test_workspace_is_told_beside_the_tier_that_it_is_no_part_of() -> None:
    kinds = {"weights": 30 << 20, "workspace": 12 << 20}
    total = replace(MEMORY.tiers[0], kinds=kinds)
    of_models = replace(MEMORY.accounts[1], kinds=kinds, used_bytes=42 << 20)

    [bar] = bars_of(replace(MEMORY, tiers=(total,), accounts=(of_models,)))

    assert bar.note == "40MiB free, 16MiB guaranteed, and 12MiB of workspace beyond it"
    assert (bar.used_bytes, bar.parts) == (60 << 20, ((WEIGHTS, 30 << 20),))


def test_decisions_are_shown_with_what_the_other_way_would_have_cost(kernelctl: Kernelctl) -> None:
    shown = kernelctl("mem", "--decisions", "--count", "7").stdout

    assert "".join(line[10:] + "\n" for line in shown.splitlines()) == DECISIONS
    assert kernelctl.client.arguments_of("memory") == ((), {"num_decisions": 7})


def test_marks_are_used_again_when_there_are_more_tenants_than_marks() -> None:
    bar = Bar("host", 80, 80, tuple((f"t{idx}", 10) for idx in range(8)))

    line, legend = plain_lines([bar])

    assert line == "host   |=====+++++*****ooooo%%%%%@@@@@=====+++++| 80 of 80"
    assert legend.count("=") == 2


def test_durations_have_the_unit_that_fits() -> None:
    assert [seconds_text(each) for each in (None, 0.0, 0.00085, 0.0125, 1.204)] == ["-", "0us", "850us", "12.5ms", "1.20s"]


def test_an_explanation_ends_with_what_would_help(kernelctl: Kernelctl) -> None:
    assert kernelctl("explain", "c1").stdout == WHY
    assert kernelctl.client.arguments_of("explain") == ((), {"context_id": "c1"})
    assert json.loads(kernelctl("explain", "c1", "-o", "json").stdout)["remedies"][0]["action"] == "unload"


def test_a_name_of_a_model_is_taken_for_one(kernelctl: Kernelctl) -> None:
    kernelctl("explain", "small")

    assert kernelctl.client.arguments_of("explain") == ((), {"model": "small"})


def test_fsck_says_what_holds_and_fails_where_something_does_not(kernelctl: Kernelctl) -> None:
    well = kernelctl("fsck")
    kernelctl.client.problems = ("something",)
    ill = kernelctl("fsck")

    assert (well.exit_code, well.stdout) == (0, "books       ok        12 pages\nEverything holds.\n")
    assert ill.exit_code == 1
    assert ill.stdout.splitlines()[1:] == ["journal     1 wrong   3 records, 2KiB read", "            it ends early", "1 problem."]
    assert json.loads(kernelctl("fsck", "-o", "json").stdout.splitlines()[0])["part"] == "books"


def test_a_limit_that_is_deferred_says_what_is_awaited_and_from_whom(kernelctl: Kernelctl) -> None:
    changed = kernelctl("tenant", "set", "lab", "--device-bytes", "32MiB")

    told = "device limit - -> 32MiB: deferred, 12MiB awaited from cccccccccccc (running, 14MiB), a context (running, 14MiB)"
    assert changed.stderr.splitlines() == [told]
