"""tenant and token."""

from __future__ import annotations

import json
from dataclasses import replace

from cli.limits import mode_text
from kerneld_client.values import LimitMode, Limits
from tests.cli.fake_client import LIMITS, Kernelctl

AS_TABLE = """\
TENANT  WEIGHT  CONTEXTS  RUNNING  QUEUED  SERVICE  KV DEVICE  HOST  DISK  GUARANTEE
lab          2         1        1       0   15m41s       2MiB     0  1MiB          -
"""


def test_tenants_are_listed(kernelctl: Kernelctl) -> None:
    assert kernelctl("tenant", "ls").stdout == AS_TABLE
    [listed] = json.loads(kernelctl("tenant", "ls", "-o", "json").stdout)
    assert (listed["service"], listed["limits"]["max_contexts"]) == (941_900_000, 4)  # microseconds


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


def test_limits_are_soft_or_hard(kernelctl: Kernelctl) -> None:
    options = ("--requests-per-minute", "60", "--loads-per-hour", "4", "--soft", "requests_per_minute", "--hard", "max-running")
    kernelctl("tenant", "set", "lab", *options)

    modes = {"requests_per_minute": LimitMode.SOFT, "max_running": LimitMode.HARD}
    limits = replace(LIMITS, requests_per_minute=60, loads_per_hour=4, modes=modes)
    assert kernelctl.client.arguments_of("set_tenant")[1]["limits"] == limits


def test_a_mode_alone_changes_no_amount(kernelctl: Kernelctl) -> None:
    kernelctl("tenant", "set", "lab", "--soft", "loads_per_hour")

    assert kernelctl.client.arguments_of("set_tenant")[1]["limits"] == replace(LIMITS, modes={"loads_per_hour": LimitMode.SOFT})


def test_a_limit_that_is_always_hard_and_one_that_is_none_say_what_may_be_soft(kernelctl: Kernelctl) -> None:
    for name in ("max_contexts", "requests_per_second"):
        refused = kernelctl("tenant", "set", "lab", "--soft", name)
        assert refused.exit_code == 2
        told = "is always hard, or is no limit; soft or hard can be max_running, requests_per_minute, tokens_per_minute, loads_per_hour."
        assert f"'{name}' {told}" in " ".join(refused.stderr.split())


def test_a_limit_cannot_be_soft_and_hard(kernelctl: Kernelctl) -> None:
    refused = kernelctl("tenant", "set", "lab", "--soft", "max_running", "--hard", "max_running")
    assert (refused.exit_code, "max_running cannot be soft and hard." in refused.stderr) == (2, True)


def test_weights_that_are_none_say_what_to_do_instead(kernelctl: Kernelctl) -> None:
    for weight in ("0", "-1", "10001", "much"):
        refused = kernelctl("tenant", "set", "lab", f"--weight={weight}")
        assert refused.exit_code == 2
        assert f"{weight} is not a weight: use 1 to 10000." in " ".join(refused.stderr.split())
        assert "class idle" in " ".join(refused.stderr.split())


def test_negative_limits_are_usage_errors(kernelctl: Kernelctl) -> None:
    assert kernelctl("tenant", "add", "lab", "--requests-per-minute=-1").exit_code == 2


def test_show_tells_every_limit(kernelctl: Kernelctl) -> None:
    lines = kernelctl("tenant", "show", "lab").stdout.splitlines()
    assert [line.split()[-1] for line in lines if line.startswith(("max contexts", "loads/hour"))] == ["4", "-"]


def test_a_limit_is_shown_with_its_mode() -> None:
    limits = Limits(max_running=3, requests_per_minute=60, loads_per_hour=4, modes={"requests_per_minute": LimitMode.SOFT})
    names = ("max_running", "requests_per_minute", "loads_per_hour", "tokens_per_minute")
    assert [mode_text(limits, name) for name in names] == ["3 soft", "60 soft", "4 hard", "-"]


def test_show_of_an_unknown_tenant_says_so(kernelctl: Kernelctl) -> None:
    refused = kernelctl("tenant", "show", "nobody")
    assert (refused.exit_code, "There is no tenant 'nobody'." in refused.stderr) == (3, True)


def test_a_size_that_is_none_is_a_usage_error(kernelctl: Kernelctl) -> None:
    assert kernelctl("tenant", "add", "lab", "--device-bytes", "much").exit_code == 2


def test_rm_says_how_many_contexts_it_freed(kernelctl: Kernelctl) -> None:
    assert kernelctl("tenant", "rm", "lab", "--force").stdout == "lab removed, 1 context freed\n"
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
