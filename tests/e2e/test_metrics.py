"""What a monitor sees: /metrics, /healthz, /readyz, and gRPC health."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from kerneld_client import Client
from tests.e2e.rig import FAKE, DaemonRig, fake_model, free_port, until

VLLM_NAMES = (
    "num_requests_running",
    "num_requests_waiting",
    "kv_cache_usage_perc",
    "prompt_tokens_total",
    "generation_tokens_total",
    "request_success_total",
    "time_to_first_token_seconds_bucket",
    "inter_token_latency_seconds_bucket",
    "e2e_request_latency_seconds_bucket",
    "request_queue_time_seconds_bucket",
)

FAIRNESS = (
    'service_total{tenant="admin"}',
    'service_total{tenant="other"}',
    "lag{",
    "jain_index ",
    'share_factor{tenant="admin"}',
    'tenant_queue_time_seconds_bucket{le="0.01",tenant="admin"}',
    'tenant_time_to_first_token_seconds_count{tenant="admin"}',
    'deadline_misses_total{tenant="admin"}',
    "num_requests_deferred ",
    "start_estimate_error_ratio ",
    'system_seconds_total{cause="load"}',
    'tariff_nanoseconds{model="toy",token="output"}',
)


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonRig]:
    """A daemon with a metrics port, which is its `address`."""
    address = f"127.0.0.1:{free_port()}"
    own = DaemonRig(tmp_path_factory.mktemp("metrics"), *FAKE, f"syscalls.metrics={address}")
    own.address = address
    own.start()
    with own.connect() as k:
        k.load(fake_model(own.folder), name="toy")
    yield own
    own.clean_up()


@pytest.fixture
def k(rig: DaemonRig) -> Iterator[Client]:
    """An administrator."""
    with rig.connect() as client:
        yield client


def get(rig: DaemonRig, path: str) -> tuple[int, str]:
    """Status and body of a page."""
    try:
        with urllib.request.urlopen(f"http://{rig.address}{path}", timeout=5) as page:
            return page.status, page.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def value(rig: DaemonRig, name: str) -> float:
    """The sum of a metric's series."""
    return sum(float(found) for found in re.findall(rf"^kerneld_{name}(?:{{[^}}]*}})? (\S+)$", get(rig, "/metrics")[1], re.MULTILINE))


def test_every_vllm_name_is_there_behind_our_prefix(rig: DaemonRig, k: Client) -> None:
    k.alloc("toy").infer(tokens=[5], max_tokens=4, ignore_eos=True).result()
    page = get(rig, "/metrics")[1]
    assert [name for name in VLLM_NAMES if f"kerneld_{name}" not in page] == []


def test_counters_move_by_what_was_served(rig: DaemonRig, k: Client) -> None:
    names = ("prompt_tokens_total", "generation_tokens_total", "request_success_total", "time_to_first_token_seconds_count")
    before = [value(rig, name) for name in names]
    k.alloc("toy").infer(tokens=[5] * 10, max_tokens=25, ignore_eos=True).result()
    assert [value(rig, name) - old for name, old in zip(names, before, strict=True)] == [10, 25, 1, 1]


def test_fairness_is_on_the_page(rig: DaemonRig, k: Client) -> None:
    k.alloc("toy").infer(tokens=[5] * 10, max_tokens=25, ignore_eos=True).result()

    page = get(rig, "/metrics")[1]

    assert [name for name in FAIRNESS if f"\nkerneld_{name}" not in page] == []
    assert value(rig, "service_total") > 0
    assert value(rig, "jain_index") == 1
    assert value(rig, "tenant_queue_time_seconds_count") == value(rig, "request_queue_time_seconds_count")
    assert value(rig, "step_token_budget") > 0


def test_no_label_names_a_context_or_a_token(rig: DaemonRig, k: Client) -> None:
    context = k.alloc("toy")
    context.infer(tokens=[4321 % 4096], max_tokens=4, ignore_eos=True).result()
    assert context.id not in get(rig, "/metrics")[1]


def test_readiness_follows_the_worker(rig: DaemonRig, k: Client) -> None:
    until(lambda: get(rig, "/readyz")[0] == 200 and k.is_serving())
    new = rig.next_worker(rig.signal_worker(k, signal.SIGKILL))
    os.kill(new, signal.SIGSTOP)  # it starts slowly
    begun = time.monotonic()
    until(lambda: get(rig, "/readyz")[0] == 503 and not k.is_serving(), timeout_s=5.0)
    assert time.monotonic() - begun < 5.0
    assert "worker" in get(rig, "/readyz")[1]
    assert get(rig, "/healthz")[0] == 200
    os.kill(new, signal.SIGCONT)
    until(lambda: get(rig, "/readyz")[0] == 200 and k.is_serving())


@pytest.mark.parametrize(
    ("request_text", "status"),
    [(b"POST /metrics HTTP/1.1\r\n\r\n", b"405"), (b"GET /etc/passwd HTTP/1.1\r\n\r\n", b"404"), (b"\xff\xfe\r\n\r\n", b"400")],
)
def test_what_is_no_question_is_refused(rig: DaemonRig, request_text: bytes, status: bytes) -> None:
    host, _, port = rig.address.partition(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(request_text)
        assert connection.recv(100).split()[1] == status
