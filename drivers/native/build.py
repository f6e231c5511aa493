"""Compiles the C sources of this folder with the system's compiler, once per source, and loads them.

Compiled libraries are kept in a folder of the user's own, under the hash of everything that went into them. They choose their instructions
when they are loaded, so that one is good for every processor of the machine's kind. Where anything is missing (a compiler, a folder, the
permission to map code), there is no library, which is logged, and the Python beside it does the work.

    CC                the compiler, else cc
    CACHE_DIRECTORY   libraries are kept in native/ there (set by systemd); else in kerneld/native/ of XDG_CACHE_HOME, else of ~/.cache

Invariants
1. Nothing is loaded from a folder that anybody else may write to.
2. A library appears under its name whole: it is compiled beside it and renamed.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from functools import cache
from pathlib import Path

logger = logging.getLogger(__name__)

SOURCES = Path(__file__).parent
FLAGS = ("-O3", "-shared", "-fPIC", "-std=gnu11")
COMPILE_TIMEOUT_S = 60.0


class BuildFailed(Exception):
    """No library could be made or loaded; the Python beside it does the work."""


@cache
def library(name: str) -> ctypes.CDLL | None:
    """The library compiled from `name`.c, or None where that is not possible here."""
    try:
        return ctypes.CDLL(str(compiled(SOURCES / f"{name}.c", library_folder())))
    except (BuildFailed, OSError) as error:
        logger.warning("Native code is not used", extra={"library": name, "reason": str(error)})
        return None


def library_folder() -> Path:
    """Where libraries are kept, made now if need be.

    Raises: BuildFailed, if others may write there (invariant 1), or nobody says where that is; OSError.
    """
    own = os.environ.get("CACHE_DIRECTORY", "").partition(":")[0]
    folder = Path(own or _caches() / "kerneld") / "native"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o022:
        raise BuildFailed(f"{folder} belongs to user {found.st_uid} with mode {stat.S_IMODE(found.st_mode):#o}; others may write there")
    return folder


def _caches() -> Path:
    if found := os.environ.get("XDG_CACHE_HOME"):
        return Path(found)
    try:
        return Path.home() / ".cache"
    except RuntimeError as error:
        raise BuildFailed(f"user {os.geteuid()} has no home folder; set XDG_CACHE_HOME") from error


def compiled(source: Path, folder: Path) -> Path:
    """Return the library of a source file, compiling it if the folder does not have it. Raises: BuildFailed, OSError."""
    compiler = shutil.which(os.environ.get("CC") or "cc")
    made_of = b"\0".join([source.read_bytes(), str(compiler).encode(), " ".join(FLAGS).encode(), platform.platform().encode()])
    path = folder / f"{source.stem}-{hashlib.sha256(made_of).hexdigest()[:32]}.so"
    if path.exists():
        return path
    if compiler is None:
        raise BuildFailed("there is no C compiler; on Debian and Ubuntu: sudo apt install gcc")
    with tempfile.TemporaryDirectory(dir=folder, prefix=".building-") as building:
        target = Path(building) / path.name
        command = [compiler, *FLAGS, "-o", str(target), str(source)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S)
        except subprocess.CalledProcessError as error:
            raise BuildFailed(f"{compiler} ended with {error.returncode}: {error.stderr.strip()[-400:]}") from error
        except subprocess.TimeoutExpired as error:
            raise BuildFailed(f"{compiler} took longer than {COMPILE_TIMEOUT_S:.0f} s") from error
        target.replace(path)  # invariant 2
    return path
