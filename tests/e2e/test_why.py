"""kernelctl why against a real daemon, while somebody else keeps it busy."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import kerneld_client
from kerneld_client import Client, KerneldError
from kerneld_client.memory_values import Outlook
from tests.e2e.rig import FAKE, ROOT, DaemonRig, fake_model, script, until

SLOW = script(step_s=0.01)


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonRig]:
    """A daemon with two rows, whose steps take as long as those of a small model."""
    own = DaemonRig(tmp_path_factory.mktemp("why"), *FAKE, "kerneld.max_rows=2", SLOW)
    own.start()
    with own.connect() as k:
        k.load(fake_model(own.folder), name="toy")
    yield own
    own.clean_up()


def kernelctl(rig: DaemonRig, *arguments: str) -> str:
    """What kernelctl prints."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "sdk" / "python")])
    command = [sys.executable, "-P", "-m", "cli.main", f"--socket={rig.socket}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, "PYTHONPATH": paths})
    assert done.returncode == 0, done.stderr
    return done.stdout


class Crowd:
    """Somebody who has many requests at once."""

    def __init__(self, client: Client, num_requests: int) -> None:
        self._client = client
        self._threads = [threading.Thread(target=self._work, args=(idx,), daemon=True) for idx in range(num_requests)]
        for thread in self._threads:
            thread.start()

    def _work(self, idx: int) -> None:
        with contextlib.suppress(KerneldError), self._client.alloc("toy") as context:
            context.infer(tokens=[5 + idx] * 40, max_tokens=60, ignore_eos=True).result()

    def waiting(self) -> list[Outlook]:
        """Those that wait, the last one last."""
        found = [each for each in self._client.requests() if each.state == "waiting"]
        return sorted(found, key=lambda each: each.tenant_position)

    def wait(self) -> None:
        for thread in self._threads:
            thread.join(timeout=120)


def test_why_names_what_is_ahead_and_when_it_starts(rig: DaemonRig, tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    with rig.connect() as k:
        k.add_tenant("hogs")
        token_file.write_text(k.add_token("hogs", name="hog").token)
    with rig.connect() as k, kerneld_client.connect(rig.socket, token_file=token_file) as hogs_client:
        hogs = Crowd(hogs_client, 32)
        until(lambda: any(each.estimate.seconds for each in hogs.waiting()), timeout_s=60)
        mine = Crowd(k, 8)
        until(lambda: len(mine.waiting()) >= 6)
        last = mine.waiting()[-1]

        text = kernelctl(rig, "why", last.context_id)
        told = k.explain(request=last.request)
        others = hogs_client.explain(request=hogs.waiting()[-1].request)
        listed = kernelctl(rig, "why")

        assert f"request {last.request[:12]} of admin, on context {last.context_id[:12]}, is waiting" in text
        assert "  It starts in about " in text
        assert "  In line: number " in text
        assert "hogs" in text
        assert told.outlook is not None
        assert others.outlook is not None
        assert {each.tenant: each.is_own for each in told.outlook.contenders} == {"admin": True, "hogs": False}
        assert 0 < (told.outlook.estimate.seconds or 0.0) < 30
        assert told.outlook.tenant_position <= told.outlook.position < others.outlook.position  # what a hog queued is not all ahead
        assert {each.tenant for each in others.outlook.contenders} == {"hogs", "others"}  # whose names are not its to know
        assert "hogs" not in listed
        mine.wait()
        ended = kernelctl(rig, "why", last.request)
        assert "is finished" in ended
        assert "It ended: length." in ended
        hogs.wait()
        assert k.requests(all=True) == []
