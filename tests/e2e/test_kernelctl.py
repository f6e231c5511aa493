"""Every command of kernelctl against a real daemon: what it prints, in every form, and how it exits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.rig import FAKE, MODEL, ROOT, DaemonRig, fake_model

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "sdk" / "python")])}


@dataclass(frozen=True)
class Ctl:
    """kernelctl for one daemon."""

    rig: DaemonRig

    def run(self, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command and return how it ended."""
        command = [sys.executable, "-P", "-m", "cli.main", f"--socket={self.rig.socket}", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=ENVIRONMENT, input=given)

    def __call__(self, *arguments: str, given: str = "") -> str:
        """What a command that succeeds prints."""
        done = self.run(*arguments, given=given)
        assert done.returncode == 0, (arguments, done.stderr)
        return done.stdout

    def json(self, *arguments: str) -> dict[str, object]:
        """The one object that a command prints."""
        found = json.loads(self(*arguments, "-o", "json"))
        return found[0] if isinstance(found, list) else found  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def ctl(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ctl]:
    """kernelctl, with the demo model on a fake device."""
    rig = DaemonRig(tmp_path_factory.mktemp("ctl"), *FAKE)
    rig.start()
    rig.connect().close()
    ctl = Ctl(rig)
    ctl("model", "load", str(MODEL), "--name", "demo")
    yield ctl
    rig.clean_up()


def test_the_life_of_a_context(ctl: Ctl) -> None:
    context = str(ctl.json("ctx", "alloc", "demo", "-l", "purpose=test")["id"])
    assert ctl("infer", context, "def read():", "--max-tokens", "8", "--ignore-eos")
    assert "def read():" in ctl("ctx", "read", context)
    branch = str(ctl.json("ctx", "fork", context)["id"])
    assert ctl.json("ctx", "set", branch, "--nice", "4")["nice"] == 4
    assert ctl.json("ctx", "truncate", branch, "3")["num_tokens"] == 3
    assert ctl.json("ctx", "suspend", branch)["state"] == "suspended"
    assert ctl.json("ctx", "resume", branch)["state"] == "idle"
    assert ctl("attach", context, "--offset", "2")
    assert ctl("score", context, "x")
    image = str(ctl.json("ckpt", "save", context, "--name", "mark")["id"])
    assert "mark" in ctl("ckpt", "ls", "-o", "wide")
    assert ctl("ckpt", "verify", image)
    assert ctl("ckpt", "restore", image)
    assert ctl("ckpt", "rm", image)
    assert context in ctl("ps", "-o", "name")
    assert branch in ctl("ctx", "ls", "--all", "-o", "name")
    assert context[:12] in ctl("ps")
    assert context in ctl("ctx", "stat", context)
    assert ctl("ctx", "free", context, branch)
    assert context not in ctl("ps", "-o", "name")


@pytest.mark.parametrize("form", ["table", "wide", "json", "yaml", "name"])
@pytest.mark.parametrize("command", ["ps", "model ls", "tenant ls", "ckpt ls", "token ls --tenant admin", "whoami", "mem", "top --once"])
def test_every_list_has_every_form(ctl: Ctl, command: str, form: str) -> None:
    printed = ctl(*command.split(), "-o", form)
    if form == "json":
        json.loads(printed)


def test_tenants_and_tokens(ctl: Ctl) -> None:
    assert ctl.json("tenant", "add", "lab", "--weight", "3", "--max-contexts", "1")["weight"] == 3
    made = ctl.json("token", "add", "--tenant", "lab")
    assert set(made) >= {"id", "token"}
    assert ctl.json("tenant", "set", "lab", "--max-queued", "5")["limits"]["max_contexts"] == 1  # type: ignore[index]
    assert str(made["id"]) in ctl("token", "ls", "--tenant", "lab")
    assert str(made["token"]) not in ctl("token", "ls", "--tenant", "lab", "-o", "json")
    ctl("token", "rm", str(made["id"]))
    ctl("tenant", "rm", "lab")


def test_answers_and_chats(ctl: Ctl) -> None:
    before = ctl("ps", "-o", "name")
    assert ctl("run", "demo", "def f():", "--max-tokens", "6", "--ignore-eos")
    assert ctl("run", "demo", "--max-tokens", "6", "--ignore-eos", given="from standard input")
    ctl("chat", "demo", "--max-tokens", "4", given="hello\n")
    assert ctl("ps", "-o", "name") == before


def test_the_machine(ctl: Ctl) -> None:
    assert "DaemonReady" in ctl("events")
    assert "demo" in ctl("model", "show", "demo")
    other = fake_model(ctl.rig.folder, "other", seed=3)
    assert ctl.json("model", "register", str(other), "--name", "other")["state"] == "registered"
    assert ctl("model", "rm", "other")
    assert ctl.run("doctor").returncode == 0


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("nonsense", 2),
        ("ctx alloc", 2),
        ("ctx stat nonsense", 3),
        ("ctx stat " + "0" * 32, 3),
        ("ctx alloc nowhere", 3),
        ("model load /etc --name etc", 2),
        ("run demo x --temperature -1", 2),
        ("model rm nowhere", 3),
        ("tenant add admin", 7),
        ("run demo x --max-tokens 0", 2),
    ],
)
def test_failures_have_their_exit_codes_and_one_sentence(ctl: Ctl, command: str, code: int) -> None:
    done = ctl.run(*command.split())
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr


def test_without_a_daemon_the_exit_code_says_so(tmp_path: Path) -> None:
    done = Ctl(DaemonRig(tmp_path)).run("ps")
    assert done.returncode == 5
    assert "Traceback" not in done.stderr


def test_drain_stops_the_daemon(tmp_path: Path) -> None:
    rig = DaemonRig(tmp_path, *FAKE)
    rig.start()
    rig.connect().close()
    try:
        Ctl(rig)("drain")
        assert rig.wait_exit() == 0
    finally:
        rig.clean_up()
    assert not rig.socket.exists()


def test_a_device_is_shown_with_what_runs_its_models(ctl: Ctl) -> None:
    shown = ctl("device", "show")
    assert ": running, fake " in shown
    assert "demo: a dream of tokens" in shown
    device = ctl.json("device", "show", ctl("device", "ls", "-o", "name").strip())
    assert device["models"][0]["ops"][0]["implementation"] == "fake.hash"  # type: ignore[index]
    refused = ctl.run("device", "show", "tpu7")
    assert refused.returncode != 0
    assert "tpu7" in refused.stderr
