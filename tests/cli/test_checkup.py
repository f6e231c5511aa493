"""kernelctl doctor."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from cli.checkup import check_address, check_socket, check_way
from cli.findings import Level
from cli.target import Target, TlsFiles
from kerneld_client import errors
from tests.cli.fake_client import DEVICE, FRAME, WORKER, Kernelctl


def listen(path: Path) -> socket.socket:
    """Something that listens there."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    return listener


def levels(kernelctl: Kernelctl, path: Path) -> dict[str, str]:
    """What doctor finds, by name."""
    findings = json.loads(kernelctl("--socket", str(path), "doctor", "-o", "json").stdout)
    return {finding["name"]: finding["level"] for finding in findings}


def test_without_a_daemon_it_says_so_and_does_not_log_in(kernelctl: Kernelctl, tmp_path: Path) -> None:
    found = levels(kernelctl, tmp_path / "k.sock")

    assert (found["socket"], found["login"]) == ("fail", "fail")
    assert kernelctl.client.asked == []
    assert kernelctl("--socket", str(tmp_path / "k.sock"), "doctor").exit_code == 1


def test_with_a_daemon_it_logs_in_and_looks_at_workers(kernelctl: Kernelctl, tmp_path: Path) -> None:
    with listen(tmp_path / "k.sock"), listen(tmp_path / "k.sock.login"):
        found = levels(kernelctl, tmp_path / "k.sock")

    assert (found["socket"], found["login"], found["principal"], found["workers"]) == ("ok", "ok", "ok", "ok")


def test_a_login_that_is_refused_fails(kernelctl: Kernelctl, tmp_path: Path) -> None:
    kernelctl.client.error = errors.Unauthenticated("The token is not known.")
    with listen(tmp_path / "k.sock"), listen(tmp_path / "k.sock.login"):
        findings = json.loads(kernelctl("--socket", str(tmp_path / "k.sock"), "doctor", "-o", "json").stdout)

    assert (findings[-1]["name"], findings[-1]["level"], findings[-1]["detail"]) == ("login", "fail", "The token is not known.")


def test_a_socket_that_nobody_reads_fails(tmp_path: Path) -> None:
    listen(tmp_path / "k.sock").close()

    assert check_socket("socket", tmp_path / "k.sock").advice.startswith("The daemon is not running")


@pytest.mark.parametrize("address", ["nowhere", "host:port", ":1"])
def test_an_address_that_is_none_fails(address: str) -> None:
    assert check_address(address).level is Level.FAIL


def test_a_token_file_is_needed_and_should_be_private(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("secret")
    with socket.create_server(("127.0.0.1", 0)) as server:
        tcp = f"127.0.0.1:{server.getsockname()[1]}"
        file.chmod(0o644)
        assert [found.level for found in check_way(Target(tcp=tcp))] == [Level.OK, Level.FAIL]
        assert [found.level for found in check_way(Target(tcp=tcp, token_file=file))] == [Level.OK, Level.WARN]
        file.chmod(0o600)
        assert [found.level for found in check_way(Target(tcp=tcp, token_file=file))] == [Level.OK, Level.OK]
        assert [found.name for found in check_way(Target(tcp=tcp, tls=TlsFiles(cert=file, key=file)))] == ["address", "certificate"]


def test_a_worker_that_does_not_run_is_told_with_what_keeps_it(kernelctl: Kernelctl, tmp_path: Path) -> None:
    kernelctl.client.frame = replace(FRAME, workers=(replace(WORKER, state="backoff"),))
    kernelctl.client.shown_device = replace(DEVICE, state="backoff", problem="The driver cannot run on this machine.")
    with listen(tmp_path / "k.sock"), listen(tmp_path / "k.sock.login"):
        findings = json.loads(kernelctl("--socket", str(tmp_path / "k.sock"), "doctor", "-o", "json").stdout)

    [workers] = [finding for finding in findings if finding["name"] == "workers"]
    assert workers["level"] == "warn"
    assert workers["detail"].endswith("backoff; cpu0: The driver cannot run on this machine.")
