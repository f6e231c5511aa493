"""`kerneld fsck`: checks the state directory of a daemon that is stopped. It takes the directory's lock, and changes nothing in it."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from kerneld.checkpoint import ImageStore
from kerneld.config import Config
from kerneld.deviceconfig import config_by_device
from kerneld.errors import KernelError
from kerneld.fsck import check_images, check_page_file
from kerneld.holdings import PartChecked
from kerneld.state.checks import check_audit, check_database, check_journal


class StateInUse(Exception):
    """The state directory is not there, or a daemon has it."""


def check_state(config: Config) -> Iterator[PartChecked]:
    """Check every part of a stopped daemon's state, one after the other. Raises: StateInUse."""
    folder = config.kerneld.state_dir
    with _locked(folder):
        database = folder / "kerneld.db"
        yield check_database(database)
        yield check_journal(folder / "journal", is_live=False)
        yield _images(folder / "images", database)
        for each in config_by_device(config).values():
            page_file = each.kerneld.page_file or folder / "pages"
            if page_file.exists():
                yield _page_file(page_file)
        yield check_audit(folder / "audit")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep daemons out of a state directory."""
    try:
        lock_fd = os.open(folder / "kerneld.lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise StateInUse(f"There is no state of a daemon in {folder} that can be opened: {error.strerror}.") from error
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        pid = os.pread(lock_fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
        raise StateInUse(f"A daemon uses {folder} (pid {pid}); `kernelctl fsck` checks it while it runs.") from error
    finally:
        os.close(lock_fd)


def _images(root: Path, database: Path) -> PartChecked:
    """Images that the database names, read again with the keys of their tenants."""
    if not root.exists():
        return PartChecked("images", 0, "images")
    try:
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
            rows = connection.execute("SELECT images.id, tenants.secret FROM images JOIN tenants ON tenants.path = images.tenant")
            secrets = {str(image_id): bytes(secret) for image_id, secret in rows}
        return check_images(ImageStore(root, is_writable=False), secrets)
    except (sqlite3.Error, KernelError) as error:
        return PartChecked("images", 0, "images", problems=(f"The images cannot be looked up: {error}",))


def _page_file(path: Path) -> PartChecked:
    try:
        return check_page_file(path)
    except (OSError, KernelError) as error:
        return PartChecked("disk tier", 0, "pages", problems=(f"{path} cannot be read: {error}",))
