"""The files of images: what the verb checkpoint leaves on the disk. Everything here blocks; callers use threads.

    images/manifests/<image id>         one file an image (kerneld.image)
    images/pages/<2 hex>/<64 hex>       page contents, named by an HMAC of the content with the tenant's key
    images/temp/                        files on their way; emptied at every start

A tenant's images share the pages that are the same; two tenants never do, and neither can tell whether the other has one.

Invariants
1. An image is there when its manifest has its name, and everything it needs was on the disk before. Until then it is wholly absent.
2. A page file is removed only when no manifest names it and nobody is writing an image that will (`kerneld.page_use`).
3. While a manifest cannot be read, nobody knows which pages it needs, and no page is removed.
4. Nothing that was read is given out before its size, checksum and name were found right.
"""

from __future__ import annotations

import itertools
import logging
import os
import secrets
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
from crc32c import crc32c

from kerneld.calls import Verified
from kerneld.errors import AlreadyExists, DataLoss, NotFound
from kerneld.failpoints import hit
from kerneld.image import (
    MAX_MANIFEST_BYTES,
    ImagePage,
    Manifest,
    damaged,
    is_image_id,
    pack,
    page_name,
    unpack,
    unpack_unauthenticated,
)
from kerneld.page_use import PageUse
from kerneld.state.files import Bytes, disk_errors, explain, read_bounded, sync_directory, write_file

logger = logging.getLogger(__name__)

_BATCH_PAGES = 8  # written at a time, each by its own thread: file systems join the syncs that come together


@dataclass(frozen=True, slots=True)
class PageContent:
    """A page that is to go into an image: any contiguous bytes, not changed until `write` returns."""

    group: int
    page_idx: int
    key: bytes
    num_tokens: int
    content: Bytes


@dataclass(frozen=True, slots=True)
class Written:
    """An image that was written: its whole manifest, all bytes that it names, and those that were new on the disk."""

    manifest: Manifest
    size_bytes: int
    new_bytes: int


class ImageStore:
    """The images of one state directory."""

    def __init__(self, root: Path, *, is_writable: bool = True) -> None:
        """Make the folders, empty `temp`, and learn which pages are needed; or else touch nothing, and `verify` alone may be called.

        Raises: WrongState, DiskFull, Unavailable.
        """
        self._manifests = root / "manifests"
        self._pages = root / "pages"
        self._temp = root / "temp"
        self._use = PageUse()
        if not is_writable:
            return
        with disk_errors(root):
            for path in (root, self._manifests, self._pages, self._temp):
                path.mkdir(mode=0o700, exist_ok=True)
            for leftover in self._temp.iterdir():
                leftover.unlink()
        for image_id in self.list_ids():
            self._learn(image_id)

    def list_ids(self) -> list[str]:
        """Return the ids of all images that are there, sorted."""
        with disk_errors(self._manifests):
            return sorted(path.name for path in self._manifests.iterdir() if is_image_id(path.name))

    def write(self, manifest: Manifest, pages: Iterable[PageContent], tenant_secret: bytes) -> Written:
        """Write an image; when this returns it survives power loss. `manifest.pages` is filled in here, from pages taken a few at a time.

        Raises: AlreadyExists; DiskFull, WrongState, Unavailable; then there is no such image, and no new file.
        """
        if not is_image_id(manifest.image_id):
            raise ValueError(f"{manifest.image_id!r} is not an image id")
        described: list[ImagePage] = []
        new_bytes = 0
        with self._pinning() as pinned:
            # The threads have ended when the pins go: nobody writes a page that nobody needs any more.
            with disk_errors(self._pages), ThreadPoolExecutor(_BATCH_PAGES, thread_name_prefix="image-sync") as executor:
                for batch in _batches(pages):
                    contents = [_describe(page, tenant_secret) for page in batch]
                    described += (page for page, _ in contents)
                    self._pin({page.name for page, _ in contents}, pinned)
                    new_bytes += self._write_pages(contents, executor)
                self._sync_folders(self._use.unnamed(pinned), executor)
                whole = msgspec.structs.replace(manifest, pages=tuple(described))
                raw = pack(whole, tenant_secret)
                self._write_manifest(manifest.image_id, raw)
            self._use.add(manifest.image_id, pinned)
        return Written(whole, len(raw) + sum(page.size_bytes for page in described), new_bytes + len(raw))

    def read(self, image_id: str, tenant_secret: bytes) -> Manifest:
        """Return an image's manifest. Raises: NotFound; DataLoss, if it is damaged, forged or another tenant's."""
        return unpack(self._read_manifest(image_id), image_id, tenant_secret)

    def read_page(self, manifest: Manifest, page: ImagePage, tenant_secret: bytes) -> bytes:
        """Return the content of one page of a manifest that `read` gave. Raises: DataLoss, naming the page."""
        try:
            content = read_bounded(self._page_path(page.name), page.size_bytes)
        except FileNotFoundError as error:
            raise _damaged_page(manifest, page, "its file is missing") from error
        except OSError as error:
            raise explain(error, self._pages) from error
        if len(content) != page.size_bytes:
            raise _damaged_page(manifest, page, f"it has not the {page.size_bytes} bytes that it should have")
        if crc32c(content) != page.crc32c or page_name(content, tenant_secret) != page.name:
            raise _damaged_page(manifest, page, "it does not hold its checksum")
        return content

    def verify(self, image_id: str, tenant_secret: bytes) -> Verified:
        """Read everything of an image again and list what is wrong. Raises: NotFound."""
        try:
            raw = self._read_manifest(image_id)
            manifest = unpack(raw, image_id, tenant_secret)
        except DataLoss as error:
            return Verified((error.message,), 0)
        problems = []
        bytes_read = len(raw)
        for page in manifest.pages:
            try:
                bytes_read += len(self.read_page(manifest, page, tenant_secret))
            except DataLoss as error:
                problems.append(error.message)
        return Verified(tuple(problems), bytes_read)

    def delete(self, image_id: str) -> int:
        """Remove an image, and the pages that no other one needs. Return the bytes that were freed. Raises: NotFound, Unavailable."""
        self._read_manifest(image_id)
        with disk_errors(self._manifests):
            hit("image.delete.before_manifest")
            self._manifests.joinpath(image_id).unlink(missing_ok=True)
            sync_directory(self._manifests)
            hit("image.delete.after_manifest")
        return self._drop(self._use.remove(image_id))

    def collect(self) -> int:
        """Remove every page that no image needs: what a write or a deletion that was cut short left behind. Return the bytes freed."""
        with disk_errors(self._pages):
            names = {path.name for folder in self._pages.iterdir() for path in folder.iterdir()}
        return self._drop(names)

    # ----------------------------------------------------------------------------------------------------------------------------- writing

    @contextmanager
    def _pinning(self) -> Iterator[set[str]]:
        """Give a set for the names of pages that are pinned; afterwards they are not, and those that no image came to need are removed."""
        pinned: set[str] = set()
        try:
            yield pinned
        finally:
            self._use.unpin(pinned)
            self._drop(pinned)

    def _pin(self, names: set[str], pinned: set[str]) -> None:
        self._use.pin(names - pinned)
        pinned |= names

    def _write_pages(self, contents: list[tuple[ImagePage, memoryview]], executor: Executor) -> int:
        missing = {page.name: content for page, content in contents if not self._holds(page, content)}
        for name in missing:
            self._page_path(name).parent.mkdir(mode=0o700, exist_ok=True)
        return sum(executor.map(self._write_page, missing, missing.values()))

    def _write_page(self, name: str, content: memoryview) -> int:
        hit("image.page.before_write")
        with self._temporary(content) as temporary:
            hit("image.page.after_sync")
            os.rename(temporary, self._page_path(name))
        hit("image.page.after_rename")
        return content.nbytes

    def _sync_folders(self, names: set[str], executor: Executor) -> None:
        """Put the names of pages on the disk; those that an image names are there already (invariant 1)."""
        folders = {self._page_path(name).parent for name in names}
        if folders:
            list(executor.map(sync_directory, [*folders, self._pages]))

    def _write_manifest(self, image_id: str, raw: bytes) -> None:
        hit("image.manifest.before_write")
        path = self._manifests / image_id
        with self._temporary(raw) as temporary:
            hit("image.manifest.after_sync")
            try:
                os.link(temporary, path)  # invariant 1; unlike a rename, it never replaces an image
            except FileExistsError as error:
                raise AlreadyExists(f"The image {image_id} is already there.") from error
        try:
            hit("image.manifest.after_link")
            sync_directory(self._manifests)
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    @contextmanager
    def _temporary(self, content: Bytes) -> Iterator[Path]:
        """Give the name of a synced file with this content; afterwards that name is gone, whatever became of the file."""
        path = self._temp / secrets.token_hex(16)
        try:
            write_file(path, [content])
            yield path
        finally:
            path.unlink(missing_ok=True)

    def _holds(self, page: ImagePage, content: memoryview) -> bool:
        """Whether the page's file is there with just this content; one that was damaged is written anew."""
        try:
            return read_bounded(self._page_path(page.name), page.size_bytes) == content
        except FileNotFoundError:
            return False

    # ---------------------------------------------------------------------------------------------------------------- reading and removing

    def _read_manifest(self, image_id: str) -> bytes:
        if not is_image_id(image_id):
            raise NotFound("image", image_id)
        try:
            raw = read_bounded(self._manifests / image_id, MAX_MANIFEST_BYTES)
        except FileNotFoundError as error:
            raise NotFound("image", image_id) from error
        except OSError as error:
            raise explain(error, self._manifests) from error
        return raw

    def _learn(self, image_id: str) -> None:
        try:
            manifest = unpack_unauthenticated(self._read_manifest(image_id), image_id)
        except DataLoss as error:
            logger.warning("an image is damaged; no page is removed while it is there", extra={"image": image_id, "error": error.message})
            self._use.add(image_id, None)
            return
        self._use.add(image_id, {page.name for page in manifest.pages})

    def _drop(self, names: set[str]) -> int:
        with disk_errors(self._pages):
            return self._use.drop_unneeded(names, self._unlink_page)

    def _unlink_page(self, name: str) -> int:
        path = self._page_path(name)
        hit("image.collect.before_unlink")
        try:
            size_bytes = path.lstat().st_size
            path.unlink()
        except FileNotFoundError:
            return 0
        return size_bytes

    def _page_path(self, name: str) -> Path:
        return self._pages / name[:2] / name


def _batches(pages: Iterable[PageContent]) -> Iterator[list[PageContent]]:
    rest = iter(pages)
    while batch := list(itertools.islice(rest, _BATCH_PAGES)):
        yield batch


def _describe(page: PageContent, tenant_secret: bytes) -> tuple[ImagePage, memoryview]:
    # A view stays the caller's own, who ends it: one more would live as long as an error that is told of the writing.
    content = page.content if isinstance(page.content, memoryview) else memoryview(page.content)
    name = page_name(content, tenant_secret)
    return ImagePage(page.group, page.page_idx, page.key, page.num_tokens, name, content.nbytes, crc32c(content)), content


def _damaged_page(manifest: Manifest, page: ImagePage, problem: str) -> DataLoss:
    what, remedy = f"page {page.page_idx} of group {page.group}: {problem}", "A restore computes its tokens again."
    return damaged(manifest.image_id, what, remedy, group=str(page.group), page_idx=str(page.page_idx))
