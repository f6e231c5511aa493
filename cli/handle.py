"""Handles as people type them: the first characters of an id, or an image's name, and the whole id behind them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kerneld_client import Client, Context

SHORT_ID = 12  # characters of an id in tables: enough to tell a million apart
_WHOLE_ID = re.compile(r"[0-9a-f]{32}")


def short(whole_id: str) -> str:
    """What a table shows of an id; every command takes it back."""
    return whole_id[:SHORT_ID]


def is_whole_id(typed: str) -> bool:
    """Whether somebody typed all of an id."""
    return _WHOLE_ID.fullmatch(typed) is not None


def is_beginning(typed: str) -> bool:
    """Whether an id may begin like that."""
    return re.fullmatch(r"[0-9a-fA-F]{1,32}", typed) is not None


def find_context(client: Client, typed: str) -> Context:
    """The context that a person means, among those that the caller may see. Raises: KerneldError."""
    if _WHOLE_ID.fullmatch(typed):
        return client.context(typed)
    return client.context(the_only("context", typed, beginning_with(typed, (context.id for context in client.contexts(all=True)))))


def find_image(client: Client, typed: str) -> str:
    """Id of the image that a person means, by its id or its name; of several with that name, the newest. Raises: KerneldError."""
    if _WHOLE_ID.fullmatch(typed):
        return typed
    images = client.images(all=True)
    named = [image for image in images if typed and image.name == typed]
    if named:
        return max(named, key=lambda image: image.created_at).id
    return the_only("image", typed, beginning_with(typed, (image.id for image in images)))


def beginning_with(typed: str, ids: Iterable[str]) -> list[str]:
    """Ids that begin like that, in order; nothing begins with nothing."""
    return sorted(whole_id for whole_id in ids if typed and whole_id.startswith(typed.lower()))


def the_only(noun: str, typed: str, found: list[str]) -> str:
    """The one id that was found. Raises: NotFound, InvalidArgument where there are several."""
    from kerneld_client.errors import InvalidArgument, NotFound

    if not found:
        raise NotFound(f"There is no {noun} {typed!r}.", facts={"noun": noun, "name": typed})
    if len(found) > 1:
        raise InvalidArgument(f"{typed!r} is the beginning of {len(found)} ids, among them {found[0]} and {found[1]}; give more of it.")
    return found[0]
