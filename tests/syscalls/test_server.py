"""The server: sockets, TLS, health, graceful stop."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

import kerneld_client
from kerneld.config import SyscallsConfig
from kerneld_client.pb import syscalls_pb2 as pb
from kerneld_client.target import CHANNEL_OPTIONS
from syscalls.server import server_options
from syscalls.sockets import ListenError
from tests.syscalls.fake_kernel import FakeKernel
from tests.syscalls.rig import Rig, ask

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[[SyscallsConfig], Rig]]:
    """Make rigs, not started; they are closed at the end."""
    rigs: list[Rig] = []

    def make_rig(config: SyscallsConfig) -> Rig:
        rigs.append(Rig(config, FakeKernel()))
        return rigs[-1]

    yield make_rig
    for rig in rigs:
        rig.close()


def openssl(folder: Path, *arguments: str) -> None:
    """Run openssl in a folder."""
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA, a server certificate for localhost, and a client certificate for "robot", all of it."""
    folder = tmp_path_factory.mktemp("certificates")
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    openssl(folder, "req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test ca")
    signed = ["-CA", "ca.pem", "-CAkey", "ca.key"]
    san = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    openssl(folder, "req", "-x509", *key, *signed, "-keyout", "server.key", "-out", "server.pem", "-subj", "/CN=localhost", "-addext", san)
    openssl(folder, "req", "-x509", *key, *signed, "-keyout", "client.key", "-out", "client.pem", "-subj", "/CN=robot")
    return folder


def test_every_setting_of_the_transport_is_one_that_grpc_knows() -> None:
    # It takes what it does not know without a word; streams that waited for two minutes were cut for that.
    library = next(Path(grpc.__file__).parent.glob("_cython/cygrpc*.so")).read_bytes()
    names = {name for name, _ in (*server_options(1 << 20), *CHANNEL_OPTIONS)}
    assert {name for name in names if name.encode() not in library} == set()


def over_tls(config: SyscallsConfig, folder: Path, *, with_client_ca: bool = False) -> SyscallsConfig:
    """The configuration with TLS on a free port."""
    client_ca = folder / "ca.pem" if with_client_ca else None
    return replace(config, tcp="127.0.0.1:0", tls_cert=folder / "server.pem", tls_key=folder / "server.key", tls_client_ca=client_ca)


@pytest.fixture
def config(tmp_path: Path) -> SyscallsConfig:
    """A socket in a temporary folder."""
    return SyscallsConfig(socket=tmp_path / "k.sock")


# ------------------------------------------------------------------------------------------------------------------------ sockets


def test_a_stopped_server_leaves_no_socket(config: SyscallsConfig, make: Callable[[SyscallsConfig], Rig]) -> None:
    rig = make(config).start()
    assert {path.name for path in config.socket.parent.iterdir()} == {"k.sock", "k.sock.login"}
    rig.stop()
    assert list(config.socket.parent.iterdir()) == []


def test_a_second_server_is_refused_and_the_first_goes_on(config: SyscallsConfig, make: Callable[[SyscallsConfig], Rig]) -> None:
    make(config).start()
    with pytest.raises(ListenError, match="Another daemon listens"):
        make(config).start()
    with kerneld_client.connect(config.socket) as client:
        assert client.whoami().via == "peer"


def test_the_sockets_of_a_dead_daemon_are_replaced(config: SyscallsConfig, make: Callable[[SyscallsConfig], Rig]) -> None:
    script = "import socket, sys\nfor p in sys.argv[1:]: s = socket.socket(socket.AF_UNIX); s.bind(p); s.listen()"
    subprocess.run(["python3", "-c", script, str(config.socket), f"{config.socket}.login"], check=True)
    make(config).start()
    with kerneld_client.connect(config.socket) as client:
        assert client.is_serving()


def test_a_server_that_cannot_start_leaves_nothing(config: SyscallsConfig, make: Callable[[SyscallsConfig], Rig]) -> None:
    with pytest.raises(ListenError, match="tls_cert"):
        make(replace(config, tcp="0.0.0.0:0")).start()
    assert list(config.socket.parent.iterdir()) == []


# ---------------------------------------------------------------------------------------------------------------------------- TCP


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "192.0.2.1:7000", "example.org:7000"])
def test_tcp_beyond_loopback_without_tls_does_not_start(
    config: SyscallsConfig, make: Callable[[SyscallsConfig], Rig], address: str
) -> None:
    with pytest.raises(ListenError, match=r"set syscalls\.tls_cert"):
        make(replace(config, tcp=address)).start()


def test_tcp_on_loopback_takes_an_api_token(config: SyscallsConfig, make: Callable[[SyscallsConfig], Rig]) -> None:
    rig = make(replace(config, tcp="127.0.0.1:0")).start()
    assert rig.server is not None
    with kerneld_client.connect(f"127.0.0.1:{rig.server.tcp_port}", token="user") as client:
        assert (client.whoami().name, client.whoami().via) == ("user", "token")


def test_reflection_over_tcp_needs_a_token_and_health_does_not(config: SyscallsConfig, make: Callable[[SyscallsConfig], Rig]) -> None:
    rig = make(replace(config, tcp="127.0.0.1:0")).start()
    assert rig.server is not None
    with grpc.insecure_channel(f"127.0.0.1:{rig.server.tcp_port}") as channel:
        assert health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5).status == SERVING
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            list(stub.ServerReflectionInfo(iter([request]), timeout=5))
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        known = stub.ServerReflectionInfo(iter([request]), metadata=(("authorization", "Bearer viewer"),), timeout=5)
        assert next(known).list_services_response.service


def test_a_port_that_is_taken_is_told(config: SyscallsConfig, make: Callable[[SyscallsConfig], Rig], tmp_path: Path) -> None:
    first = make(replace(config, tcp="127.0.0.1:0")).start()
    assert first.server is not None
    other = SyscallsConfig(socket=tmp_path / "other.sock", tcp=f"127.0.0.1:{first.server.tcp_port}")
    with pytest.raises(ListenError, match="Cannot listen on 127"):
        make(other).start()
    assert not (tmp_path / "other.sock").exists()


def test_tls_serves_who_trusts_its_authority(config: SyscallsConfig, make: Callable[[SyscallsConfig], Rig], certificates: Path) -> None:
    rig = make(over_tls(config, certificates)).start()
    assert rig.server is not None
    target = f"localhost:{rig.server.tcp_port}"
    with kerneld_client.connect(target, token="user", tls=certificates / "ca.pem") as client:
        assert client.whoami().name == "user"
    with pytest.raises(kerneld_client.errors.Unavailable):
        kerneld_client.connect(target, token="user", tls=True, timeout_s=5)


def test_a_client_certificate_is_an_identity(config: SyscallsConfig, make: Callable[[SyscallsConfig], Rig], certificates: Path) -> None:
    rig = make(over_tls(config, certificates, with_client_ca=True)).start()
    assert rig.server is not None
    target = f"localhost:{rig.server.tcp_port}"
    robot = kerneld_client.Tls(certificates / "ca.pem", certificates / "client.pem", certificates / "client.key")
    with kerneld_client.connect(target, tls=robot) as client:
        assert (client.whoami().name, client.whoami().via) == ("robot", "tls")
    with kerneld_client.connect(target, token="admin", tls=robot) as client:
        assert client.whoami().name == "admin"
    with pytest.raises(kerneld_client.errors.Unavailable):
        kerneld_client.connect(target, token="user", tls=certificates / "ca.pem", timeout_s=5)


def test_a_certificate_that_cannot_be_read_is_named(config: SyscallsConfig, make: Callable[[SyscallsConfig], Rig], tmp_path: Path) -> None:
    missing = replace(config, tcp="127.0.0.1:0", tls_cert=tmp_path / "no.pem", tls_key=tmp_path / "no.key")
    with pytest.raises(ListenError, match=r"syscalls\.tls_key: cannot read"):
        make(missing).start()


# ------------------------------------------------------------------------------------------------------------------- health and stop


def test_health_follows_the_kernel_for_each_service(rig: Rig, channel: grpc.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    watched = stub.Watch(health_pb2.HealthCheckRequest(service="kerneld.v1.Inference"), timeout=10)
    assert next(watched).status == SERVING
    rig.kernel.ready = False
    assert rig.server is not None
    rig.run(rig.server.follow_readiness)
    assert next(watched).status == NOT_SERVING
    assert stub.Check(health_pb2.HealthCheckRequest(), timeout=5).status == NOT_SERVING


def test_a_call_that_runs_ends_within_the_grace_of_a_stop(rig: Rig, channel: grpc.Channel) -> None:
    rig.kernel.token_interval_s = 0.01
    made = ask(channel, "AllocContext", pb.AllocContextRequest(model="demo"))
    answers: list[pb.InferEvent] = []
    request = pb.InferRequest(context_id=made.id, max_tokens=20)
    reader = threading.Thread(target=lambda: answers.extend(ask(channel, "Infer", request)))
    reader.start()
    while rig.kernel.num_streams == 0:
        pass
    rig.stop(grace_s=10)
    reader.join(10)
    assert answers[-1].finished.usage.output_tokens == 20


def test_a_stop_without_grace_ends_streams_at_once(rig: Rig, channel: grpc.Channel) -> None:
    rig.kernel.token_interval_s = 3600
    with kerneld_client.connect(rig.path, reconnect_s=0) as client:
        stream = client.alloc("demo").infer("hi")
        next(stream)
        rig.stop(grace_s=0)
        with pytest.raises(kerneld_client.errors.KerneldError):
            stream.result()
    assert rig.kernel.num_streams == 0
