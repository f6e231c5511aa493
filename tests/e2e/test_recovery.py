"""Death and return: kill -9 of the worker and of the daemon, at work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import kerneld_client
from kerneld_client import Client
from tests.e2e.rig import MODEL, ROOT, DaemonRig, stream_all

PROMPTS = [f"# module {idx}\nimport os\n\ndef run_{idx}(argument):\n" for idx in range(16)]


def load(rig: DaemonRig) -> Client:
    """A client with the demo model loaded."""
    client = rig.connect()
    client.load(str(MODEL), name="demo")
    return client


def test_sixteen_streams_survive_the_death_of_their_worker(rig: DaemonRig) -> None:
    with load(rig) as k:
        golden = stream_all([k.alloc("demo") for _ in PROMPTS], PROMPTS, 120)
        contexts = [k.alloc("demo") for _ in PROMPTS]
        disturbed = stream_all(contexts, PROMPTS, 120, lambda: rig.kill_worker(k))
        used = [context.attach(0).result().usage for context in contexts]
    assert disturbed == golden
    assert sum(usage.pages_recomputed for usage in used) > 0
    assert sum(usage.pages_restored for usage in used) > 0


@pytest.mark.parametrize("quant", ["", "int8"])
def test_in_bfloat16_a_recomputed_context_goes_on_with_the_same_tokens(tmp_path: Path, quant: str) -> None:
    rig = DaemonRig(tmp_path, "memory.device_bytes=128MiB", "memory.host_bytes=64MiB", "drivers.threads=1", "drivers.dtype=bfloat16")
    try:
        rig.start()
        with rig.connect() as k:
            k.load(str(MODEL), name="demo", quant=quant)
            golden = [stream_all([k.alloc("demo")], [prompt], 60)[0] for prompt in PROMPTS[:6]]
            contexts = [k.alloc("demo") for _ in PROMPTS[:6]]
            together = stream_all(contexts, PROMPTS[:6], 60, lambda: rig.kill_worker(k))
            used = [context.attach(0).result().usage for context in contexts]
            [device] = k.devices()
        assert together == golden
        assert sum(usage.pages_recomputed for usage in used) > 0
        assert device.models[0].runs_on.startswith("native code (")
        assert not any(op.is_quarantined for op in device.models[0].ops)
    finally:
        rig.clean_up()


def test_a_stream_goes_on_after_the_death_of_the_daemon(rig: DaemonRig) -> None:
    with load(rig) as k:
        undisturbed = k.alloc("demo")
        golden = undisturbed.infer(PROMPTS[0], max_tokens=300, temperature=0, ignore_eos=True).result()
        context = k.alloc("demo")
        stream = context.infer(PROMPTS[0], max_tokens=300, temperature=0, ignore_eos=True)
        tokens: list[int] = []
        text = ""
        for delta in stream:
            if not tokens:
                rig.kill()
                rig.start()
            assert delta.offset == golden.offset + len(tokens)
            tokens.extend(delta.tokens)
            text += delta.text
    assert tuple(tokens) == golden.tokens
    assert text == golden.text


def test_what_was_acknowledged_is_there_after_the_death_of_the_daemon(rig: DaemonRig) -> None:
    with load(rig) as k:
        k.add_tenant("lab/ann", weight=3, limits=kerneld_client.Limits(max_contexts=5))
        token = k.add_token("lab/ann")
        context = k.alloc("demo", labels={"purpose": "test"})
        before = context.infer(PROMPTS[1], max_tokens=40, temperature=0, ignore_eos=True).result()
        image = context.checkpoint(name="mark")
        asleep = context.fork()
        asleep.suspend()
        rig.kill()
        rig.start()
        again = k.context(context.id)
        assert again.stat().labels == {"purpose": "test"}
        assert again.read(before.offset).tokens == before.tokens
        assert k.context(asleep.id).stat().state == "suspended"
        assert [item.id for item in k.images()] == [image.id]
        assert k.models()[0].name == "demo"
        tenant = next(item for item in k.tenants() if item.path == "lab/ann")
        assert (tenant.weight, tenant.limits.max_contexts) == (3, 5)
        restored = k.restore(image)
        more = restored.infer(max_tokens=20, temperature=0, ignore_eos=True).result().tokens
        assert more == again.infer(max_tokens=20, temperature=0, ignore_eos=True).result().tokens
    with rig.connect(token=token.token) as ann:
        assert ann.whoami().tenant == "lab/ann"


def test_an_image_restores_its_pages_without_recomputing(rig: DaemonRig) -> None:
    with load(rig) as k:
        context = k.alloc("demo")
        context.infer(PROMPTS[2] * 8, max_tokens=40, temperature=0, ignore_eos=True).result()
        image = context.checkpoint()
        assert image.num_pages > 0
        assert k.verify_image(image).ok
        golden = context.infer(max_tokens=32, temperature=0, ignore_eos=True).result().tokens
        restored = k.restore(image)
        result = restored.infer(max_tokens=32, temperature=0, ignore_eos=True).result()
    assert result.tokens == golden
    assert result.usage.pages_restored == image.num_pages
    assert result.usage.pages_recomputed == 0


def test_a_damaged_page_of_an_image_is_named_and_computed_again(rig: DaemonRig) -> None:
    with load(rig) as k:
        context = k.alloc("demo")
        context.infer(PROMPTS[3] * 4, max_tokens=20, temperature=0, ignore_eos=True).result()
        image = context.checkpoint()
        golden = context.infer(max_tokens=20, temperature=0, ignore_eos=True).result().tokens
        context.free()  # else the restore takes its pages, which hold
        page = next(path for path in (rig.state / "images" / "pages").rglob("*") if path.is_file())
        damaged = bytearray(page.read_bytes())
        damaged[100] ^= 1
        page.write_bytes(damaged)
        problems = k.verify_image(image).problems
        restored = k.restore(image)
        result = restored.infer(max_tokens=20, temperature=0, ignore_eos=True).result()
    assert len(problems) == 1
    assert "A restore computes its tokens again." in problems[0]
    assert restored.restored is not None
    assert restored.restored.recompute_reason
    assert restored.restored.pages_to_recompute > 0
    assert result.tokens == golden


def test_sigterm_leaves_nothing_behind(rig: DaemonRig) -> None:
    with load(rig) as k:
        k.alloc("demo").infer(PROMPTS[0], max_tokens=4).result()
        worker = rig.worker_pid(k)
    assert rig.stop() == 0
    assert not rig.socket.exists()
    assert not Path(f"/proc/{worker}").exists()
    assert not list(rig.folder.glob("*.sock*"))


def test_a_second_daemon_on_the_same_state_is_refused_by_name(rig: DaemonRig) -> None:
    load(rig).close()
    other = [sys.executable, "-P", "-m", "cli.daemon", "serve", f"--state={rig.state}", f"--socket={rig.folder / 'other.sock'}"]
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'sdk' / 'python'}", "PATH": "/usr/bin:/bin"}
    refused = subprocess.run(other, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert refused.returncode == 1
    assert str(rig.pid) in refused.stderr


def test_a_worker_outlives_its_daemon_with_its_weights_and_pages(rig: DaemonRig) -> None:
    with load(rig) as k:
        context = k.alloc("demo")
        before = context.infer(PROMPTS[4] * 8, max_tokens=40, temperature=0, ignore_eos=True).result()
        golden = context.fork().infer(max_tokens=20, temperature=0, ignore_eos=True).result()
        worker = rig.worker_pid(k)
        rig.kill()
        rig.start()
        again = k.context(context.id).infer(max_tokens=20, temperature=0, ignore_eos=True).result()
        assert rig.worker_pid(k) == worker
    assert again.tokens == golden.tokens
    assert again.usage.pages_restored >= (again.offset - len(before.tokens)) // 16 > 0
