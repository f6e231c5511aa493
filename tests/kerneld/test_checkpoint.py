"""Image files: what is shared, what is refused, what is removed."""

from __future__ import annotations

import errno
import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from kerneld import failpoints, image
from kerneld.calls import Verified
from kerneld.checkpoint import ImageStore, PageContent, Written
from kerneld.errors import AlreadyExists, DataLoss, KernelError, NotFound
from kerneld.image import ImagePage, Manifest
from kerneld.state.records import pack_tokens

SECRET, OTHER_SECRET = b"s" * 32, b"t" * 32
FIRST, SECOND = "1" * 32, "2" * 32


def manifest(image_id: str = FIRST, num_tokens: int = 32) -> Manifest:
    return Manifest(
        image_id=image_id,
        context_id="c" * 32,
        tenant="lab/ann",
        owner="ann",
        model="m",
        fingerprint="f",
        generation=1,
        tokens=pack_tokens(range(num_tokens)),
        seed=7,
        created_at=1.0,
    )


def pages(*contents: bytes) -> list[PageContent]:
    return [PageContent(0, page_idx, bytes([page_idx]) * 16, 16, content) for page_idx, content in enumerate(contents)]


def files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def write(store: ImageStore, image_id: str = FIRST, contents: tuple[bytes, ...] = (b"one" * 30, b"two" * 30)) -> Written:
    return store.write(manifest(image_id), pages(*contents), SECRET)


def test_an_image_reads_back_as_it_was_written(tmp_path: Path) -> None:
    written = write(ImageStore(tmp_path))
    store = ImageStore(tmp_path)
    found = store.read(FIRST, SECRET)
    assert found == written.manifest
    assert [store.read_page(found, page, SECRET) for page in found.pages] == [b"one" * 30, b"two" * 30]
    assert store.verify(FIRST, SECRET) == Verified((), written.size_bytes)
    assert store.list_ids() == [FIRST]


def test_any_contiguous_buffer_can_be_a_page(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    content = memoryview(bytearray(b"abcd")).cast("I")
    store.write(manifest(), [PageContent(0, 0, b"k" * 16, 16, content)], SECRET)
    found = store.read(FIRST, SECRET)
    assert store.read_page(found, found.pages[0], SECRET) == b"abcd"


def test_only_what_changed_is_written(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    first = write(store)
    second = write(store, SECOND, (b"one" * 30, b"TWO" * 30))
    assert first.new_bytes == first.size_bytes
    assert second.new_bytes == second.size_bytes - 90


def test_tenants_share_no_files(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    write(store)
    store.write(manifest(SECOND), pages(b"one" * 30, b"two" * 30), OTHER_SECRET)
    assert len(files(tmp_path / "pages")) == 4


def test_a_damaged_page_is_healed_by_the_next_write(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    write(store)
    for path in files(tmp_path / "pages"):
        path.write_bytes(b"damage")
    write(store, SECOND)
    assert store.verify(FIRST, SECRET).problems == ()


def test_the_last_image_of_a_page_takes_it_along(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    write(store)
    write(store, SECOND, (b"one" * 30, b"TWO" * 30))
    assert store.delete(FIRST) == 90
    assert store.verify(SECOND, SECRET).problems == ()
    store.delete(SECOND)
    assert files(tmp_path) == []
    with pytest.raises(NotFound):
        store.read(SECOND, SECRET)


def test_an_image_is_never_replaced(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    written = write(store)
    with pytest.raises(AlreadyExists):
        write(store, FIRST, (b"other" * 30,))
    assert store.read(FIRST, SECRET) == written.manifest
    assert len(files(tmp_path)) == 3


def test_leftovers_of_a_death_are_collected(tmp_path: Path) -> None:
    write(ImageStore(tmp_path))
    orphan = tmp_path / "pages" / "ab" / ("ab" * 32)
    orphan.parent.mkdir(exist_ok=True)
    orphan.write_bytes(b"orphan")
    (tmp_path / "temp" / "half").write_bytes(b"half")
    store = ImageStore(tmp_path)
    assert store.collect() == len(b"orphan")
    assert store.verify(FIRST, SECRET).problems == ()
    assert len(files(tmp_path)) == 3


def test_a_deletion_spares_the_pages_of_a_write_under_way(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    contents = [b"%d" % number * 10 for number in range(12)]
    write(store, FIRST, tuple(contents))

    def slow() -> Iterator[PageContent]:
        everything = pages(*contents)
        yield from everything[:10]
        store.delete(FIRST)  # the first batch of pages is pinned, the second is not asked for yet
        store.collect()
        yield from everything[10:]

    store.write(manifest(SECOND), slow(), SECRET)
    assert store.verify(SECOND, SECRET).problems == ()


CONTENTS = tuple(b"%d" % number * 10 for number in range(20))  # three batches
WRITE_POINTS = 3 * 8 + 3  # a write passes three for each page that is new, and three for the manifest


def at_hit(number: int, act: Callable[[], object]) -> Callable[[str], None]:
    """Let something happen at the nth point that is passed, once."""
    count = itertools.count()

    def watcher(_name: str) -> None:
        if next(count) == number:
            act()

    return watcher


@pytest.mark.parametrize("number", range(WRITE_POINTS))
def test_a_collection_at_any_step_of_a_write_takes_nothing_that_it_needs(tmp_path: Path, number: int) -> None:
    store = ImageStore(tmp_path)
    write(store, FIRST, CONTENTS[:12])  # whose pages the second image finds there, and takes over

    swept: list[int] = []

    def sweep() -> None:
        swept.append(number)
        if FIRST in store.list_ids():
            store.delete(FIRST)
        store.collect()

    with failpoints.watched(at_hit(number, sweep)):
        write(store, SECOND, CONTENTS)

    assert swept == [number]
    assert store.verify(SECOND, SECRET).problems == ()
    store.collect()
    assert ImageStore(tmp_path).verify(SECOND, SECRET).problems == ()
    assert len(files(tmp_path / "pages")) == 20


@pytest.mark.parametrize("number", range(16))
def test_a_write_at_any_step_of_a_deletion_is_whole(tmp_path: Path, number: int) -> None:
    store = ImageStore(tmp_path)
    write(store, FIRST, CONTENTS[:12])
    writer = threading.Thread(target=lambda: write(store, SECOND, CONTENTS))  # waits where single files are being removed

    with failpoints.watched(at_hit(number, writer.start)):
        store.delete(FIRST)
        store.collect()
    if writer.ident is None:
        writer.start()
    writer.join()

    assert store.verify(SECOND, SECRET).problems == ()
    assert len(files(tmp_path / "pages")) == 20


def test_a_collection_at_any_step_of_a_failing_write_leaves_nothing_of_it(tmp_path: Path) -> None:
    for number in range(12):
        store = ImageStore(tmp_path / str(number))

        def fail() -> None:
            store.collect()  # noqa: B023 - called within the turn
            raise OSError(errno.ENOSPC, "full")

        with failpoints.watched(at_hit(number, fail)), pytest.raises(KernelError):
            write(store, FIRST, CONTENTS[:3])

        store.collect()
        assert files(tmp_path / str(number)) == []


def test_nothing_is_removed_while_a_manifest_cannot_be_read(tmp_path: Path) -> None:
    write(ImageStore(tmp_path))
    path = tmp_path / "manifests" / FIRST
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    store = ImageStore(tmp_path)
    assert store.collect() == 0
    store.delete(FIRST)
    assert store.collect() == 180


@pytest.mark.parametrize("image_id", ["", "..", "../../etc/passwd", "A" * 32, "1" * 33, "\0" * 32])
def test_a_text_that_is_no_id_is_never_a_file_name(tmp_path: Path, image_id: str) -> None:
    store = ImageStore(tmp_path)
    for verb in (lambda: store.read(image_id, SECRET), lambda: store.verify(image_id, SECRET), lambda: store.delete(image_id)):
        with pytest.raises(NotFound):
            verb()


# --------------------------------------------------------------------------------------------------------------------------------- damage


def mutations(content: bytes) -> Iterator[bytes]:
    """Give every one-bit-per-byte flip, every truncation, and one byte too many."""
    for offset in range(len(content)):
        yield content[:offset] + bytes([content[offset] ^ 1]) + content[offset + 1 :]
        yield content[:offset]
    yield content + b"\0"


def test_every_damaged_byte_of_a_manifest_is_refused() -> None:
    raw = image.pack(manifest(), SECRET)
    for damaged in mutations(raw):
        with pytest.raises(DataLoss):
            image.unpack(damaged, FIRST, SECRET)


def test_every_damaged_byte_of_a_page_names_the_page(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    written = write(store).manifest
    path = tmp_path / "pages" / written.pages[1].name[:2] / written.pages[1].name
    content = path.read_bytes()
    for damaged in mutations(content):
        with path.open("r+b", buffering=0) as file:
            file.truncate(len(damaged))
            file.write(damaged)
        with pytest.raises(DataLoss, match="page 1 of group 0") as caught:
            store.read_page(written, written.pages[1], SECRET)
        assert caught.value.facts["page_idx"] == "1"
    assert len(store.verify(FIRST, SECRET).problems) == 1


def test_a_missing_page_and_a_link_in_its_place_are_refused(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    written = write(store).manifest
    path = tmp_path / "pages" / written.pages[0].name[:2] / written.pages[0].name
    elsewhere = tmp_path / "elsewhere"
    path.rename(elsewhere)
    assert "missing" in store.verify(FIRST, SECRET).problems[0]
    path.symlink_to(elsewhere)
    with pytest.raises(Exception, match="failed"):
        store.read_page(written, written.pages[0], SECRET)


def test_another_tenants_image_is_refused(tmp_path: Path) -> None:
    write(ImageStore(tmp_path))
    with pytest.raises(DataLoss, match="tenant"):
        ImageStore(tmp_path).read(FIRST, OTHER_SECRET)


def test_an_image_under_another_id_is_refused(tmp_path: Path) -> None:
    write(ImageStore(tmp_path))
    (tmp_path / "manifests" / FIRST).rename(tmp_path / "manifests" / SECOND)
    with pytest.raises(DataLoss, match="that of image"):
        ImageStore(tmp_path).read(SECOND, SECRET)


Forge = Callable[[ImagePage], ImagePage]


@pytest.mark.parametrize(
    "forge",
    [
        lambda page: msgspec.structs.replace(page, size_bytes=1 << 62),
        lambda page: msgspec.structs.replace(page, size_bytes=-1),
        lambda page: msgspec.structs.replace(page, num_tokens=1 << 40),
        lambda page: msgspec.structs.replace(page, page_idx=-1),
        lambda page: msgspec.structs.replace(page, name="../" * 21 + "x"),
    ],
)
def test_impossible_facts_are_refused_even_when_they_are_signed(tmp_path: Path, forge: Forge) -> None:
    written = write(ImageStore(tmp_path)).manifest
    forged = msgspec.structs.replace(written, pages=(forge(written.pages[0]),))
    (tmp_path / "manifests" / FIRST).write_bytes(image.pack(forged, SECRET))
    with pytest.raises(DataLoss, match="impossible"):
        ImageStore(tmp_path).read(FIRST, SECRET)
