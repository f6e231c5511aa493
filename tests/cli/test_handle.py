"""Contexts and images by the beginning of their id, or by name."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cli.handle import beginning_with, find_context, find_image, short, the_only
from kerneld_client.errors import InvalidArgument, NotFound
from kerneld_client.values import ContextInfo, Image
from tests.cli.fake_client import CONTEXT, IMAGE, FakeClient, Kernelctl

FIRST, SECOND = "aa" * 16, "ab" * 16


class Lists(FakeClient):
    """A client with two contexts and two images of one name."""

    def contexts(self, **_: object) -> list[ContextInfo]:
        """Both contexts."""
        return [replace(CONTEXT, id=FIRST), replace(CONTEXT, id=SECOND)]

    def images(self, **_: object) -> list[Image]:
        """Both images, the older first."""
        return [replace(IMAGE, id=FIRST, created_at=1.0), replace(IMAGE, id=SECOND, created_at=2.0)]


def test_a_whole_id_is_taken_as_it_is() -> None:
    client = FakeClient()

    assert find_context(client, FIRST).id == FIRST  # type: ignore[arg-type]
    assert client.verbs() == []


def test_the_beginning_of_an_id_is_enough() -> None:
    assert find_context(Lists(), short(SECOND)).id == SECOND  # type: ignore[arg-type]
    assert find_image(Lists(), "aa") == FIRST  # type: ignore[arg-type]


def test_of_images_with_one_name_the_newest_is_meant() -> None:
    assert find_image(Lists(), IMAGE.name) == SECOND  # type: ignore[arg-type]


def test_the_beginning_of_two_ids_is_refused_and_names_them() -> None:
    with pytest.raises(InvalidArgument, match=f"2 ids, among them {FIRST} and {SECOND}"):
        find_context(Lists(), "a")  # type: ignore[arg-type]


def test_the_beginning_of_no_id_is_not_found() -> None:
    with pytest.raises(NotFound) as refused:
        the_only("context", "zz", beginning_with("zz", [FIRST]))

    assert refused.value.facts == {"noun": "context", "name": "zz"}
    assert beginning_with("", [FIRST]) == []


def test_tables_show_short_ids_and_wide_ones_whole(kernelctl: Kernelctl) -> None:
    assert short(FIRST) == "a" * 12
    assert kernelctl("ps", "-o", "wide").stdout.splitlines()[1].startswith("c1 ")
