"""ckpt."""

from __future__ import annotations

import json

from tests.cli.fake_client import Kernelctl

AS_TABLE = """\
ID  NAME    MODEL  TOKENS  PAGES    SIZE   AGE
i1  before  small      20      2  1.5KiB  3d2h
"""


def test_images_are_listed(kernelctl: Kernelctl) -> None:
    assert kernelctl("ckpt", "ls", "--context", "c1").stdout == AS_TABLE
    assert kernelctl.client.arguments_of("images") == ((), {"all": False, "context_id": "c1"})
    assert json.loads(kernelctl("ckpt", "ls", "-o", "json").stdout)[0]["num_pages"] == 2


def test_save_writes_an_image_of_a_context(kernelctl: Kernelctl) -> None:
    assert kernelctl("ckpt", "save", "c1", "--name", "before", "-o", "name").stdout == "i1\n"
    assert kernelctl.client.arguments_of("checkpoint") == (("c1",), {"name": "before", "tokens_only": False})


def test_restore_gives_a_context(kernelctl: Kernelctl) -> None:
    assert kernelctl("ckpt", "restore", "i1", "-o", "name").stdout == "c1\n"


def test_verify_ends_with_1_for_a_broken_image(kernelctl: Kernelctl) -> None:
    assert kernelctl("ckpt", "verify", "i1").stdout == "i1 is whole, 1.5KiB read\n"

    kernelctl.client.problems = ("page 3: checksum",)
    broken = kernelctl("ckpt", "verify", "i1")

    assert (broken.exit_code, broken.stderr) == (1, "page 3: checksum\n")


def test_rm_deletes_each(kernelctl: Kernelctl) -> None:
    assert kernelctl("ckpt", "rm", "i1", "before").stdout == "i1 deleted\nbefore deleted\n"
    assert [positional for verb, positional, _ in kernelctl.client.asked if verb == "delete_image"] == [("i1",), ("i1",)]
