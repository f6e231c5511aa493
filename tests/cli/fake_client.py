"""A client that answers from memory, at the border where `kernelctl` meets `kerneld_client`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from click.testing import CliRunner, Result

from cli.main import cli
from cli.target import Target
from kerneld_client import device_values, memory_values, usage_values, values
from kerneld_client.errors import KerneldError

LONG_AGO = time.time() - 3 * 86400 - 2 * 3600 - 60  # shown as 3d2h
LIMITS = values.Limits(max_contexts=4)
CONTEXT = values.ContextInfo(
    id="c1",
    model="small",
    owner="ana",
    tenant="lab/ana",
    state=values.ContextState.IDLE,
    num_tokens=20,
    max_tokens=1024,
    priority=values.Priority.INTERACTIVE,
    nice=0,
    durability=values.Durability.JOURNAL,
    labels={"job": "eval"},
    created_at=LONG_AGO,
    last_used_at=LONG_AGO,
    pages=values.PageCounts(device=2, host=1, lost=0, shared=1, disk=3),
    kv_bytes=3 << 20,
    parent="",
    active_request="",
    last_request="",
    failure="",
    grants=(),
    seed=7,
    pinned_tokens=0,
    sharing_group="",
)
MODEL = values.ModelInfo(
    name="small",
    path="/srv/models/small",
    state=values.ModelState.RESIDENT,
    architecture="llama",
    dtype="float32",
    bytes=24 << 20,
    num_parameters=6_300_000,
    max_positions=1024,
    vocab_size=4096,
    weights_hash="ab" * 32,
    device="cpu0",
    kv_bytes_per_token=2048,
    num_contexts=1,
    failure="",
    quant="",
    has_chat_template=True,
    tier="device",
    device_bytes=24 << 20,
    host_bytes=24 << 20,
    num_loads=2,
)
DEVICE = device_values.Device(
    name="cpu0",
    state="running",
    driver="cpu",
    version="2",
    device_name="x86_64 CPU, 2 threads",
    memory_bytes=1 << 30,
    dtypes=("float32", "bfloat16"),
    quantizations=("int8",),
    isa="avx2",
    is_batch_invariant=True,
    models=(
        device_values.DeviceModel(
            "small",
            "native code (avx2), 2 threads",
            (
                device_values.OpReport("norm_linear", "native.norm_linear", ("rms_norm", "linear"), 61, "one call for 2", False),
                device_values.OpReport("softcap", "native.softcap", (), 0, "it disagreed", True),
            ),
            "int8",
        ),
    ),
    arena_bytes=512 << 20,
)
IMAGE = values.Image("i1", "c1", "small", "ana", "lab/ana", 20, 2, 1536, LONG_AGO, "before")
HOLDING = memory_values.Holding("device", "lab/ana", "kv", "c" * 32, "running", 14 << 20)
CHANGE = memory_values.LimitChange(
    "device", "device_bytes", 0, 32 << 20, memory_values.LimitOutcome.DEFERRED, 12 << 20, (HOLDING, replace(HOLDING, name=""))
)
MEMORY = memory_values.Memory(
    tiers=(memory_values.TierTotal("device", 100 << 20, 40 << 20, 16 << 20, {"kv": 30 << 20, "weights": 30 << 20}),),
    accounts=(
        memory_values.TierAccount("lab/ana", "device", {"kv": 20 << 20}, 20 << 20, 16 << 20, 18 << 20, 4 << 20, 2 << 20, 2, 1 << 20),
        memory_values.TierAccount("models", "device", {"weights": 30 << 20}, 30 << 20, 0, 0, 30 << 20, 0, 1, 0),
        memory_values.TierAccount("others", "device", {"kv": 10 << 20}, 10 << 20, 0, 0, 0, 0, 1, 0),
    ),
    decisions=(
        memory_values.PathDecision(0.0, "small", "d" * 32, 1000, 992, "host", 0.00085, "recompute", 1.204, 0.0125),
        memory_values.PathDecision(0.0, "small", "e" * 32, 16, 0, "recompute", 0.001, "disk", 0.0125, None),
    ),
)
EXPLANATION = memory_values.Explanation(
    subject="context " + "a" * 32,
    state="ready",
    summary="its request waits: it needs 12 MiB more of the device.",
    placements=(memory_values.Placement("host", 3 << 20, 2), memory_values.Placement("nowhere", 0, 1)),
    obstacles=(memory_values.Obstacle("FRAMES", "it needs 12 MiB more of the device.", "device", "", 12 << 20, 0, 0),),
    holders=(HOLDING, replace(HOLDING, name="small", kind="weights", owner="models"), replace(HOLDING, name="", bytes=1 << 20)),
    remedies=(memory_values.Remedy("unload", "device", 14 << 20, "models", "small", "unload the model small (14 MiB)", False),),
    queue=memory_values.QueuePlace(2, 3, 5, 1, 700),
)
OUTLOOK = memory_values.Outlook(
    request="b" * 32,
    context_id="a" * 32,
    tenant="lab/ana",
    model="small",
    state="waiting",
    priority="batch",
    nice=2,
    arrived_at=LONG_AGO,
    queue_s=3.25,
    position=5,
    is_position_least=False,
    tenant_position=2,
    contenders=(
        memory_values.Contender("others", False, 1, 1000, 0, 1_500_000, 1, 4),
        memory_values.Contender("lab/ana", True, 2, 500, 4_200, 2_500_000, 3, 2),
    ),
    estimate=memory_values.StartEstimate(4.21, 0.312, 64),
    deferred_until=0.0,
    deadline=0.0,
    num_preemptions=1,
    output_tokens=7,
    first_token_s=0.5,
    reason="",
    detail="",
    ended_at=0.0,
)
BOOKS = memory_values.PartChecked("books", 12, "pages", 0, ())
JOURNAL = memory_values.PartChecked("journal", 3, "records", 2048, ("it ends early",))
TENANT = values.TenantInfo("lab", 2, LIMITS, 1, 1, 0, 941_900_000, 2 << 20, 0, LONG_AGO, 100, 50, 1 << 20, "ab12", (CHANGE,))
USAGE = (
    usage_values.UsageRecord("lab/ana", 1772352000.0, False, 3, 1200, 64, 30, 2.5, 2_400_000, 12_500.0, 40.0, 0.0, 1, 0.5),
    usage_values.UsageRecord("lab/bo", 1772352000.0, True, 1, 10, 0, 5, 0.1, 100_000, 3.0, 0.0, 0.0, 0, 0.0),
)
SHARES = (
    usage_values.ShareRecord("lab", 1, 0.5, 0.5, 0.8, 8_000_000, 791, 0.334, 0.334, 9_000_000, 2, 1),
    usage_values.ShareRecord("lab-b", 1, 0.5, 0.5, 0.2, 2_000_000, 1581, 0.666, 0.666, 2_500_000, 0, 0),
    usage_values.ShareRecord("lab/ana", 1, 0.5, 0.25, 0.5, 4_000_000, 1000, 0.5, 0.167, 4_500_000, 2, 0),
    usage_values.ShareRecord("lab/bo", 1, 0.5, 0.25, 0.5, 4_000_000, 1000, 0.5, 0.167, 4_500_000, 0, 1),
)
TOKEN = values.TokenInfo("t1", "lab", "ci", ("user",), LONG_AGO, 0.0, 0.0)
TIER = values.TierUse("device", 100 << 20, 40 << 20, 30 << 20, {"lab": 20 << 20, "solo": 10 << 20})
WORKER = values.WorkerStatus("cpu0", "cpu", 4711, "running", 1, 0.5)
ACTIVITY = memory_values.TenantActivity("lab", 2, 1500, 4_250_000, 0.75, -12_600, 3, 2, 1, 2 << 20)
FRAME = values.TopFrame(
    LONG_AGO, 75.0, 1, 2, 3, 120.4, 900.0, (TIER,), (TENANT,), (WORKER,), (MODEL,), 5, (ACTIVITY,), recent_s=10.0, jain=0.987
)
EVENT = values.Event(9, LONG_AGO, "WorkerLost", {"device": "cpu0"})


class FakeStream:
    """Two deltas and a result; `interrupted` ends it after the first as Ctrl-C does."""

    def __init__(self, interrupted: bool = False, finish: values.FinishReason = values.FinishReason.LENGTH) -> None:
        self._interrupted = interrupted
        self._finish = finish

    def __iter__(self) -> Iterator[values.Delta]:
        yield values.Delta(4, (1, 2), "Once ")
        if self._interrupted:
            raise KeyboardInterrupt
        yield values.Delta(6, (3,), "upon")

    def result(self) -> values.Result:
        """The whole of it."""
        usage = values.Usage(input_tokens=4, output_tokens=3)
        detail = "The model could not be loaded." if self._finish is values.FinishReason.ERROR else ""
        return values.Result(4, (1, 2, 3), "Once upon", (), self._finish, usage, "r1", detail)


@dataclass
class FakeClient:
    """Remembers what it was asked, and answers with the values above. `error`, once set, is raised by every call."""

    asked: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    error: KerneldError | None = None
    interrupted: bool = False
    finish: values.FinishReason = values.FinishReason.LENGTH
    problems: tuple[str, ...] = ()
    explanation: memory_values.Explanation = EXPLANATION
    frame: values.TopFrame = FRAME
    shown_device: device_values.Device = DEVICE

    def __enter__(self) -> FakeClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.asked.append(("close", (), {}))

    def __getattr__(self, verb: str) -> Callable[..., Any]:
        answers: dict[str, Any] = {
            "alloc": FakeContext(self, "c1"),
            "restore": FakeContext(self, "c1"),
            "contexts": [CONTEXT],
            "models": [MODEL],
            "model": MODEL,
            "register": MODEL,
            "unload": MODEL,
            "pin": replace(MODEL, is_pinned=True),
            "unpin": MODEL,
            "images": [IMAGE],
            "verify_image": values.Verified(not self.problems, self.problems, 1536),
            "tenants": [TENANT],
            "usage": list(USAGE),
            "shares": list(SHARES),
            "add_tenant": TENANT,
            "set_tenant": TENANT,
            "remove_tenant": 1,
            "sharing_groups": [values.SharingGroup("team", ("lab/ana", "lab/bo"), LONG_AGO, 2)],
            "add_sharing_group": values.SharingGroup("team", ("lab/ana",), LONG_AGO, 0),
            "set_sharing_group": values.SharingGroup("team", ("lab/ana", "lab/bo"), LONG_AGO, 2),
            "tokens": [TOKEN],
            "add_token": values.NewToken("t1", "kd_secret", "lab", 0.0),
            "whoami": values.Principal("ana", "lab/ana", ("user",), "peer"),
            "drain": values.Drained(3, 1),
            "top": self.frame,
            "memory": MEMORY,
            "devices": [self.shown_device],
            "explain": self.explanation,
            "requests": [OUTLOOK, replace(OUTLOOK, request="c" * 32, state="running", position=0, tenant_position=0)],
            "fsck": iter((BOOKS, JOURNAL) if self.problems else (BOOKS,)),
            "top_stream": iter([FRAME, replace(FRAME, running=2)]),
            "events": iter([EVENT]),
            "stat": CONTEXT,
            "truncate": CONTEXT,
            "suspend": CONTEXT,
            "resume": CONTEXT,
            "set": CONTEXT,
            "grant": CONTEXT,
            "revoke": CONTEXT,
            "fork": FakeContext(self, "c2"),
            "checkpoint": IMAGE,
            "read": values.ContextText(0, (1, 2), "Once", 20),
            "score": values.Score((1, 2), (values.Logprob(-0.5), values.Logprob(-1.25)), -1.75),
            "infer": FakeStream(self.interrupted, self.finish),
            "attach": FakeStream(),
        }

        def answer(*positional: Any, **named: Any) -> Any:
            self.asked.append((verb, positional, named))
            if self.error is not None:
                raise self.error
            return answers.get(verb)

        return answer

    def context(self, context_id: str) -> FakeContext:
        """A handle; nothing is asked."""
        return FakeContext(self, context_id)

    def load(self, path: str, *, name: str, progress: Callable[[values.LoadProgress], None], **options: Any) -> values.ModelInfo:
        """Load in two stages."""
        self.asked.append(("load", (path,), {"name": name, **options}))
        progress(values.LoadProgress("hash", 0, 10))
        progress(values.LoadProgress("copy", 5, 10))
        progress(values.LoadProgress("copy", 10, 10))
        return MODEL

    def verbs(self) -> list[str]:
        """Names of what was asked, in order."""
        return [verb for verb, _, _ in self.asked]

    def arguments_of(self, verb: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments of the first call of a verb."""
        return next((positional, named) for asked, positional, named in self.asked if asked == verb)


class FakeContext:
    """A handle whose verbs are the client's, with the id in front."""

    def __init__(self, client: FakeClient, context_id: str) -> None:
        self._client = client
        self.id = context_id

    def __getattr__(self, verb: str) -> Callable[..., Any]:
        return lambda *positional, **named: getattr(self._client, verb)(self.id, *positional, **named)


class Kernelctl:
    """Runs kernelctl against a fake client."""

    def __init__(self) -> None:
        self.client = FakeClient()
        self.targets: list[Target] = []

    def __call__(self, *arguments: str, stdin: str | None = None, **environment: str) -> Result:
        return CliRunner().invoke(cli, list(arguments), obj=self._connect, input=stdin, env=environment, prog_name="kernelctl")

    def _connect(self, target: Target) -> FakeClient:
        self.targets.append(target)
        return self.client
