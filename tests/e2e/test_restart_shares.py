"""kill -9 of the daemon while three tenants share it: nobody is served for nothing, and everything goes on to its exact end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from kerneld_client import Client, Context
from tests.e2e.rig import FAKE, MODEL, ROOT, DaemonRig, script, until

WEIGHTS = {"ann": 1, "lab/bob": 2, "lab/eve": 3}
PROMPTS = [f"# module {number}\nimport os\n" for number in range(8)]
NUM_TOKENS = 60


@pytest.fixture
def slow_rig(tmp_path: Path) -> Iterator[DaemonRig]:
    """A daemon with few rows and slow steps, so that most requests wait."""
    rig = DaemonRig(tmp_path, *FAKE, script(step_s=0.01), "kerneld.max_rows=3")
    rig.start()
    yield rig
    rig.clean_up()


def services(rig: DaemonRig) -> dict[str, int]:
    """What `kernelctl tenant ls` says of the service of each tenant."""
    command = [sys.executable, "-P", "-m", "cli.main", f"--socket={rig.socket}", "tenant", "ls", "-o", "json"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "sdk" / "python")])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=environment)
    return {tenant["path"]: int(tenant["service"]) for tenant in json.loads(done.stdout)}


def tokens_of(context: Context, prompt: str) -> tuple[int, ...]:
    return context.infer(prompt, max_tokens=NUM_TOKENS, temperature=0, ignore_eos=True).result().tokens


def test_counters_outlive_the_daemon_and_every_request_ends_as_it_would_have(slow_rig: DaemonRig) -> None:
    with slow_rig.connect() as k, ExitStack() as stack:
        k.load(str(MODEL), name="demo")
        golden = [tokens_of(k.alloc("demo"), prompt) for prompt in PROMPTS]
        clients: list[Client] = []
        for path, weight in WEIGHTS.items():
            k.add_tenant(path, weight=weight)
            clients.append(stack.enter_context(slow_rig.connect(token=k.add_token(path).token)))
        contexts = [client.alloc("demo") for client in clients for _ in PROMPTS]
        pool = stack.enter_context(ThreadPoolExecutor(len(contexts)))
        outputs = [pool.submit(tokens_of, context, prompt) for context, prompt in zip(contexts, PROMPTS * len(clients), strict=True)]
        until(lambda: all(services(slow_rig)[path] > 0 for path in WEIGHTS), timeout_s=60)
        before = services(slow_rig)
        slow_rig.kill()
        slow_rig.start()
        slow_rig.connect().close()
        after = services(slow_rig)
        assert all(after[path] >= before[path] for path in before)
        assert [output.result(timeout=120) for output in outputs] == golden * len(clients)
        usage = [context.attach(0).result().usage for context in contexts]
        assert {item.output_tokens for item in usage} == {NUM_TOKENS}
        assert all(item.input_tokens > 0 for item in usage)
