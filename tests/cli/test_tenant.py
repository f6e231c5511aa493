"""tenant and token."""

from __future__ import annotations

import json
from dataclasses import replace

from kerneld_client.values import Limits
from tests.cli.fake_client import LIMITS, Kernelctl

AS_TABLE = """\
TENANT  WEIGHT  CONTEXTS  RUNNING  QUEUED  SERVICE  KV DEVICE  HOST  DISK  GUARANTEE
lab          2         1        1       0    12.3k       2MiB     0  1MiB          -
"""


def test_tenants_are_listed(kernelctl: Kernelctl) -> None:
    assert kernelctl("tenant", "ls").stdout == AS_TABLE
    assert json.loads(kernelctl("tenant", "ls", "-o", "json").stdout)[0]["limits"]["max_contexts"] == 4


def test_add_sends_weight_and_limits(kernelctl: Kernelctl) -> None:
    added = kernelctl("tenant", "add", "lab", "--weight", "2", "--device-bytes", "512MiB", "-o", "json")

    assert json.loads(added.stdout)["path"] == "lab"
    assert kernelctl.client.arguments_of("add_tenant") == (("lab",), {"weight": 2, "limits": Limits(device_bytes=512 << 20)})


def test_set_keeps_the_limits_that_are_not_named(kernelctl: Kernelctl) -> None:
    kernelctl("tenant", "set", "lab", "--max-running", "3")

    assert kernelctl.client.arguments_of("set_tenant") == (
        ("lab",),
        {"weight": None, "limits": replace(LIMITS, max_running=3), "revision": "ab12"},
    )


def test_set_of_a_weight_leaves_limits_alone(kernelctl: Kernelctl) -> None:
    kernelctl("tenant", "set", "lab", "--weight", "3")

    assert kernelctl.client.arguments_of("set_tenant") == (("lab",), {"weight": 3, "limits": None, "revision": ""})


def test_a_size_that_is_none_is_a_usage_error(kernelctl: Kernelctl) -> None:
    assert kernelctl("tenant", "add", "lab", "--device-bytes", "much").exit_code == 2


def test_rm_says_how_many_contexts_it_freed(kernelctl: Kernelctl) -> None:
    assert kernelctl("tenant", "rm", "lab", "--force").stdout == "lab removed, 1 contexts freed\n"
    assert kernelctl.client.arguments_of("remove_tenant") == (("lab",), {"force": True})


def test_a_new_token_is_alone_on_stdout(kernelctl: Kernelctl) -> None:
    made = kernelctl("token", "add", "--tenant", "lab", "--role", "viewer")

    assert made.stdout == "kd_secret\n"
    assert kernelctl.client.arguments_of("add_token")[1] == {"tenant": "lab", "name": "", "roles": ["viewer"], "lifetime_s": 0.0}


def test_a_new_token_has_id_and_token_in_json(kernelctl: Kernelctl) -> None:
    made = json.loads(kernelctl("token", "add", "--tenant", "lab", "-o", "json").stdout)

    assert (made["id"], made["token"]) == ("t1", "kd_secret")


def test_tokens_are_listed_without_secrets(kernelctl: Kernelctl) -> None:
    listed = kernelctl("token", "ls")

    assert listed.stdout == "ID  TENANT  NAME  ROLES   AGE  LAST USED     LEFT\nt1  lab     ci    user   3d2h      never  forever\n"


def test_tokens_are_removed_by_id(kernelctl: Kernelctl) -> None:
    assert kernelctl("token", "rm", "t1").stdout == "t1 removed\n"
