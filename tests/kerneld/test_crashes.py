"""Deaths and disk errors at every durable step: what was acknowledged is there, and nothing is half there.

Each case runs `crash_child.py` in a process of its own, with one failpoint armed.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kerneld.calls import Limits
from kerneld.checkpoint import ImageStore, PageContent
from kerneld.errors import DiskFull
from kerneld.failpoints import NAMES
from kerneld.image import Manifest
from kerneld.state.audit import AuditLog
from kerneld.state.chain import verify
from kerneld.state.database import sqlite_url
from kerneld.state.journal import Journal
from kerneld.state.records import Record, Tokens, unpack_tokens
from kerneld.state.store import Store
from kerneld.state.tables import TenantRow, UsageRow
from kerneld.state.usagestore import UsageQuery

ROOT = Path(__file__).parents[2]
CHILD = Path(__file__).with_name("crash_child.py")
IMAGE_SECRET = b"s" * 32
ONCE = ("journal.sync.", "journal.reserve.", "store.migrate.", "image.delete.", "image.collect.")  # the child hits them once


def points(prefix: str) -> list[str]:
    """Return the failpoints of a part."""
    return sorted(name for name in NAMES if name.startswith(prefix))


def cases(prefix: str) -> list[tuple[str, int]]:
    """Return (failpoint, hits that pass first): each point at its first hit and, if there is one, at its second."""
    return [(name, passes) for name in points(prefix) for passes in ((0,) if name.startswith(ONCE) else (0, 1))]


def run_child(part: str, folder: Path, failpoint: str) -> tuple[int, list[str]]:
    """Run the child with a failpoint armed. Return its exit status and what it said."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "KERNELD_FAILPOINTS": failpoint}
    command = [sys.executable, str(CHILD), part, str(folder)]
    child = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in child.stderr, child.stderr
    return child.returncode, child.stdout.splitlines()


def killed_child(part: str, folder: Path, failpoint: str, passes: int) -> list[str]:
    """Run the child until a failpoint kills it. Return what it had acknowledged."""
    status, said = run_child(part, folder, f"{failpoint}=kill,after:{passes}")
    assert status == -signal.SIGKILL, f"{failpoint} was not hit {passes + 1} times"
    return said


def acknowledged(said: list[str], verb: str) -> list[str]:
    """Return the objects of a verb that the child acknowledged."""
    return [line.split()[1] for line in said if line.split()[0] == verb]


def journaled(folder: Path) -> list[str]:
    """Return the numbers of the records in the child's journal."""
    journal = Journal(folder)
    numbers = [_number(record) for record in journal.replay()]
    journal.close()
    return numbers


def _number(record: Record) -> str:
    assert isinstance(record, Tokens)
    return str(unpack_tokens(record.batch[0][1])[0])


def used(folder: Path) -> tuple[int, int, int]:
    """Return requests and input tokens by the hour, and input tokens in all, of the tenant in the child's store."""

    async def look() -> tuple[int, int, int]:
        store = Store.open(sqlite_url(folder / "kerneld.db"))
        found = list((await store.usage.read(UsageQuery(0, 7200, 0))).values())
        total = (await store.usage.load()).totals.get("lab", UsageRow()).input_tokens
        await store.close()
        return sum(amounts.requests for amounts in found), sum(amounts.input_tokens for amounts in found), total

    return asyncio.run(look())


def stored(folder: Path) -> list[str]:
    """Return the paths of the tenants in the child's store."""

    async def body() -> list[str]:
        store = Store.open(sqlite_url(folder / "kerneld.db"))
        paths = [tenant.path for tenant in await store.load_tenants()]
        await store.close()
        return paths

    return asyncio.run(body())


def audited(folder: Path) -> list[str]:
    """Return the objects in the child's audit log, having gone on with it."""
    assert verify(folder) is None
    AuditLog(folder).close()
    assert verify(folder) is None
    lines = b"".join(path.read_bytes() for path in sorted(folder.glob("audit*.log"))).splitlines()
    return [line.split(b'"object_id":"')[1].split(b'"')[0].decode() for line in lines]


def check_images(folder: Path) -> list[str]:
    """Return the images of the child's store, each of them whole, and nothing beside them."""
    store = ImageStore(folder)
    store.collect()
    needed = {folder / "manifests" / image_id for image_id in store.list_ids()}
    for image_id in store.list_ids():
        assert store.verify(image_id, IMAGE_SECRET).problems == ()
        needed |= {folder / "pages" / page.name[:2] / page.name for page in store.read(image_id, IMAGE_SECRET).pages}
    assert {path for path in folder.rglob("*") if path.is_file()} == needed
    return store.list_ids()


# ---------------------------------------------------------------------------------------------------------------------------------- deaths


@pytest.mark.parametrize(("failpoint", "passes"), cases("journal."))
def test_the_journal_keeps_what_it_acknowledged(tmp_path: Path, failpoint: str, passes: int) -> None:
    said = acknowledged(killed_child("journal", tmp_path, failpoint, passes), "append")
    found = journaled(tmp_path)
    assert found == [str(number) for number in range(len(found))]
    assert len(said) <= len(found) <= len(said) + 1
    assert journaled(tmp_path) == found


@pytest.mark.parametrize(("failpoint", "passes"), cases("store."))
def test_the_store_keeps_what_it_acknowledged(tmp_path: Path, failpoint: str, passes: int) -> None:
    said = acknowledged(killed_child("store", tmp_path, failpoint, passes), "add")
    found = stored(tmp_path)
    assert set(said) <= set(found)
    assert len(found) <= len(said) + (3 if len(said) >= 3 else 1)


@pytest.mark.parametrize(("failpoint", "passes"), cases("usage."))
def test_hours_and_totals_of_usage_never_part(tmp_path: Path, failpoint: str, passes: int) -> None:
    said = acknowledged(killed_child("usage", tmp_path, failpoint, passes), "write")
    requests, hours, total = used(tmp_path)
    assert hours == total == 10 * requests
    assert len(said) <= requests <= len(said) + 1


@pytest.mark.parametrize(("failpoint", "passes"), cases("image."))
def test_an_image_is_there_wholly_or_not_at_all(tmp_path: Path, failpoint: str, passes: int) -> None:
    said = killed_child("images", tmp_path, failpoint, passes)
    found = set(check_images(tmp_path))
    kept = set(acknowledged(said, "write"))
    if len(kept) == 2:
        kept.discard("1" * 32)  # it was being deleted
    assert kept <= found


@pytest.mark.parametrize(("failpoint", "passes"), cases("audit."))
def test_the_audit_log_keeps_what_it_acknowledged(tmp_path: Path, failpoint: str, passes: int) -> None:
    said = acknowledged(killed_child("audit", tmp_path, failpoint, passes), "append")
    found = audited(tmp_path)
    assert found == [str(number) for number in range(len(found))]
    assert len(said) <= len(found) <= len(said) + 1


# ----------------------------------------------------------------------------------------------------------------------------- disk errors


@pytest.mark.parametrize("failpoint", points("journal."))
def test_the_journal_refuses_and_goes_on_when_the_disk_fails(tmp_path: Path, failpoint: str) -> None:
    status, said = run_child("journal", tmp_path, f"{failpoint}=error:EIO,after:1")
    assert status == 0
    if failpoint == "journal.sync.before":
        status, said = run_child("journal", tmp_path / "again", f"{failpoint}=error:EIO")
        assert "refused between 2 Unavailable" in said
        tmp_path = tmp_path / "again"
    assert journaled(tmp_path) == acknowledged(said, "append")


@pytest.mark.parametrize("failpoint", ["store.change.after", "store.change.before", "store.commit.before", "store.migrate.before_commit"])
def test_the_store_refuses_and_goes_on_when_the_disk_is_full(tmp_path: Path, failpoint: str) -> None:
    status, said = run_child("store", tmp_path, f"{failpoint}=error:ENOSPC")
    assert status == 0
    assert any(line.startswith("refused") and line.endswith("DiskFull") for line in said)
    assert stored(tmp_path) == sorted(acknowledged(said, "add"))


@pytest.mark.parametrize("failpoint", points("image.manifest.") + points("image.page."))
def test_an_image_that_found_the_disk_full_leaves_nothing(tmp_path: Path, failpoint: str) -> None:
    status, said = run_child("images", tmp_path, f"{failpoint}=error:ENOSPC,after:1")
    assert status == 0
    assert next(line for line in said if line.startswith("refused")).endswith("DiskFull")
    before = sorted(tmp_path.rglob("*"))
    left = set(acknowledged(said, "write")) - set(acknowledged(said, "delete"))
    assert set(check_images(tmp_path)) == left
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("failpoint", points("audit."))
def test_the_audit_log_catches_up_after_the_disk_was_full(tmp_path: Path, failpoint: str) -> None:
    status, _ = run_child("audit", tmp_path, f"{failpoint}=error:ENOSPC,after:1,times:1")
    assert status == 0
    assert audited(tmp_path) == [str(number) for number in range(8)]


# ------------------------------------------------------------------------------------------------------------------------------- full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Give a file system of 2 MiB."""
    mount = shutil.which("mount")
    if os.geteuid() != 0 or mount is None:
        pytest.skip("only root can mount a small file system")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run([mount, "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Write a file that takes all that is free."""
    ballast = folder / "ballast"
    free_bytes = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    ballast.write_bytes(bytes(free_bytes))
    return ballast


def step(number: int) -> Tokens:
    return Tokens(((bytes(16), number.to_bytes(4, "little") * 250),))


def test_a_full_disk_hits_only_what_was_not_reserved(small_disk: Path) -> None:
    journal = Journal(small_disk / "journal")
    list(journal.replay())
    journal.reserve(300_000)
    ballast = fill(small_disk)
    with pytest.raises(DiskFull) as caught:
        journal.reserve(1_500_000)
    assert caught.value.facts["needed_bytes"] == "1500000"
    numbers = iter(range(5000))
    while journal.append((), [step(next(numbers))]):  # 1 KiB each
        pass
    for _ in range(250):
        journal.append([step(next(numbers))])
    journal.release(300_000)
    journal.close()
    assert len(journaled(small_disk / "journal")) == next(numbers) - 1
    ballast.unlink()


def append_until_refused(journal: Journal) -> int:
    """Append 1 KiB again and again; return how often it went well."""
    for number in range(2000):
        try:
            journal.append([step(number)])
        except DiskFull:
            return number
    raise AssertionError("the disk was never full")


def test_appends_beyond_a_full_disk_are_refused_and_come_back(small_disk: Path) -> None:
    journal = Journal(small_disk / "journal")
    list(journal.replay())
    ballast = fill(small_disk)
    written = append_until_refused(journal)
    ballast.unlink()
    journal.append([step(written)])
    journal.close()
    assert journaled(small_disk / "journal") == [str(number) for number in range(written + 1)]


def test_the_store_on_a_full_disk_refuses_and_comes_back(small_disk: Path) -> None:
    async def body() -> None:
        store = Store.open(sqlite_url(small_disk / "kerneld.db"))
        await store.add_tenant(tenant("first"))
        ballast = fill(small_disk)
        results = await asyncio.gather(*(store.add_tenant(tenant(f"t{number}")) for number in range(40)), return_exceptions=True)
        refused = [result for result in results if result is not None]
        assert refused
        assert {type(result) for result in refused} == {DiskFull}
        assert len(await store.load_tenants()) == 1 + len(results) - len(refused)
        ballast.unlink()
        await store.add_tenant(tenant("last"))
        await store.close()

    asyncio.run(body())
    assert {"first", "last"} <= set(stored(small_disk))


def tenant(path: str) -> TenantRow:
    return TenantRow(path, 1, Limits(), 0.0, os.urandom(32) * 200)


def test_an_image_too_large_for_the_disk_leaves_it_as_it_was(small_disk: Path) -> None:
    store = ImageStore(small_disk)
    manifest = Manifest("1" * 32, "c" * 32, "lab", "ann", "m", "f", 1, bytes(16), 0, 0.0)
    pages = [PageContent(0, page_idx, b"k" * 16, 4, os.urandom(300_000)) for page_idx in range(10)]
    with pytest.raises(DiskFull):
        store.write(manifest, pages, IMAGE_SECRET)
    assert not [path for path in small_disk.rglob("*") if path.is_file()]
    store.write(manifest, pages[:3], IMAGE_SECRET)
    assert check_images(small_disk) == ["1" * 32]
