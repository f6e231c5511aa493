"""Where the daemon is, and how to reach it.

connect()                     $KERNELD_SOCKET, else the first of /run/kerneld/kerneld.sock, $XDG_RUNTIME_DIR/kerneld/kerneld.sock and
                              ~/.local/state/kerneld/run/kerneld.sock that is there
connect("/path/to.sock")      a unix socket: logs in with the caller's uid
connect("host:port", ...)     TCP: with an API token, a client certificate, or both; without TLS on loopback only
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc

from kerneld_client.errors import InvalidArgument

SYSTEM_SOCKET = "/run/kerneld/kerneld.sock"
TCP = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^/\[\]:]+):(\d{1,5})")

CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # A daemon that restarts is back within a second or two; gRPC's own back-off would grow to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Each client has a connection of its own, so that one that closes or fails is nobody else's.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),  # a stream that waits in a queue is silent for minutes
    # Retries are this library's, which knows what may be repeated.
    ("grpc.enable_retries", 0),
)


@dataclass(frozen=True, slots=True)
class Tls:
    """How to trust a server over TCP, and how to be known to it. Without `ca_file` the machine's own authorities are trusted."""

    ca_file: str | os.PathLike[str] | None = None
    cert_file: str | os.PathLike[str] | None = None
    key_file: str | os.PathLike[str] | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """What gRPC needs. Raises: InvalidArgument, if a file cannot be read."""
        return grpc.ssl_channel_credentials(_read(self.ca_file), _read(self.key_file), _read(self.cert_file))


@dataclass(frozen=True, slots=True)
class Target:
    """A daemon's address. `login_path` is empty for TCP; `token` is empty where a login or a certificate says who we are."""

    address: str
    login_path: str = ""
    token: str = ""
    credentials: grpc.ChannelCredentials | None = None

    @property
    def is_local(self) -> bool:
        """Whether it is a unix socket, so that paths mean the same here and there."""
        return self.address.startswith("unix:")

    def channel_options(self) -> list[tuple[str, int]]:
        """Settings of the transport. What is not encrypted never goes through a proxy, whatever the environment says."""
        return [*CHANNEL_OPTIONS, ("grpc.enable_http_proxy", int(self.credentials is not None))]


def default_socket(environment: Mapping[str, str] = os.environ) -> str:
    """The socket that is meant when none is named."""
    if environment.get("KERNELD_SOCKET"):
        return environment["KERNELD_SOCKET"]
    places = [SYSTEM_SOCKET]
    if environment.get("XDG_RUNTIME_DIR"):
        places.append(f"{environment['XDG_RUNTIME_DIR']}/kerneld/kerneld.sock")
    state = environment.get("XDG_STATE_HOME") or f"{environment.get('HOME', '')}/.local/state"
    places.append(f"{state}/kerneld/run/kerneld.sock")
    return next((place for place in places if os.path.exists(place)), SYSTEM_SOCKET)


def resolve(
    target: str | os.PathLike[str] | None,
    token: str | None = None,
    token_file: str | os.PathLike[str] | None = None,
    tls: Tls | str | os.PathLike[str] | bool | None = None,
) -> Target:
    """What `connect` was given, checked. `tls` may be True, the path of a CA file, or a `Tls`. Raises: InvalidArgument."""
    place = os.fspath(target) if target is not None else default_socket()
    match = TCP.fullmatch(place)
    if match is None:
        path = os.path.abspath(place.removeprefix("unix:"))
        if tls:
            raise InvalidArgument.of("tls", "is for host:port; a unix socket needs none.")
        # A token may be used on the local socket too; then there is no need to log in.
        secret = _secret(token, token_file)
        return Target(f"unix:{path}", "" if secret else f"{path}.login", secret)
    trust = _tls(tls)
    if trust is None and not _is_loopback(match[1]):
        raise InvalidArgument.of("tls", f"is required for {place}: without it the token could be read on the way.")
    secret = _secret(token, token_file)
    if not secret and (trust is None or trust.cert_file is None):
        raise InvalidArgument.of("token", f"is required for {place}: an API token, as `kernelctl token add` gives it.")
    return Target(place, token=secret, credentials=trust.credentials() if trust is not None else None)


def _tls(tls: Tls | str | os.PathLike[str] | bool | None) -> Tls | None:
    if not tls:
        return None
    if isinstance(tls, Tls):
        return tls
    return Tls() if isinstance(tls, bool) else Tls(ca_file=tls)


def _secret(token: str | None, token_file: str | os.PathLike[str] | None) -> str:
    if token and token_file:
        raise InvalidArgument.of("token", "give token or token_file, not both.")
    return token or (_read(token_file) or b"").decode("utf-8", "replace").strip()


def _read(path: str | os.PathLike[str] | None) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidArgument.of(os.fspath(path), f"cannot be read: {error.strerror}.") from error


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
