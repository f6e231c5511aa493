"""A process that changes durable state step by step and says what was acknowledged, until a failpoint ends it.

    python crash_child.py journal|store|usage|images|audit FOLDER     a line on stdout per acknowledged step, "refused" lines for refusals

Imports stay inside the functions: a child that needs no database should not load one.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

from kerneld.errors import KernelError

ROW = bytes(range(16))
IMAGE_SECRET = b"s" * 32


def say(line: str) -> None:
    """Tell the parent, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def attempt(name: str, step: Callable[[], object]) -> None:
    """Make one step and acknowledge it, or say why not."""
    try:
        result = step()
        if isinstance(result, Awaitable):
            await result
    except KernelError as error:
        say(f"refused {name} {type(error).__name__}")
    else:
        say(name)


async def journal(folder: Path) -> None:
    """Append twelve records; in between sync, rotate, reserve and compact."""
    from kerneld.state.journal import Journal
    from kerneld.state.records import Tokens, pack_tokens

    log = Journal(folder)
    try:
        list(log.replay())
    except KernelError as error:
        say(f"refused open {type(error).__name__}")
        return
    between: dict[int, Callable[[], object]] = {
        2: log.sync,
        4: log.rotate,
        6: lambda: log.compact(list),
        8: lambda: log.reserve(8 << 20),
        10: lambda: log.compact(list),
    }
    for number in range(12):
        records = [Tokens(((ROW, pack_tokens((number,))),))]
        await attempt(f"append {number}", lambda records=records: log.append(records))  # type: ignore[misc]
        if number in between:
            await attempt(f"between {number}", between[number])


async def store(folder: Path) -> None:
    """Add tenants, one after the other and then three together."""
    from kerneld.calls import Limits
    from kerneld.state.database import sqlite_url
    from kerneld.state.store import Store
    from kerneld.state.tables import TenantRow

    try:
        relations = Store.open(sqlite_url(folder / "kerneld.db"))
    except KernelError as error:
        say(f"refused open {type(error).__name__}")
        return

    def add(number: int) -> Awaitable[None]:
        return attempt(f"add t{number}", lambda: relations.add_tenant(TenantRow(f"t{number}", 1, Limits(), 0.0, bytes(32))))

    for number in range(3):
        await add(number)
    await asyncio.gather(*(add(number) for number in range(3, 6)))
    await relations.close()


async def usage(folder: Path) -> None:
    """Write one request more of a tenant, four times."""
    from kerneld.calls import Limits
    from kerneld.state.database import sqlite_url
    from kerneld.state.store import Store
    from kerneld.state.tables import TenantRow, UsageRow
    from kerneld.state.usagestore import UsageBatch
    from kerneld.usage.amounts import Amounts, Bucket

    relations = Store.open(sqlite_url(folder / "kerneld.db"))
    await relations.add_tenant(TenantRow("lab", 1, Limits(), 1.0, bytes(32)))
    for number in range(4):
        more = {Bucket("lab", 1.0, 3600 * (number // 2)): Amounts(requests=1, input_tokens=10)}
        batch = UsageBatch(more, {"lab": UsageRow(input_tokens=10 * (number + 1))}, {})
        await attempt(f"write {number}", lambda batch=batch: relations.usage.write(batch))  # type: ignore[misc]
    await relations.close()


async def images(folder: Path) -> None:
    """Write two images that share a page, then delete the first."""
    from kerneld.checkpoint import ImageStore, PageContent
    from kerneld.image import Manifest
    from kerneld.state.records import pack_tokens

    files = ImageStore(folder)

    def write(image_id: str, contents: Iterable[bytes]) -> None:
        pages = [PageContent(0, page_idx, b"k" * 16, 16, content) for page_idx, content in enumerate(contents)]
        manifest = Manifest(image_id, "c" * 32, "lab", "ann", "m", "f", 1, pack_tokens(range(32)), 0, 0.0)
        files.write(manifest, pages, IMAGE_SECRET)

    await attempt("write " + "1" * 32, lambda: write("1" * 32, [b"one" * 99, b"two" * 99]))
    await attempt("write " + "2" * 32, lambda: write("2" * 32, [b"one" * 99, b"TWO" * 99]))
    await attempt("delete " + "1" * 32, lambda: files.delete("1" * 32))


async def audit(folder: Path) -> None:
    """Append entries to a log whose files hold three each."""
    from kerneld.calls import Principal
    from kerneld.state.audit import AuditLog

    try:
        log = AuditLog(folder, max_bytes=600)
    except KernelError as error:
        say(f"refused open {type(error).__name__}")
        return
    for number in range(8):
        log.append(Principal("ann", "lab", frozenset()), "FreeContext", str(number), "OK", {})
        await attempt(f"append {number}", log.flush)
    log.close()


if __name__ == "__main__":
    asyncio.run({"journal": journal, "store": store, "usage": usage, "images": images, "audit": audit}[sys.argv[1]](Path(sys.argv[2])))
