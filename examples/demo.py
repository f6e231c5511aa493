"""The story of `make demo`: what kerneld is for, on the shipped model, as a transcript.

It starts a daemon of its own in a temporary folder, talks to it as any program would, kills its worker and then the daemon itself,
and shows that nothing was lost. Every claim that it prints was checked just before; a claim that does not hold ends it with exit code 1.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import kerneld_client
from kerneld_client import Client, Context

HERE = Path(__file__).resolve().parent
MODEL = HERE / "demo_model"
PROMPT = "def read_lines(path):\n"
READY_TIMEOUT_S = 60.0
FAIRNESS_WINDOW_S = 6.0
NUM_NOISY, NUM_QUIET = 60, 36  # contexts; kerneld.max_rows is 32


class ClaimFailed(Exception):
    """Something that the demo promises did not hold."""


class Daemon:
    """A kerneld of our own, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "kerneld.sock"
        self._log = (folder / "daemon.log").open("ab")
        self._command = [sys.executable, "-P", "-m", "cli.daemon", "serve", f"--state={folder / 'state'}", f"--socket={self.socket}"]
        self._command += [f"--model-root={HERE}", "--set=memory.device_bytes=256MiB", "--set=memory.host_bytes=256MiB"]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE.parent / "sdk" / "python")])}
        self._process = subprocess.Popen(self._command, stdout=self._log, stderr=self._log, env=environment)

    def connect(self) -> Client:
        """A client, as soon as the daemon answers. Raises: KerneldError, if it does not within `READY_TIMEOUT_S`."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        while True:
            try:
                return kerneld_client.connect(self.socket)
            except kerneld_client.KerneldError:
                if time.monotonic() > deadline or (self._process is not None and self._process.poll() is not None):
                    raise
                time.sleep(0.05)

    def kill(self) -> int:
        """kill -9, and the process that it was."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        return self._process.pid

    def stop(self) -> int:
        """SIGTERM, and its exit code."""
        if self._process is None:
            return 0
        self._process.terminate()
        return self._process.wait(timeout=60)


def bold(text: str) -> str:
    """Text that stands out on a terminal; elsewhere it is left as it is."""
    return f"\033[1m{text}\033[0m" if sys.stdout.isatty() else text


class Transcript:
    """Prints the story, a numbered chapter at a time."""

    def __init__(self) -> None:
        self._chapter = 0
        self._started_at = time.monotonic()

    def chapter(self, title: str) -> None:
        """Begin the next chapter."""
        self._chapter += 1
        print(f"\n{bold(f'{self._chapter}. {title}')}   [{time.monotonic() - self._started_at:.1f} s]", flush=True)

    def say(self, text: str) -> None:
        """A line of narration."""
        print(f"   {text}", flush=True)

    def quote(self, label: str, text: str) -> None:
        """Something that the model wrote."""
        print(f"   {label} | " + text.strip("\n").replace("\n", f"\n   {' ' * len(label)} | "), flush=True)

    def claim(self, text: str, holds: bool) -> None:
        """A promise, checked. Raises: ClaimFailed."""
        print(f"   {'✓' if holds else '✗'} {text}", flush=True)
        if not holds:
            raise ClaimFailed(text)


def load_model(k: Client, story: Transcript) -> None:
    """A model becomes resident once, for everybody."""
    story.chapter("Load the shipped model")
    story.say("It was trained on the Python standard library, and is small: what it writes looks like Python, and means nothing.")
    model = k.load(str(MODEL), name="demo")
    size = f"{model.num_parameters / 1e6:.1f} million parameters, {model.bytes / 2**20:.0f} MiB on the device in {model.dtype}"
    story.claim(f"'{model.name}' is {model.state}: {size}", model.state == "resident")


def stream_and_fork(k: Client, story: Transcript) -> Context:
    """One past, two futures; the pages of the past are shared."""
    story.chapter("A context is to kerneld what a process is to an operating system: here one is forked")
    context = k.alloc("demo", seed=7)
    written = context.infer(PROMPT, max_tokens=24, temperature=0).result()
    past = context.read().tokens
    branch = context.fork()
    pages = branch.stat().pages
    first = context.infer(max_tokens=32, temperature=0.8).result()
    second = branch.infer(max_tokens=32, temperature=0.8).result()
    story.quote("prompt  ", PROMPT)
    story.quote("answer  ", written.text)
    story.quote("context ", first.text)
    story.quote("its fork", second.text)
    story.claim(f"the fork took no memory: it shared all its {pages.device} pages", pages.shared == pages.device > 0)
    story.claim("both went on from the same past", all(ctx.read(0, len(past)).tokens == past for ctx in (context, branch)))
    story.claim("and each in its own way", first.tokens != second.tokens)
    branch.free()
    return context


def checkpoint(k: Client, context: Context, story: Transcript) -> tuple[str, list[int]]:
    """An image on disk; what follows it is remembered to be compared later."""
    story.chapter("Checkpoint that context to an image on the disk")
    image = context.checkpoint(name="before-the-storm")
    story.say(f"'{image.name}': {image.num_tokens} tokens and {image.num_pages} pages of KV in {image.bytes / 1024:.0f} KiB")
    story.claim("the image is whole", k.verify_image(image).ok)
    continuation = context.infer(max_tokens=48, temperature=0, ignore_eos=True).result().tokens
    story.say(f"the context goes on for {len(continuation)} tokens, which chapter 5 will have to repeat")
    return image.id, list(continuation)


def run_many(contexts: list[Context], during: Callable[[], None]) -> list[list[int]]:
    """Stream on all contexts at once, do something meanwhile, and return what each wrote."""
    results: list[list[int]] = [[] for _ in contexts]
    started = threading.Barrier(len(contexts) + 1)

    def follow(idx: int) -> None:
        stream = contexts[idx].infer(f"# file {idx}\nimport os\n", max_tokens=96, temperature=0, ignore_eos=True)
        waited = False
        for delta in stream:
            results[idx].extend(delta.tokens)
            if not waited:
                started.wait(timeout=60)
                waited = True

    threads = [threading.Thread(target=follow, args=(idx,)) for idx in range(len(contexts))]
    for thread in threads:
        thread.start()
    started.wait(timeout=60)
    during()
    for thread in threads:
        thread.join()
    return results


def kill_worker(k: Client, story: Transcript) -> None:
    """The process that holds the weights and the KV dies while eight streams run."""
    story.chapter("Eight contexts stream at once, and the worker is killed with -9")
    story.say("The worker is the process that holds the weights and the KV. First the eight run undisturbed, then eight like them do not.")
    quiet = [k.alloc("demo") for _ in range(8)]
    golden = run_many(quiet, lambda: None)
    loud = [k.alloc("demo") for _ in range(8)]
    pid = k.top().workers[0].pid

    def kill() -> None:
        story.say(f"$ kill -9 {pid}   (all eight have begun to answer)")
        os.kill(pid, signal.SIGKILL)

    disturbed = run_many(loud, kill)
    story.claim("no client saw an error, and every stream is token for token what it was undisturbed", disturbed == golden)
    worker = k.top().workers[0]
    story.claim(f"a new worker does the work: process {worker.pid}", worker.pid != pid and worker.restarts > 0)
    for context in quiet + loud:
        context.free()


def kill_daemon(daemon: Daemon, k: Client, image: str, continuation: list[int], story: Transcript) -> None:
    """Everything acknowledged is there after kill -9 of the daemon."""
    story.chapter("The daemon itself is killed with -9 and started again; the image is restored")
    living = {context.id for context in k.contexts()}
    story.say(f"$ kill -9 {daemon.kill()}")
    daemon.start()
    story.claim("the contexts that lived are there", {context.id for context in k.contexts()} == living)
    restored = k.restore(image)
    again = restored.infer(max_tokens=len(continuation), temperature=0, ignore_eos=True).result().tokens
    story.claim(f"the restored context repeats all {len(continuation)} tokens of chapter 3", list(again) == continuation)
    restored.free()


def share_fairly(daemon: Daemon, k: Client, story: Transcript) -> None:
    """A noisy tenant asks on more contexts than a quiet one, and gets no more than it while both have requests queued."""
    story.chapter("A noisy tenant and a quiet one, of the same weight")
    story.say(f"For {FAIRNESS_WINDOW_S:.0f} s noisy asks on {NUM_NOISY} contexts and quiet on {NUM_QUIET}; only 32 can run at once.")
    k.add_tenant("noisy", weight=1)
    k.add_tenant("quiet", weight=1)
    with tenant_client(daemon, k, "noisy") as noisy, tenant_client(daemon, k, "quiet") as quiet:
        stop = threading.Event()
        crowd = [noisy.alloc("demo") for _ in range(NUM_NOISY)] + [quiet.alloc("demo") for _ in range(NUM_QUIET)]
        threads = [threading.Thread(target=keep_asking, args=(context, stop)) for context in crowd]
        for thread in threads:
            thread.start()
        before = service(k)
        time.sleep(FAIRNESS_WINDOW_S)
        after = service(k)
        show(daemon.socket, "top", "--once")
        stop.set()
        for thread in threads:
            thread.join()
    gained = {name: after[name] - before[name] for name in ("noisy", "quiet")}
    share = gained["noisy"] / max(1, gained["noisy"] + gained["quiet"])
    story.say(f"In those {FAIRNESS_WINDOW_S:.0f} s noisy got {share:.0%} of the service and quiet {1 - share:.0%}.")
    story.claim("each has its half, within 15 %", abs(share - 0.5) <= 0.075)


@contextmanager
def tenant_client(daemon: Daemon, k: Client, tenant: str) -> Iterator[Client]:
    """A client that is somebody of that tenant."""
    token = k.add_token(tenant=tenant)
    with kerneld_client.connect(daemon.socket, token=token.token) as client:
        yield client


def keep_asking(context: Context, stop: threading.Event) -> None:
    """Ask again as soon as an answer is there, until told to stop."""
    while not stop.is_set():
        context.infer("def f(x):\n", max_tokens=24, temperature=0, ignore_eos=True).result()
        context.truncate(0)


def service(k: Client) -> dict[str, int]:
    """Service charged so far, by tenant."""
    return {tenant.path: tenant.service for tenant in k.tenants()}


def show_machine(k: Client, daemon: Daemon, story: Transcript) -> None:
    """What is left, as an administrator sees it."""
    story.chapter("What is left, once the tenants are gone")
    for tenant in ("noisy", "quiet"):
        k.remove_tenant(tenant, force=True)
    show(daemon.socket, "ps", "--all")
    show(daemon.socket, "ckpt", "ls")
    show(daemon.socket, "mem")


def show(socket: Path, *command: str) -> None:
    """Run a command as a person would."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE.parent / "sdk" / "python")])}
    print(f"   $ kernelctl {' '.join(command)}", flush=True)
    argv = [sys.executable, "-P", "-m", "cli.main", f"--socket={socket}", *command]
    printed = subprocess.run(argv, check=True, env=environment, capture_output=True, text=True).stdout
    print("".join(f"   {line}".rstrip() + "\n" for line in printed.splitlines()), end="", flush=True)


def tell(folder: Path) -> None:
    """The whole story. Raises: ClaimFailed."""
    story = Transcript()
    daemon = Daemon(folder)
    daemon.start()
    try:
        with daemon.connect() as k:
            load_model(k, story)
            context = stream_and_fork(k, story)
            image, continuation = checkpoint(k, context, story)
            kill_worker(k, story)
            kill_daemon(daemon, k, image, continuation, story)
            share_fairly(daemon, k, story)
            show_machine(k, daemon, story)
        story.chapter("SIGTERM: the daemon drains and leaves nothing behind")
        story.claim("it ended with exit code 0", daemon.stop() == 0)
        story.claim("no socket is left", not list(folder.glob("*.sock*")))
        print("\nAll of it held. To try it yourself: `make run` in one terminal; what to type in another stands in README.md.")
    finally:
        daemon.stop()


def main() -> int:
    """Run the demo in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="kerneld-demo-") as folder:
        try:
            tell(Path(folder))
        except ClaimFailed as failure:
            print(f"\nThe demo failed: {failure}", file=sys.stderr)
            print((Path(folder) / "daemon.log").read_text(errors="replace")[-4000:], file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
