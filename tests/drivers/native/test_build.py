from __future__ import annotations

import ctypes
import pwd
from pathlib import Path

import pytest

from drivers.native.build import SOURCES, BuildFailed, compiled, library, library_folder


def source(folder: Path, code: str) -> Path:
    path = folder / "small.c"
    path.write_text(code)
    return path


def test_a_library_is_compiled_once_per_source(tmp_path: Path) -> None:
    first = compiled(source(tmp_path, "int answer(void) { return 41; }"), tmp_path)
    before = first.stat().st_mtime_ns
    again = compiled(source(tmp_path, "int answer(void) { return 41; }"), tmp_path)
    other = compiled(source(tmp_path, "int answer(void) { return 42; }"), tmp_path)

    assert (again, again.stat().st_mtime_ns) == (first, before)
    assert ctypes.CDLL(str(other)).answer() == 42
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".c", ".so", ".so"]


def test_a_source_that_does_not_compile_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    path = source(tmp_path, "int answer(void) { return nonsense; }")

    with pytest.raises(BuildFailed, match="nonsense"):
        compiled(path, tmp_path)

    assert list(tmp_path.iterdir()) == [path]


def test_without_a_compiler_the_advice_is_to_install_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")

    with pytest.raises(BuildFailed, match="apt install gcc"):
        compiled(source(tmp_path, "int answer(void) { return 41; }"), tmp_path)


def test_a_source_that_is_not_there_is_no_library(caplog: pytest.LogCaptureFixture) -> None:
    assert library("no-such-source") is None
    assert "Native code is not used" in caplog.text


def test_libraries_lie_in_a_folder_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHE_DIRECTORY", f"{tmp_path / 'cache'}:{tmp_path / 'second'}")

    folder = library_folder()

    assert folder == tmp_path / "cache" / "native"
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHE_DIRECTORY", str(tmp_path))
    library_folder().chmod(0o770)

    with pytest.raises(BuildFailed, match="others may write there"):
        library_folder()


def test_every_source_of_the_folder_compiles(tmp_path: Path) -> None:
    assert [compiled(path, tmp_path).suffix for path in sorted(SOURCES.glob("*.c"))] == [".so"] * len(list(SOURCES.glob("*.c")))


def test_a_user_without_a_home_gets_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("HOME", "CACHE_DIRECTORY", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)  # as in a container whose user has no entry

    with pytest.raises(BuildFailed, match="no home"):
        library_folder()
