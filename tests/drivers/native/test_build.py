from __future__ import annotations

import ctypes
import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from drivers.native.build import (
    CXX_FLAGS,
    SOURCES,
    BuildFailed,
    Recipe,
    compiled,
    cpu_library,
    cpu_recipe,
    is_whole,
    library,
    library_folder,
    load,
)

CODE = "int answer(void) { return 41; }"


def recipe(folder: Path, code: str = CODE) -> Recipe:
    path = folder / "small.c"
    path.write_text(code)
    return Recipe("small", (path,))


def cxx_recipe(folder: Path, value: int = 41) -> Recipe:
    (folder / "value.h").write_text(f"inline int value() {{ return {value}; }}\n")
    (folder / "one.cc").write_text(
        '#include "value.h"\nint other();\nextern "C" __attribute__((visibility("default"))) int answer() { return other(); }'
    )
    (folder / "two.cc").write_text('#include "value.h"\nint other() { return value(); }')
    return Recipe("two", (folder / "one.cc", folder / "two.cc"), (folder / "value.h",), CXX_FLAGS)


@pytest.fixture(name="cache")
def make_cache(tmp_path: Path) -> Path:
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    return folder


def test_a_library_is_compiled_once_per_source(tmp_path: Path, cache: Path) -> None:
    first = compiled(recipe(tmp_path), cache)
    before = first.stat().st_mtime_ns
    again = compiled(recipe(tmp_path), cache)
    other = compiled(recipe(tmp_path, CODE.replace("41", "42")), cache)

    assert (again, again.stat().st_mtime_ns) == (first, before)
    assert ctypes.CDLL(str(other)).answer() == 42
    assert sorted(path.suffix for path in cache.iterdir()) == [".so", ".so"]


def test_several_sources_become_one_library_that_depends_on_their_headers(tmp_path: Path, cache: Path) -> None:
    first = load(cxx_recipe(tmp_path), cache)
    second = load(cxx_recipe(tmp_path, 42), cache)

    assert (first.answer(), second.answer()) == (41, 42)
    assert len(list(cache.iterdir())) == 2


def test_other_flags_are_another_library(tmp_path: Path, cache: Path) -> None:
    one = cxx_recipe(tmp_path)

    assert compiled(one, cache) != compiled(Recipe(one.name, one.sources, one.headers, (*one.flags, "-DOTHER")), cache)


def test_a_source_that_does_not_compile_says_why_and_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(BuildFailed, match="nonsense"):
        compiled(recipe(tmp_path, "int answer(void) { return nonsense; }"), cache)

    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(("variable", "package"), [("CC", "gcc"), ("CXX", r"g\+\+")])
def test_without_a_compiler_the_advice_is_to_install_one(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, variable: str, package: str
) -> None:
    monkeypatch.setenv(variable, "no-such-compiler")

    with pytest.raises(BuildFailed, match=f"no-such-compiler.*apt install {package}"):
        compiled(recipe(tmp_path) if variable == "CC" else cxx_recipe(tmp_path), cache)


def test_a_compiler_that_fails_is_named_with_what_it_said(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken-compiler"
    broken.write_text("#!/bin/sh\necho out of luck >&2\nexit 3\n")
    broken.chmod(0o700)
    monkeypatch.setenv("CXX", str(broken))

    with pytest.raises(BuildFailed, match="broken-compiler ended with 3: out of luck"):
        compiled(cxx_recipe(tmp_path), cache)

    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("damage", ["short", "changed", "empty"])
def test_a_damaged_library_is_compiled_again(tmp_path: Path, cache: Path, damage: str) -> None:
    path = compiled(recipe(tmp_path), cache)
    content = path.read_bytes()
    path.write_bytes({"short": content[:-100], "changed": content[:2000] + b"x" + content[2001:], "empty": b""}[damage])

    loaded = load(recipe(tmp_path), cache)

    assert loaded.answer() == 41
    assert path.read_bytes() == content


def test_a_whole_library_that_does_not_load_is_compiled_once_more(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries = tmp_path / "tries"
    flaky = tmp_path / "cc"  # its first link makes no library
    junk = "sh -c 'echo junk > \"$5\"'"
    flaky.write_text(
        f'#!/bin/sh\ncase "$*" in *-shared*) echo x >> {tries}; [ "$(wc -l < {tries})" = 1 ] && exec {junk} "$@";; esac\n'
        f'exec /usr/bin/cc "$@"\n'
    )
    flaky.chmod(0o700)
    monkeypatch.setenv("CC", str(flaky))

    loaded = load(recipe(tmp_path), cache)

    assert loaded.answer() == 41
    assert tries.read_text() == "x\nx\n"
    assert "compiled again" in caplog.text


def test_processes_that_want_the_same_library_compile_it_once(tmp_path: Path, cache: Path) -> None:
    slow = tmp_path / "cc"
    slow.write_text(f'#!/bin/sh\necho x >> {tmp_path / "calls"}\nsleep 0.3\nexec /usr/bin/cc "$@"\n')
    slow.chmod(0o700)
    recipe(tmp_path)
    script = (
        "import sys; from pathlib import Path; from drivers.native.build import Recipe, load;"
        "print(load(Recipe('small', (Path(sys.argv[1]),)), Path(sys.argv[2])).answer())"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "small.c"), str(cache)]
    environment = {**os.environ, "CC": str(slow), "PYTHONPATH": str(SOURCES.parent.parent)}

    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2)]

    assert [process.communicate()[0] for process in running] == ["41\n", "41\n"]
    assert (tmp_path / "calls").read_text() == "x\nx\n"  # it compiles, it links
    assert [path.suffix for path in cache.iterdir()] == [".so"]


def test_a_source_that_is_not_there_is_no_library(caplog: pytest.LogCaptureFixture) -> None:
    assert library("no-such-source") is None
    assert "Native code is not used" in caplog.text


def test_sources_that_were_not_installed_are_a_reason(cache: Path) -> None:
    with pytest.raises(BuildFailed, match="not installed"):
        compiled(Recipe("nothing", ()), cache)


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


def test_every_c_source_of_the_folder_compiles(cache: Path) -> None:
    recipes = [Recipe(path.stem, (path,)) for path in sorted(SOURCES.glob("*.c"))]

    assert [is_whole(compiled(one, cache)) for one in recipes] == [True] * len(recipes)


def test_a_user_without_a_home_gets_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "CACHE_DIRECTORY", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)  # as in a container whose user has no entry

    with pytest.raises(BuildFailed, match="no home"):
        library_folder()


def test_instructions_that_no_processor_has_are_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERNELD_ISA", "avx1024")

    native = cpu_library()

    assert native.library is None
    assert "avx1024" in native.why


def test_the_recipe_of_the_cpu_driver_names_all_of_its_files() -> None:
    made_of = cpu_recipe("generic")

    assert {path.name for path in (SOURCES / "cpu").iterdir()} >= {path.name for path in (*made_of.sources, *made_of.headers)}
    assert "-mavx512f" not in made_of.flags
    assert "-mavx512f" in cpu_recipe("avx512").flags
