"""Memory that nobody needs leaves the worker while it is idle, and comes back with the next request."""

from __future__ import annotations

from pathlib import Path

import psutil

from tests.e2e.rig import MODEL, DaemonRig, until


def test_an_idle_worker_shrinks_and_grows_again(tmp_path: Path) -> None:
    own = DaemonRig(
        tmp_path, "memory.device_bytes=512MiB", "memory.host_bytes=0", "memory.idle_return_s=0.2", "kerneld.disk_reserve_bytes=0"
    )
    try:
        own.start()
        with own.connect() as k:
            worker = psutil.Process(own.worker_pid(k))
            until(lambda: worker.memory_info().rss < 300 << 20)  # the process with its libraries; the arena alone has 512 MiB
            empty_bytes = worker.memory_info().rss
            k.load(MODEL, name="demo")
            context = k.alloc("demo")
            first = context.infer("Once upon a time", max_tokens=20, temperature=0, ignore_eos=True).result().tokens
            idle_bytes = empty_bytes + (100 << 20)  # and the weights, and what computing them took: 75 MiB
            until(lambda: worker.memory_info().rss < idle_bytes)
            again = k.alloc("demo").infer("Once upon a time", max_tokens=20, temperature=0, ignore_eos=True).result().tokens
            assert again == first
            assert worker.memory_info().rss > 512 << 20
            assert own.worker_pid(k) == worker.pid
    finally:
        own.clean_up()
