"""Drivers of strangers: one that does not do what the contract says is refused with its report, whatever it does to avoid that."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from drivers import vetting
from drivers.errors import DriverUnavailable
from drivers.vetting import Verdict, require_conforming, verdict_on

BAD = """
import os, pathlib, subprocess, time
import msgspec
from drivers.fake import FakeDriver

class Good(FakeDriver):
    pass

class Silent(FakeDriver):
    def load(self, spec, progress):
        print("a driver may write where it likes")
        return super().load(spec, lambda done, total: None)

class Crasher(FakeDriver):
    def open(self, spec, host_fd):
        os.kill(os.getpid(), 11)

class Sleeper(FakeDriver):
    def open(self, spec, host_fd):
        child = subprocess.Popen(["sleep", "3600"])
        pathlib.Path(__file__).with_name("asleep").write_text(str(child.pid))
        time.sleep(3600)

class Raiser(FakeDriver):
    def probe(self):
        raise ZeroDivisionError("in probe")

class Half:
    def probe(self): ...
"""


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A distribution of drivers, and a cache folder that remembers nothing yet."""
    info = tmp_path / "bad_drivers-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bad-drivers\nVersion: 1.5\n")
    names = ("Good", "Silent", "Crasher", "Sleeper", "Raiser", "Half")
    points = [f"{name.lower()} = bad_drivers:{name}" for name in names] + ["broken = bad_import:Driver"]
    (info / "entry_points.txt").write_text("[kerneld.drivers]\n" + "\n".join(points) + "\n")
    (tmp_path / "bad_drivers.py").write_text(BAD)
    (tmp_path / "bad_import.py").write_text("class Driver(:\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CACHE_DIRECTORY", raising=False)
    return tmp_path


def looked_at(name: str, limit_s: float = 60.0, *, anew: bool = False) -> Verdict:
    """The verdict on a driver of another distribution."""
    verdict = verdict_on(name, limit_s, anew=anew)
    assert verdict is not None
    return verdict


def test_a_driver_that_is_built_in_is_not_asked() -> None:
    assert [verdict_on(name) for name in ("fake", "cpu", "no such")] == [None] * 3
    require_conforming("cpu")


def test_a_driver_that_conforms_is_asked_once_until_it_changes(plugins: Path) -> None:
    first, second = looked_at("good"), looked_at("good")
    (plugins / "bad_drivers.py").write_text(BAD + "# another release\n")
    third = looked_at("good")

    assert (first.distribution, first.complaint) == ("bad-drivers 1.5", "")
    assert [each.is_remembered for each in (first, second, third)] == [False, True, False]
    require_conforming("good")


def test_a_driver_that_fails_is_refused_with_the_check_and_the_rule(plugins: Path) -> None:
    with pytest.raises(DriverUnavailable) as refusal:
        require_conforming("silent")

    told = str(refusal.value)
    assert "The driver silent of bad-drivers 1.5 is refused by the conformance suite: 1 of " in told
    assert "checks failed: load_tells_progress (not so: progress is told)" in told
    assert "`python -P -m drivers.conformance silent`" in told
    assert "drivers.trust" in told


def test_a_failure_is_remembered_for_a_while(plugins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = looked_at("raiser"), looked_at("raiser")
    anew = looked_at("raiser", anew=True)
    monkeypatch.setattr(vetting, "FAILED_FOR_S", 0.0)
    late = looked_at("raiser")

    found = (first, second, anew, late)
    assert {each.complaint for each in found} == {"raiser cannot be made and probed: ZeroDivisionError: in probe"}
    assert [each.is_remembered for each in found] == [False, True, False, False]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("broken", "broken cannot be made and probed: SyntaxError"),
        ("half", "half lacks apply, close"),
        ("crasher", "the process ended with signal 11, in close_is_safe_twice_and_unopened"),
    ],
)
def test_no_driver_takes_the_caller_along(plugins: Path, name: str, said: str) -> None:
    verdict = looked_at(name)

    assert said in verdict.complaint


def test_a_driver_that_hangs_is_ended_at_the_limit(plugins: Path) -> None:
    verdict = looked_at("sleeper", limit_s=5.0)

    assert verdict.complaint == "it was not done after 5 s, in close_is_safe_twice_and_unopened"
    assert not runs(int((plugins / "asleep").read_text())), "a child of the driver stayed behind"


def test_nothing_is_believed_of_a_folder_that_others_may_write_to(plugins: Path) -> None:
    (plugins / "cache" / "kerneld" / "native").mkdir(parents=True, mode=0o777)
    (plugins / "cache" / "kerneld" / "native").chmod(0o777)
    first, second = looked_at("raiser"), looked_at("raiser")

    assert not first.is_remembered
    assert not second.is_remembered


@pytest.mark.parametrize(("limit_s", "code", "line"), [(60.0, 3, "is refused by the conformance suite"), (0.0, 1, "no front came")])
def test_a_worker_serves_with_a_driver_that_passed_or_is_trusted(plugins: Path, limit_s: float, code: int, line: str) -> None:
    problem = plugins / "problem"
    command = [sys.executable, "-P", "-m", "drivers.worker", f"--socket={plugins}/none.sock", "--instance=silent", "--orphan-grace-s=0"]
    command += [f"--check-limit-s={limit_s}", f"--problem-file={problem}"]
    paths = os.pathsep.join(path for path in sys.path if path)
    ran = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False)

    assert ran.returncode == code
    assert line in ran.stderr
    assert problem.exists() is (code == 3)


def test_the_suite_ends_with_the_process_that_asked(plugins: Path) -> None:
    paths = os.pathsep.join(path for path in sys.path if path)
    script = "from drivers.vetting import verdict_on; verdict_on('sleeper')"
    asker = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": paths})

    asleep = plugins / "asleep"
    await_that(lambda: asleep.exists() and bool(asleep.read_text()))
    child = int(asleep.read_text())
    suite = int(Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[1])
    asker.kill()
    asker.wait()
    try:
        await_that(lambda: not runs(suite))
    finally:
        os.kill(child, signal.SIGKILL)


def runs(pid: int) -> bool:
    """Whether there is such a process, and it is not a zombie that nobody has asked for yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def await_that(condition: Callable[[], bool]) -> None:
    """Wait for something that comes by itself."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
