"""Compiles the C and C++ sources of this folder with the system's compiler, once per source, and loads them.

Compiled libraries are kept in a folder of the user's own, under the hash of everything that went into them. Those of one C file choose
their instructions when they are loaded, so that one is good for every processor of the machine's kind; that of the CPU driver (`cpu/`) is
compiled for one level of instructions (`drivers.native.isa`). Where anything is missing (a compiler, a folder, the permission to map code),
there is no library; why is told and logged, and the Python beside it does the work.

    CC, CXX           the compilers, else cc and c++
    CACHE_DIRECTORY   libraries are kept in native/ there (set by systemd); else in kerneld/native/ of XDG_CACHE_HOME, else of ~/.cache

Invariants
1. Nothing is loaded from a folder that anybody else may write to.
2. A library appears under its name whole: it is compiled beside it and renamed. It ends with the hash of its bytes; what does not agree
   with its hash (a full disk, a lost write) is never mapped, but compiled again.
3. Of several processes that want the same library one compiles; the others wait for it.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from drivers.native import isa

logger = logging.getLogger(__name__)

SOURCES = Path(__file__).parent
C_FLAGS = ("-O3", "-fPIC", "-std=gnu11")
# Products and sums are contracted only where the source says so (kernels.h, rule 1); nothing of one level is seen by another in a process.
CXX_FLAGS = (
    *("-O3", "-fPIC", "-std=c++17", "-pthread", "-ffp-contract=off", "-fno-exceptions", "-fno-rtti"),
    *("-fvisibility=hidden", "-fvisibility-inlines-hidden", "-fno-gnu-unique", "-Wall", "-Wextra", "-Wno-psabi"),
)
COMPILE_TIMEOUT_S = 120.0
NUM_JOBS = 2
HASH_BYTES = hashlib.sha256().digest_size


class BuildFailed(Exception):
    """No library could be made or loaded; the Python beside it does the work."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What one library is made of."""

    name: str
    sources: tuple[Path, ...]
    headers: tuple[Path, ...] = ()
    flags: tuple[str, ...] = C_FLAGS

    @property
    def compiler(self) -> str:
        """As it is called, found or not."""
        return os.environ.get("CXX") or "c++" if self.is_cxx else os.environ.get("CC") or "cc"

    @property
    def is_cxx(self) -> bool:
        """Whether its sources are C++."""
        return any(source.suffix == ".cc" for source in self.sources)

    def digest(self, compiler: str) -> str:
        """Name of everything that goes into it."""
        made_of = hashlib.sha256("\0".join([compiler, *self.flags, platform.platform()]).encode())
        for path in (*self.sources, *self.headers):
            made_of.update(b"\0" + path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
        return made_of.hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Native:
    """A library, or why there is none."""

    library: ctypes.CDLL | None
    level: str = ""  # of its instructions
    why: str = ""


@cache
def library(name: str) -> ctypes.CDLL | None:
    """The library compiled from `name`.c, or None where that is not possible here."""
    return _loaded(Recipe(name, (SOURCES / f"{name}.c",))).library


def cpu_library(level: str = "") -> Native:
    """The library of the CPU driver; `level`: other instructions than the best (`drivers.native.isa.chosen_level`)."""
    try:
        return _cpu_library(isa.chosen_level(level))
    except isa.WrongLevel as error:
        return Native(None, level, str(error))


@cache
def _cpu_library(level: str) -> Native:
    return _loaded(cpu_recipe(level), level)


def cpu_recipe(level: str) -> Recipe:
    """All of `cpu/` for one level of instructions."""
    folder = SOURCES / "cpu"
    flags = (*CXX_FLAGS, *isa.FLAGS[level])
    return Recipe(f"cpu-{level}", tuple(sorted(folder.glob("*.cc"))), tuple(sorted(folder.glob("*.h"))), flags)


def _loaded(recipe: Recipe, level: str = "") -> Native:
    try:
        return Native(load(recipe, library_folder()), level)
    except (BuildFailed, OSError) as error:
        logger.warning("Native code is not used", extra={"library": recipe.name, "reason": str(error)})
        return Native(None, level, str(error))


def load(recipe: Recipe, folder: Path) -> ctypes.CDLL:
    """Load a library, compiled before or now. One that does not load is compiled once more. Raises: BuildFailed, OSError."""
    path = compiled(recipe, folder)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        logger.warning("A compiled library does not load; it is compiled again", extra={"path": str(path), "reason": str(error)})
        path.unlink(missing_ok=True)
        return ctypes.CDLL(str(compiled(recipe, folder)))


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


def compiled(recipe: Recipe, folder: Path) -> Path:
    """Return the library of a recipe, compiling it if the folder does not have it whole. Raises: BuildFailed, OSError."""
    if not recipe.sources:
        raise BuildFailed(f"the sources of {recipe.name} are not installed")
    compiler = shutil.which(recipe.compiler)
    path = folder / f"{recipe.name}-{recipe.digest(str(compiler))}.so"
    if is_whole(path):
        return path
    if compiler is None:
        language, package = ("C++", "g++") if recipe.is_cxx else ("C", "gcc")
        raise BuildFailed(f"there is no {language} compiler ({recipe.compiler}); on Debian and Ubuntu: sudo apt install {package}")
    with _alone(path.with_suffix(".lock")):  # invariant 3
        if not is_whole(path):
            with tempfile.TemporaryDirectory(dir=folder, prefix=".building-") as building:
                made = _make(recipe, compiler, Path(building))
                made.replace(path)  # invariant 2
    return path


def is_whole(path: Path) -> bool:
    """Whether a library is there as it was written."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return False
    return hashlib.sha256(content[:-HASH_BYTES]).digest() == content[-HASH_BYTES:]


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # who waited for it finds the library whole, or compiles it, at worst beside another


def _make(recipe: Recipe, compiler: str, folder: Path) -> Path:
    """Compile the sources, a few at a time, and link them, with the hash behind."""
    objects = [folder / f"{source.name}.o" for source in recipe.sources]
    with ThreadPoolExecutor(NUM_JOBS) as pool:
        commands = [
            [compiler, *recipe.flags, "-c", "-o", str(made), str(source)] for source, made in zip(recipe.sources, objects, strict=True)
        ]
        list(pool.map(_run, commands))
    target = folder / f"{recipe.name}.so"
    _run([compiler, *recipe.flags, "-shared", "-o", str(target), *map(str, objects)])
    content = target.read_bytes()
    target.write_bytes(content + hashlib.sha256(content).digest())
    return target


def _run(command: list[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, errors="replace", timeout=COMPILE_TIMEOUT_S)
    except subprocess.CalledProcessError as error:
        raise BuildFailed(f"{command[0]} ended with {error.returncode}: {error.stderr.strip()[-400:]}") from error
    except subprocess.TimeoutExpired as error:
        raise BuildFailed(f"{command[0]} took longer than {COMPILE_TIMEOUT_S:.0f} s") from error
