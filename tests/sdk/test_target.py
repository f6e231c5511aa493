"""Where the daemon is."""

from __future__ import annotations

from pathlib import Path

import pytest

from kerneld_client.errors import InvalidArgument
from kerneld_client.target import SYSTEM_SOCKET, Tls, default_socket, resolve


def test_a_path_is_a_unix_socket_with_its_login_beside_it() -> None:
    target = resolve("/run/x/k.sock")
    assert (target.address, target.login_path, target.is_local) == ("unix:/run/x/k.sock", "/run/x/k.sock.login", True)


def test_a_relative_path_is_made_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve("k.sock").address == f"unix:{tmp_path}/k.sock"
    assert resolve(Path("k.sock")).address == f"unix:{tmp_path}/k.sock"


@pytest.mark.parametrize("address", ["127.0.0.1:7000", "localhost:7000", "[::1]:7000", "127.8.8.8:1"])
def test_loopback_needs_a_token_and_no_tls(address: str) -> None:
    target = resolve(address, token="t")
    assert (target.address, target.token, target.credentials, target.is_local) == (address, "t", None, False)
    with pytest.raises(InvalidArgument, match="token: is required"):
        resolve(address)


@pytest.mark.parametrize("address", ["192.0.2.1:7000", "example.org:443", "[2001:db8::1]:443", "0.0.0.0:1", "localhost.example.org:1"])
def test_anything_else_needs_tls(address: str) -> None:
    with pytest.raises(InvalidArgument, match="tls: is required"):
        resolve(address, token="t")
    assert resolve(address, token="t", tls=True).credentials is not None


def test_a_token_is_read_from_a_file_without_its_newline(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    assert resolve("localhost:1", token_file=tmp_path / "token").token == "secret"
    with pytest.raises(InvalidArgument, match="not both"):
        resolve("localhost:1", token="t", token_file=tmp_path / "token")
    with pytest.raises(InvalidArgument, match="cannot be read"):
        resolve("localhost:1", token_file=tmp_path / "none")


def test_tls_on_a_unix_socket_is_a_mistake() -> None:
    with pytest.raises(InvalidArgument, match="a unix socket needs none"):
        resolve("/run/k.sock", tls=True)


def test_a_certificate_may_stand_for_a_token(tmp_path: Path) -> None:
    for name in ("ca", "cert", "key"):
        (tmp_path / name).write_text("pem")
    tls = Tls(tmp_path / "ca", tmp_path / "cert", tmp_path / "key")
    assert resolve("example.org:443", tls=tls).token == ""
    with pytest.raises(InvalidArgument, match="token: is required"):
        resolve("example.org:443", tls=tmp_path / "ca")


def test_the_default_is_the_environments_then_the_first_that_is_there(tmp_path: Path) -> None:
    assert default_socket({"KERNELD_SOCKET": "/x/k.sock", "HOME": "/h"}) == "/x/k.sock"
    own = tmp_path / "kerneld" / "kerneld.sock"
    assert default_socket({"XDG_RUNTIME_DIR": str(tmp_path), "HOME": "/h"}) == SYSTEM_SOCKET
    own.parent.mkdir()
    own.write_text("")
    assert default_socket({"XDG_RUNTIME_DIR": str(tmp_path), "HOME": "/h"}) == str(own)


def test_a_token_in_plain_never_goes_through_a_proxy() -> None:
    assert ("grpc.enable_http_proxy", 0) in resolve("localhost:1", token="t").channel_options()
    assert ("grpc.enable_http_proxy", 0) in resolve("/run/k.sock").channel_options()
    assert ("grpc.enable_http_proxy", 1) in resolve("example.org:1", token="t", tls=True).channel_options()
