"""Who may do what on a real daemon, and what its hostile callers cannot do."""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kerneld.state.chain import verify
from kerneld_client import Client, errors
from kerneld_client.pb import syscalls_pb2 as pb
from syscalls.table import build_table
from tests.e2e.rig import FAKE, MODEL, ROOT, DaemonRig, fake_model, until

TABLE = build_table()
CANARY = "canary prompt that nobody may ever log"
NOBODY = 65534


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonRig]:
    """A daemon on the fake driver that other users of the machine can reach; toy and demo are loaded."""
    folder = tmp_path_factory.mktemp("security")
    for part in (folder, folder.parent, folder.parent.parent):
        part.chmod(0o755)
    own = DaemonRig(folder, *FAKE, "kerneld.max_rows=8")
    own.start()
    with own.connect() as k:
        k.load(fake_model(folder), name="toy")
        k.load(MODEL, name="demo")
        k.add_tenant("lab/ann")
        k.add_tenant("lab/bob")
    yield own
    own.clean_up()


@pytest.fixture
def k(rig: DaemonRig) -> Iterator[Client]:
    """An administrator."""
    with rig.connect() as client:
        yield client


@pytest.fixture
def channel(rig: DaemonRig) -> Iterator[grpc.Channel]:
    """A bare connection."""
    with grpc.insecure_channel(f"unix:{rig.socket}") as bare:
        yield bare


def call(channel: grpc.Channel, path: str, request: bytes, token: str = "", timeout_s: float = 20.0) -> grpc.StatusCode:
    """Make any call with any bytes and say how it ended; of a stream the first answer is enough."""
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    kind: Any = channel.unary_stream if TABLE[path].is_stream else channel.unary_unary
    method = kind(path, request_serializer=bytes, response_deserializer=bytes)
    try:
        answer = method(request, timeout=timeout_s, metadata=metadata)
        if TABLE[path].is_stream:
            next(answer, None)
            answer.cancel()
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return grpc.StatusCode.OK


def code_of(action: Callable[[], object]) -> str:
    """How a call through the client ended."""
    try:
        action()
    except errors.KerneldError as error:
        return str(error.code.name)
    return "OK"


# ---------------------------------------------------------------------------------------------------------------------- identity


@pytest.mark.parametrize("path", TABLE)
@pytest.mark.parametrize("token", ["", "kl_" + "0" * 64, "kd_0123456789abcdef_" + "0" * 64, "x" * 4000])
def test_without_a_good_token_nothing_is_answered(channel: grpc.Channel, path: str, token: str) -> None:
    assert call(channel, path, b"", token) is grpc.StatusCode.UNAUTHENTICATED


AS_NOBODY = """
import json, os, sys
import kerneld_client
from kerneld_client import errors
os.setgroups([]); os.setgid(65534); os.setuid(65534)
def code(action):
    try: action()
    except errors.KerneldError as error: return error.code.name
    return "OK"
with kerneld_client.connect(sys.argv[1]) as k:
    me = k.whoami()
    own = k.alloc("toy")
    own.infer(tokens=[5, 6], max_tokens=4, ignore_eos=True).result()
    print(json.dumps({
        "me": [me.name, me.tenant, list(me.roles)],
        "own": own.id, "seen": [item.id for item in k.contexts(all=True)],
        "codes": {
            "stat foreign": code(lambda: k.context(sys.argv[2]).stat()),
            "free foreign": code(lambda: k.context(sys.argv[2]).free()),
            "drain": code(lambda: k.drain()),
            "add tenant": code(lambda: k.add_tenant("mine")),
            "set tenant": code(lambda: k.set_tenant("local/nobody", weight=100)),
            "add token": code(lambda: k.add_token("local/nobody")),
            "register": code(lambda: k.register(sys.argv[3], name="another")),
            "events": code(lambda: list(k.events())),
        },
    }))
"""


def test_another_user_of_the_machine_is_himself_and_nobody_else(rig: DaemonRig, k: Client) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    foreign = k.alloc("toy")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "sdk" / "python")])}
    command = [sys.executable, "-P", "-c", AS_NOBODY, str(rig.socket), foreign.id, str(rig.folder / "toy")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["me"] == ["nobody", "local/nobody", ["user"]]
    assert told["seen"] == [told["own"]]
    denied = {"drain", "add tenant", "set tenant", "add token", "register", "events"}
    assert {name for name, code in told["codes"].items() if code == "PERMISSION_DENIED"} == denied
    assert {name for name, code in told["codes"].items() if code == "NOT_FOUND"} == {"stat foreign", "free foreign"}
    assert k.context(told["own"]).stat().tenant == "local/nobody"
    until(k.is_serving)


MATRIX = {
    "viewer": {"stat model"},
    "user": {"stat model", "alloc", "load"},
    "operator": {"stat model", "alloc", "load", "events"},
    "admin": {"stat model", "alloc", "load", "events", "add tenant", "add token"},
}


@pytest.mark.parametrize("role", MATRIX)
def test_a_role_may_do_its_own_and_no_more(rig: DaemonRig, k: Client, role: str) -> None:
    with rig.connect(token=k.add_token("lab/ann", name=f"ann-{role}", roles=[role]).token) as ann:
        actions = {
            "stat model": lambda: ann.model("toy"),
            "alloc": lambda: ann.alloc("toy").free(),
            "load": lambda: ann.load(rig.folder / "toy", name="toy"),
            "events": lambda: list(ann.events()),
            "add tenant": lambda: ann.add_tenant(f"of-{role}"),
            "add token": lambda: ann.add_token("lab/ann", roles=["viewer"]),
        }
        codes = {name: code_of(action) for name, action in actions.items()}
        assert len(ann.contexts(all=True)) == (len(k.contexts(all=True)) if role in ("operator", "admin") else 0)
    assert {name for name, code in codes.items() if code == "OK"} == MATRIX[role], codes
    assert {code for name, code in codes.items() if name not in MATRIX[role]} <= {"PERMISSION_DENIED"}, codes


def test_a_removed_or_expired_token_is_nobody(rig: DaemonRig, k: Client) -> None:
    removed, short = k.add_token("lab/ann"), k.add_token("lab/ann", lifetime_s=1.0)
    with rig.connect(token=removed.token) as ann, rig.connect(token=short.token) as late:
        assert ann.whoami().tenant == "lab/ann"
        k.remove_token(removed.id)
        assert code_of(ann.whoami) == "UNAUTHENTICATED"
        until(lambda: code_of(late.whoami) == "UNAUTHENTICATED", 5.0)


def test_handles_are_not_guessed(rig: DaemonRig, k: Client) -> None:
    with rig.connect(token=k.add_token("lab/ann").token) as ann, rig.connect(token=k.add_token("lab/bob").token) as bob:
        context = ann.alloc("toy")
        image = context.checkpoint()
        wrong = (context.id[:-1] + ("0" if context.id[-1] != "0" else "1"), "0" * 32)
        for handle in (context.id, *wrong):
            foreign = bob.context(handle)
            actions: list[Callable[[], object]] = [foreign.stat, foreign.fork, foreign.cancel, foreign.checkpoint, foreign.suspend]
            actions += [
                partial(foreign.truncate, 0),
                foreign.read,
                foreign.attach(0).result,
                partial(foreign.grant, "principal:x", ["read"]),
            ]
            assert {code_of(action) for action in actions} == {"NOT_FOUND"}
        for handle in (image.id, "0" * 32):
            actions = [partial(bob.restore, handle), partial(bob.verify_image, handle), partial(bob.delete_image, handle)]
            assert {code_of(action) for action in actions} == {"NOT_FOUND"}
        context.free()


def test_a_reader_who_was_let_in_owns_the_image_that_he_takes(rig: DaemonRig, k: Client) -> None:
    with rig.connect(token=k.add_token("lab/ann").token) as ann, rig.connect(token=k.add_token("lab/bob", name="bob").token) as bob:
        context = ann.alloc("toy")
        context.infer(tokens=[5, 6, 7], max_tokens=40, temperature=0, ignore_eos=True).result()
        context.grant("principal:bob", ["read"])
        image = bob.context(context.id).checkpoint()
        assert image.id in {item.id for item in bob.images()}
        assert image.id not in {item.id for item in ann.images()}
        assert bob.restore(image).read().tokens == context.read().tokens
        bob.delete_image(image)


# ------------------------------------------------------------------------------------------------------------------------ audit


def entries(rig: DaemonRig) -> list[dict[str, Any]]:
    """What the audit log says now."""
    return [json.loads(line) for line in (rig.state / "audit" / "audit.log").read_text().splitlines()]


def test_every_changing_call_is_audited_and_no_secret_is_written_anywhere(rig: DaemonRig, k: Client) -> None:
    made = k.add_token("lab/ann", name="audited")
    with rig.connect(token=made.token) as ann:
        context = ann.alloc("demo", labels={"purpose": CANARY})
        context.infer(CANARY, max_tokens=5, stop=[CANARY], ignore_eos=True).result()
        context.infer(messages=[{"role": "user", "content": CANARY}], max_tokens=5).result()
        context.score(CANARY)
        child = context.fork()
        image = child.checkpoint(name=CANARY)
        restored = ann.restore(image)
        child.truncate(2)
        child.suspend()
        child.resume()
        child.set(nice=3)
        child.grant("principal:bob", ["read"])
        child.revoke("principal:bob")
        child.cancel()
        ann.delete_image(image)
        for one in (restored, child, context):
            one.free()
        code_of(lambda: ann.add_tenant("never"))
        code_of(lambda: ann.context("0" * 32).free())
    k.remove_token(made.id)
    seen: tuple[str, ...] = (
        "AllocContext",
        "Infer",
        "ForkContext",
        "Checkpoint",
        "Restore",
        "TruncateContext",
        "SuspendContext",
        "ResumeContext",
    )
    seen += ("SetContext", "GrantContext", "RevokeContext", "Cancel", "DeleteCheckpoint", "FreeContext")
    wanted = {("audited", verb, "OK") for verb in seen} | {
        ("audited", "AddTenant", "PERMISSION_DENIED"),
        ("audited", "FreeContext", "NOT_FOUND"),
    }
    until(lambda: wanted <= {(entry["principal"], entry["verb"], entry["outcome"]) for entry in entries(rig)})
    until(lambda: ("RemoveToken", made.id) in {(entry["verb"], entry["object_id"]) for entry in entries(rig)})
    assert {entry["verb"] for entry in entries(rig)} <= {row.verb for row in TABLE.values() if row.mutates}
    assert verify(rig.state / "audit") is None
    secret = made.token.rpartition("_")[2]
    for file in [rig.log, *(rig.state / "audit").iterdir()]:
        content = file.read_text(errors="replace")
        assert CANARY not in content, file
        assert secret not in content, file
    for file in rig.state.rglob("*"):
        assert not file.is_file() or secret.encode() not in file.read_bytes(), file


# ------------------------------------------------------------------------------------------------------------------------ models


@pytest.fixture(scope="module")
def traps(rig: DaemonRig, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Paths that are no models."""
    outside = fake_model(tmp_path_factory.mktemp("outside"))
    (rig.folder / "link").symlink_to(outside)
    (rig.folder / "file").write_text("{}")
    return {
        "dots": str(rig.folder / "toy" / ".." / ".." / outside.parent.name / "toy"),
        "outside": str(outside),
        "link out": str(rig.folder / "link"),
        "file": str(rig.folder / "file"),
        "relative": "toy",
        "root": "/",
        "state": str(rig.state / ".." / ".." / "nothing"),
        "nul": "/tmp/\u2028/x",
    }


@pytest.mark.parametrize("trap", ["dots", "outside", "link out", "file", "relative", "root", "state", "nul"])
def test_a_path_out_of_the_model_roots_is_refused(k: Client, traps: dict[str, str], trap: str) -> None:
    with pytest.raises(errors.InvalidArgument):
        k.register(traps[trap], name="trap")
    assert "trap" not in {model.name for model in k.models()}


@pytest.fixture(scope="module")
def cpu_rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonRig]:
    """A daemon on the CPU driver."""
    own = DaemonRig(tmp_path_factory.mktemp("cpu"), "memory.device_bytes=64MiB", "memory.host_bytes=8MiB", "drivers.threads=1")
    own.start()
    yield own
    own.clean_up()


def disguised(rig: DaemonRig, name: str, change: Callable[[Path], object]) -> Path:
    """A copy of the demo model with one thing changed."""
    path = rig.folder / name
    shutil.copytree(MODEL, path, ignore=shutil.ignore_patterns("*.py", "__pycache__", "*.png", "checkpoints"))
    change(path)
    return path


def with_auto_map(path: Path) -> None:
    """Let the configuration ask for code of its own."""
    config = json.loads((path / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "evil.Model"}
    (path / "config.json").write_text(json.dumps(config))
    (path / "evil.py").write_text(f"open({str(path / 'owned')!r}, 'w').close()\n")


def with_pickle(path: Path) -> None:
    """Leave pickled weights alone."""
    (path / "model.safetensors").unlink()
    (path / "pytorch_model.bin").write_bytes(b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00.")


def with_linked_weights(path: Path) -> None:
    """Let the weights lie somewhere else."""
    (path / "model.safetensors").unlink()
    (path / "model.safetensors").symlink_to("/etc/passwd")


@pytest.mark.parametrize("change", [with_auto_map, with_pickle, with_linked_weights])
def test_a_model_that_brings_code_or_foreign_files_is_refused(cpu_rig: DaemonRig, change: Callable[[Path], None]) -> None:
    path = disguised(cpu_rig, change.__name__, change)
    with cpu_rig.connect() as k:
        with pytest.raises(errors.KerneldError) as refusal:
            k.load(path, name="evil")
        assert refusal.value.code.name in ("INVALID_ARGUMENT", "FAILED_PRECONDITION", "UNIMPLEMENTED")
        assert not (path / "owned").exists()
        assert k.top().workers[0].restarts == 0


def test_a_hostile_template_stops_nobody_else(rig: DaemonRig, k: Client) -> None:
    def never_ends(path: Path) -> None:
        (path / "tokenizer_config.json").write_text(
            json.dumps({"chat_template": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"})
        )

    k.load(disguised(rig, "endless", never_ends), name="endless")
    chat, other = k.alloc("endless"), k.alloc("toy")
    refused: list[str] = []
    hostile = threading.Thread(
        target=lambda: refused.append(code_of(lambda: chat.infer(messages=[{"role": "user", "content": "x"}], max_tokens=4).result()))
    )
    hostile.start()
    served = 0
    while hostile.is_alive():
        other.infer(tokens=[5], max_tokens=4, ignore_eos=True).result()
        other.truncate(0)
        served += 1
    assert refused == ["INVALID_ARGUMENT"]
    assert served > 20
    assert chat.stat().num_tokens == 0


# ------------------------------------------------------------------------------------------------------------------ hostile numbers

EXTREMES = (0, 1, -1, 2**31 - 1, -(2**31), 2**32 - 1, 2**63 - 1, 2**64 - 1, 17)
FLOATS = (0.0, -0.0, math.nan, math.inf, -math.inf, 5e-324, 1.7e308, -1.0, 1e-9)
TEXTS = ("", "toy", "lab/ann", "../../etc", "\x00", "\ud7ff\uffff", "a" * 70_000, "principal:x", "[" * 500, "{{7*7}}")
RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}


def scalars(field: Any, handles: list[str]) -> st.SearchStrategy[Any]:
    """Values for one field: extremes, and now and then something sensible."""
    kind = field.cpp_type
    if kind in RANGES:
        low, high = RANGES[kind]
        return st.sampled_from([number for number in EXTREMES if low <= number <= high])
    if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return st.sampled_from(FLOATS)
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return st.sampled_from((0, 1, 2, 3, 99))
    return st.sampled_from((*handles, *handles, *TEXTS)) if field.type == FieldDescriptor.TYPE_STRING else st.binary(max_size=8)


@st.composite
def messages(draw: st.DrawFn, kind: type[Message], handles: list[str], depth: int = 0) -> Message:
    """A message of hostile values, well-formed on the wire."""
    message: Any = kind()
    for field in kind.DESCRIPTOR.fields:
        if field.containing_oneof is not None and message.WhichOneof(field.containing_oneof.name):
            continue
        if field.name == "request_id" or not draw(st.booleans()):
            continue
        fill(draw, message, field, handles, depth)
    return message  # type: ignore[no-any-return]


def fill(draw: st.DrawFn, message: Any, field: Any, handles: list[str], depth: int) -> None:
    """Give one field a value."""
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        key = st.sampled_from((*TEXTS[:6], "max_running", "loads_per_hour"))
        value = scalars(field.message_type.fields_by_name["value"], handles)
        getattr(message, field.name).update(draw(st.dictionaries(key, value, max_size=3)))
    elif field.message_type is not None:
        kind = getattr(pb, field.message_type.name)
        part = draw(messages(kind, handles, depth + 1)) if depth < 3 else kind()
        getattr(message, field.name).extend([part]) if field.is_repeated else getattr(message, field.name).CopyFrom(part)
    elif field.is_repeated:
        getattr(message, field.name).extend(draw(st.lists(scalars(field, handles), max_size=3)))
    else:
        setattr(message, field.name, draw(scalars(field, handles)))


FUZZED = [path for path, row in TABLE.items() if row.verb not in ("Drain", "RemoveTenant", "RemoveModel", "UnloadModel")]
HARMLESS = {grpc.StatusCode.OK, grpc.StatusCode.DEADLINE_EXCEEDED}
ALLOWED = (
    HARMLESS
    | {
        grpc.StatusCode[name]
        for name in ("INVALID_ARGUMENT", "OUT_OF_RANGE", "NOT_FOUND", "ALREADY_EXISTS", "FAILED_PRECONDITION", "RESOURCE_EXHAUSTED")
    }
    | {grpc.StatusCode[name] for name in ("PERMISSION_DENIED", "ABORTED", "UNIMPLEMENTED", "CANCELLED", "DATA_LOSS")}
)


def test_no_field_of_any_request_can_hurt_the_daemon(rig: DaemonRig, k: Client, channel: grpc.Channel) -> None:
    context = k.alloc("toy")
    context.infer(tokens=[5, 6, 7], max_tokens=20, temperature=0, ignore_eos=True).result()
    handles = [context.id, context.checkpoint().id, "toy", "lab/ann", str(rig.folder / "toy")]
    other = k.alloc("toy")
    stream = other.infer(tokens=[9] * 8, max_tokens=500, temperature=0, ignore_eos=True)
    token = k.add_token("lab/ann", name="fuzz", roles=["admin"]).token
    worker = rig.worker_pid(k)
    codes: Counter[grpc.StatusCode] = Counter()

    @settings(max_examples=1000, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def fuzz(data: st.DataObject) -> None:
        path = data.draw(st.sampled_from(FUZZED))
        request = data.draw(messages(TABLE[path].request, handles))
        code = call(channel, path, request.SerializeToString(), token, timeout_s=1.0)
        codes[code] += 1
        assert code in ALLOWED, (path, request)

    fuzz()
    assert codes[grpc.StatusCode.OK] > 100
    assert len(stream.result().tokens) == 500
    assert rig.worker_pid(k) == worker
    assert "a system call failed" not in rig.log_text()


@pytest.mark.parametrize("path", TABLE)
def test_bytes_that_are_no_message_are_an_invalid_argument(k: Client, channel: grpc.Channel, path: str) -> None:
    token = k.add_token("lab/ann", roles=["admin"]).token
    assert call(channel, path, b"\xff" * 40, token) is grpc.StatusCode.INVALID_ARGUMENT


def test_a_message_over_the_limit_is_refused(k: Client, channel: grpc.Channel) -> None:
    token = k.add_token("lab/ann").token
    context = k.alloc("toy")
    for size, codes in ((5 << 20, {grpc.StatusCode.OUT_OF_RANGE}), (20 << 20, {grpc.StatusCode.RESOURCE_EXHAUSTED})):
        request = pb.InferRequest(context_id=context.id, text="x" * size)
        assert call(channel, "/kerneld.v1.Inference/Infer", request.SerializeToString(), token) in codes


# ----------------------------------------------------------------------------------------------------------------------- hostile pace


def test_ten_thousand_streams_opened_and_reset_leave_the_daemon_as_it_was(rig: DaemonRig, k: Client, channel: grpc.Channel) -> None:
    token = k.add_token("admin", name="root", roles=["admin"]).token
    context = k.alloc("toy")
    daemon = psutil.Process(rig.pid)
    before = daemon.memory_info().rss
    attach = channel.unary_stream("/kerneld.v1.Inference/Attach", request_serializer=bytes, response_deserializer=bytes)
    request = pb.AttachRequest(context_id=context.id).SerializeToString()
    metadata = (("authorization", f"Bearer {token}"),)
    served = 0
    for idx in range(10_000):
        reading: Any = attach(request, metadata=metadata)
        if idx % 10 == 0:
            next(reading)  # it came through
        reading.cancel()
        if idx % 1000 == 0:
            assert len(context.infer(tokens=[5], max_tokens=3, ignore_eos=True).result().tokens) == 3
            served += 1
    assert served == 10
    assert "a system call failed" not in rig.log_text()
    until(lambda: daemon.memory_info().rss - before < 150 << 20)


def test_requests_opened_and_abandoned_are_cancelled_and_forgotten(rig: DaemonRig, k: Client) -> None:
    with rig.connect(token=k.add_token("lab/ann").token) as ann:
        contexts = [ann.alloc("toy") for _ in range(20)]
        for context in contexts:
            for _ in range(5):
                context.infer(tokens=[5], max_tokens=900, ignore_eos=True, detach_grace_s=0).close()
        until(lambda: all(context.stat().state == "idle" for context in contexts))
        assert next(tenant for tenant in k.tenants() if tenant.path == "lab/ann").num_queued == 0
        for context in contexts:
            context.free()


def test_slow_and_silent_connections_keep_nobody_out(rig: DaemonRig) -> None:
    held = []
    for path in (f"{rig.socket}.login", str(rig.socket)):
        for _ in range(100):
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(path)
            held.append(connection)
    begun = time.monotonic()
    with rig.connect() as k:
        assert k.whoami().roles
    assert time.monotonic() - begun < 20
    for connection in held:
        connection.close()
