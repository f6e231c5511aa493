"""ps and ctx."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import yaml

from cli.context import context_columns
from cli.render import Printer
from tests.cli.fake_client import CONTEXT, LONG_AGO, Kernelctl

AS_PLAIN = {
    "id": "c1",
    "model": "small",
    "owner": "ana",
    "tenant": "lab/ana",
    "state": "idle",
    "num_tokens": 20,
    "max_tokens": 1024,
    "priority": "interactive",
    "nice": 0,
    "durability": "journal",
    "labels": {"job": "eval"},
    "created_at": LONG_AGO,
    "last_used_at": LONG_AGO,
    "pages": {"device": 2, "host": 1, "lost": 0, "shared": 1, "disk": 3},
    "kv_bytes": 3 << 20,
    "parent": "",
    "active_request": "",
    "last_request": "",
    "failure": "",
    "grants": [],
    "seed": 7,
    "pinned_tokens": 0,
    "sharing_group": "",
    "device": "",
    "adapter": "",
}
OTHER_ID = "ab" * 16
AS_TABLE = """\
ID  MODEL  TENANT   STATE  TOKENS  PAGES DEV  HOST  DISK   AGE
c1  small  lab/ana  idle       20          2     1     3  3d2h
"""


def test_ps_prints_a_table(kernelctl: Kernelctl) -> None:
    assert kernelctl("ps").stdout == AS_TABLE


def test_ps_prints_all_columns_when_wide(kernelctl: Kernelctl) -> None:
    head = kernelctl("ps", "-o", "wide").stdout.splitlines()[0]

    assert head.split("  ")[0] == "ID"
    assert "DURABILITY" in head
    assert "LABELS" in head


def test_ps_prints_json_and_yaml_with_the_field_names_of_the_interface(kernelctl: Kernelctl) -> None:
    assert json.loads(kernelctl("ps", "-o", "json").stdout) == [AS_PLAIN]
    assert yaml.safe_load(kernelctl("ps", "-o", "yaml").stdout) == [AS_PLAIN]


def test_the_format_may_stand_before_the_command(kernelctl: Kernelctl) -> None:
    assert kernelctl("-o", "name", "ps").stdout == "c1\n"


def test_ps_asks_for_what_is_named(kernelctl: Kernelctl) -> None:
    kernelctl("ps", "--all", "--model", "small", "--tenant", "lab")

    assert kernelctl.client.arguments_of("contexts") == ((), {"all": True, "model": "small", "tenant": "lab"})


def test_a_context_is_shown_with_its_adapter(kernelctl: Kernelctl) -> None:
    kernelctl("ctx", "alloc", "small", "--adapter", "tone")
    assert kernelctl.client.arguments_of("alloc")[1]["adapter"] == "tone"

    model = next(column for column in context_columns(Printer()) if column.title == "MODEL")
    assert [model.show(replace(CONTEXT, adapter=name)) for name in ("", "tone")] == ["small", "small+tone"]


def test_alloc_sends_only_what_is_given(kernelctl: Kernelctl) -> None:
    made = kernelctl("ctx", "alloc", "small", "-l", "job=eval", "--seed", "7", "-o", "name")

    assert made.stdout == "c1\n"
    expected = {"labels": {"job": "eval"}, "seed": 7, "priority": "interactive", "nice": 0, "durability": "journal"}
    assert kernelctl.client.arguments_of("alloc") == (("small",), expected)


@pytest.mark.parametrize(
    ("arguments", "verb", "positional", "named"),
    [
        (("fork", "c1", "--at", "8"), "fork", ("c1",), {"at": 8, "labels": {}}),
        (("free", "c1"), "free", ("c1",), {}),
        (("truncate", "c1", "16"), "truncate", ("c1", 16), {}),
        (("suspend", "c1"), "suspend", ("c1",), {"to_disk": False}),
        (("suspend", "c1", "--to", "disk"), "suspend", ("c1",), {"to_disk": True}),
        (("resume", "c1"), "resume", ("c1",), {}),
        (("set", "c1", "--nice", "-3", "-l", "job="), "set", ("c1",), {"nice": -3, "labels": {"job": ""}}),
        (("grant", "c1", "tenant:lab", "--access", "fork"), "grant", ("c1", "tenant:lab"), {"access": ["fork"], "expires_at": 0.0}),
        (("revoke", "c1", "tenant:lab"), "revoke", ("c1", "tenant:lab"), {}),
        (("read", "c1", "--offset", "4", "--limit", "8"), "read", ("c1", 4, 8), {}),
    ],
)
def test_each_verb_reaches_the_context(
    kernelctl: Kernelctl, arguments: tuple[str, ...], verb: str, positional: tuple[Any, ...], named: dict[str, Any]
) -> None:
    done = kernelctl("ctx", *arguments)

    assert done.exit_code == 0, done.output
    assert kernelctl.client.arguments_of(verb) == (positional, named)


def test_stat_shows_one_fact_per_line(kernelctl: Kernelctl) -> None:
    shown = kernelctl("ctx", "stat", "c1").stdout

    assert shown.startswith("id          c1\nmodel       small\n")
    assert "failure" not in shown, "empty facts are left out"


def test_read_prints_the_text(kernelctl: Kernelctl) -> None:
    assert kernelctl("ctx", "read", "c1").stdout == "Once\n"


def test_free_says_what_was_freed(kernelctl: Kernelctl) -> None:
    assert kernelctl("ctx", "free", "c1", OTHER_ID).stdout == f"c1 freed\n{OTHER_ID} freed\n"
    assert json.loads(kernelctl("ctx", "free", "c1", "-o", "json").stdout) == {"id": "c1", "freed": True}


def test_a_label_without_a_value_is_a_usage_error(kernelctl: Kernelctl) -> None:
    assert kernelctl("ctx", "alloc", "small", "-l", "job").exit_code == 2


def test_a_negative_length_is_told_as_a_number(kernelctl: Kernelctl) -> None:
    refused = kernelctl("ctx", "truncate", "c1", "-5")

    assert refused.exit_code == 2
    assert "-5 is not in the range" in refused.stderr
