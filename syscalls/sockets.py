"""Unix sockets of the daemon: taking a path that nobody listens on, and giving it back."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

# Every local user may connect: each call proves who it is, and the login socket tells by the peer's credentials.
SOCKET_MODE = 0o666
MAX_PATH_BYTES = 107  # sun_path of Linux, less its terminating zero
CONNECT_TIMEOUT_S = 1.0


class ListenError(RuntimeError):
    """The daemon cannot listen where it is told to; the text says where and why."""


def claim_path(path: Path) -> None:
    """Make a path free to bind: its folder exists, and a socket that a dead daemon left is gone.

    Raises: ListenError, if somebody listens there, if it is something else than a socket, or if it is too long; nothing was changed then.
    """
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise ListenError(f"{path} is longer than the {MAX_PATH_BYTES} bytes that a unix socket's path may have.")
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise ListenError(f"Cannot listen on {path}: {error.strerror}.") from error
    if not stat.S_ISSOCK(mode):
        raise ListenError(f"{path} is there and is no socket; it is left alone.")
    if is_alive(path):
        raise ListenError(f"Another daemon listens on {path}; stop it, or choose another syscalls.socket.")
    path.unlink(missing_ok=True)


def is_alive(path: Path) -> bool:
    """Whether somebody accepts connections there. A full backlog and a missing right count as alive: better not to start than to rob."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(CONNECT_TIMEOUT_S)
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True
        return True


class BoundPath:
    """A socket file that is ours; `release` removes it unless somebody else has put another there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.chmod(SOCKET_MODE)
        found = path.lstat()
        self._identity = (found.st_dev, found.st_ino)

    def release(self) -> None:
        """Remove the file. Safe to call twice."""
        try:
            found = self.path.lstat()
        except FileNotFoundError:
            return
        if (found.st_dev, found.st_ino) == self._identity:
            self.path.unlink(missing_ok=True)
