"""share-group, and what the other commands say of sharing."""

from __future__ import annotations

import json

from tests.cli.fake_client import Kernelctl

AS_TABLE = """\
GROUP  CONTEXTS  MEMBERS
team          2  lab/ana,lab/bo
"""


def test_groups_are_listed(kernelctl: Kernelctl) -> None:
    assert kernelctl("share-group", "ls").stdout == AS_TABLE
    assert json.loads(kernelctl("share-group", "ls", "-o", "json").stdout)[0]["members"] == ["lab/ana", "lab/bo"]


def test_add_and_set_name_the_members(kernelctl: Kernelctl) -> None:
    kernelctl("share-group", "add", "team", "lab/ana")
    kernelctl("share-group", "set", "team", "lab/ana", "lab/bo")

    assert kernelctl.client.arguments_of("add_sharing_group") == (("team", ("lab/ana",)), {})
    assert kernelctl.client.arguments_of("set_sharing_group") == (("team", ("lab/ana", "lab/bo")), {})


def test_rm_says_what_it_did(kernelctl: Kernelctl) -> None:
    assert kernelctl("share-group", "rm", "team").stdout == "team removed\n"
    assert kernelctl.client.arguments_of("remove_sharing_group") == (("team",), {})


def test_a_context_is_allocated_in_a_group(kernelctl: Kernelctl) -> None:
    kernelctl("ctx", "alloc", "small", "--share-group", "team")

    assert kernelctl.client.arguments_of("alloc")[1]["sharing_group"] == "team"


def test_stats_go_to_stderr(kernelctl: Kernelctl) -> None:
    said = kernelctl("infer", "c1", "Once", "--stats")

    assert "(0 from other contexts)" in said.stderr
    assert "taken" not in said.stdout
