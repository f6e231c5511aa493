"""From a credential to the principal behind it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from kerneld.calls import Limits, ListArgs, Principal, Role
from kerneld.errors import AlreadyExists, InvalidArgument, NotFound, PermissionDenied, Unauthenticated
from kerneld.security.identity import MAX_LOGINS_PER_UID, Authenticator, Clocks, TokenArgs
from kerneld.security.keys import new_secret
from kerneld.security.principals import LocalUsers
from kerneld.state.database import sqlite_url
from kerneld.state.store import Store
from kerneld.state.tables import TenantRow

ADMIN = Principal("root", "admin", frozenset({Role.ADMIN}))
OPERATOR = Principal("oscar", "lab", frozenset({Role.OPERATOR}))
DAEMON_UID = 990
USERS = {"uid:1001": "lab/ben", "group:ml": "lab/ml", "group:bio": "lab/bio", "cert:gateway": "lab/gateway", "cert:ann": "lab/ann"}


class FakeAccounts:
    """A user database of a few lines."""

    users: Mapping[int, str] = {0: "root", DAEMON_UID: "kerneld", 1000: "ann", 1001: "ben", 1002: "cid", 1003: "DOMAIN\\dan", 1004: "ann"}
    groups: Mapping[int, str] = {50: "ml", 51: "bio"}

    def user_name(self, uid: int) -> str | None:
        return self.users.get(uid)

    def group_name(self, gid: int) -> str | None:
        return self.groups.get(gid)


@dataclass
class Time:
    """Two clocks that a test sets."""

    now: float = 1000.0
    monotonic: float = 50.0

    def clocks(self) -> Clocks:
        return Clocks(lambda: self.now, lambda: self.monotonic)


@dataclass
class Stage:
    """An authenticator on a store, and the clocks that it reads."""

    store: Store
    identity: Authenticator
    time: Time
    seen: list[str] = field(default_factory=list)


def run(path: Path, scenario: Callable[[Stage], Coroutine[Any, Any, Any]]) -> Any:
    """Run a scenario on the store in `path`; a second run there is a restart of the daemon."""

    async def body() -> Any:
        store = Store.open(sqlite_url(path / "kerneld.db"))
        time = Time()
        identity = Authenticator(store, LocalUsers(DAEMON_UID, USERS, FakeAccounts()), time.clocks())
        await identity.load()
        stage = Stage(store, identity, time)
        identity.on_tenant_seen = lambda tenant: stage.seen.append(tenant.path)
        try:
            return await scenario(stage)
        finally:
            await identity.close()
            await store.close()

    return asyncio.run(body())


async def add_tenant(stage: Stage, path: str) -> None:
    await stage.store.add_tenant(TenantRow(path, 1, Limits(), 0.0, new_secret()))


# --------------------------------------------------------------------------------------------------------------------------------- logins


@pytest.mark.parametrize(
    ("uid", "gids", "name", "tenant", "role"),
    [
        (0, (0,), "root", "admin", Role.ADMIN),
        (0, (50,), "root", "admin", Role.ADMIN),
        (DAEMON_UID, (990,), "kerneld", "admin", Role.ADMIN),
        (1000, (1000,), "ann", "local/ann", Role.USER),
        (1001, (50, 51), "ben", "lab/ben", Role.USER),
        (1002, (50,), "cid", "lab/ml/cid", Role.USER),
        (1002, (7, 51, 50), "cid", "lab/ml/cid", Role.USER),
        (1003, (7,), "uid-1003", "local/uid-1003", Role.USER),
    ],
)
def test_who_a_local_user_is(tmp_path: Path, uid: int, gids: tuple[int, ...], name: str, tenant: str, role: Role) -> None:
    async def scenario(stage: Stage) -> None:
        token = stage.identity.login(uid, gids[0], gids[1:])
        assert token.principal == Principal(name, tenant, frozenset({role}), via="peer")
        assert stage.identity.authenticate(token.secret) == token.principal
        assert token.expires_at == 1000.0 + 3600.0

    run(tmp_path, scenario)


def test_an_unknown_uid_is_nobody(tmp_path: Path) -> None:
    async def scenario(stage: Stage) -> None:
        with pytest.raises(Unauthenticated, match="uid 4242"):
            stage.identity.login(4242, 0, ())

    run(tmp_path, scenario)


def test_a_first_login_makes_the_user_and_its_tenants_for_good(tmp_path: Path) -> None:
    async def first(stage: Stage) -> None:
        stage.identity.login(1000, 1000, ())
        stage.identity.login(1000, 1000, ())
        assert stage.seen == ["local", "local/ann"]

    async def second(stage: Stage) -> None:
        stage.identity.login(1000, 1000, ())
        assert stage.seen == []
        assert [tenant.path for tenant in await stage.store.load_tenants()] == ["local", "local/ann"]
        assert [principal.name for principal in await stage.store.load_principals()] == ["ann"]

    run(tmp_path, first)
    run(tmp_path, second)


def test_a_login_ends_with_its_lifetime_however_the_wall_clock_is_set(tmp_path: Path) -> None:
    async def scenario(stage: Stage) -> None:
        token = stage.identity.login(1000, 1000, ())
        stage.time.now += 1e9
        stage.identity.authenticate(token.secret)
        stage.time.monotonic += 3599.0
        stage.identity.authenticate(token.secret)
        stage.time.monotonic += 1.0
        with pytest.raises(Unauthenticated) as caught:
            stage.identity.authenticate(token.secret)
        assert caught.value.reason == "LOGIN_REQUIRED"

    run(tmp_path, scenario)


def test_a_login_ends_with_the_daemon(tmp_path: Path) -> None:
    async def login(stage: Stage) -> str:
        return stage.identity.login(1000, 1000, ()).secret

    async def use(stage: Stage, secret: str) -> None:
        with pytest.raises(Unauthenticated):
            stage.identity.authenticate(secret)

    secret = run(tmp_path, login)
    run(tmp_path, lambda stage: use(stage, secret))


def test_a_user_who_logs_in_for_ever_takes_no_more_room_and_nobody_elses(tmp_path: Path) -> None:
    async def scenario(stage: Stage) -> None:
        other = stage.identity.login(1001, 1001, ())
        tokens = [stage.identity.login(1000, 1000, ()) for _ in range(MAX_LOGINS_PER_UID + 5)]
        good = []
        for token in tokens:
            try:
                stage.identity.authenticate(token.secret)
            except Unauthenticated:
                continue
            good.append(token)
        assert good == tokens[5:]
        stage.identity.authenticate(other.secret)

    run(tmp_path, scenario)


def test_a_name_that_was_an_admins_is_a_users_for_another_uid(tmp_path: Path) -> None:
    async def scenario(stage: Stage) -> None:
        stage.identity._users.accounts.users = {0: "root", 1000: "root"}  # type: ignore[attr-defined]
        stage.identity.login(0, 0, ())
        assert stage.identity.login(1000, 1000, ()).principal.roles == {Role.USER}

    run(tmp_path, scenario)


# ------------------------------------------------------------------------------------------------------------------------------ API tokens


def test_a_token_speaks_for_its_tenant_also_after_a_restart(tmp_path: Path) -> None:
    async def make(stage: Stage) -> str:
        await add_tenant(stage, "lab/x")
        token = await stage.identity.add_token(ADMIN, TokenArgs("lab/x", "robot"))
        assert token.secret.startswith(f"kd_{token.info.id}_")
        return token.secret

    async def use(stage: Stage, secret: str) -> None:
        principal = stage.identity.authenticate(secret)
        assert principal == Principal("robot", "lab/x", frozenset({Role.USER}), "token", secret.split("_")[1])

    secret = run(tmp_path, make)
    run(tmp_path, lambda stage: use(stage, secret))


def test_the_secret_is_nowhere_in_the_state(tmp_path: Path) -> None:
    async def scenario(stage: Stage) -> str:
        await add_tenant(stage, "lab/x")
        return (await stage.identity.add_token(ADMIN, TokenArgs("lab/x", "robot"))).secret

    secret = run(tmp_path, scenario)
    content = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert secret.split("_")[2].encode() not in content


@pytest.mark.parametrize(
    "spoil",
    [
        lambda secret: secret[:-1] + ("0" if secret[-1] != "0" else "1"),
        lambda secret: secret + "0",
        lambda secret: secret.replace("kd_", "kd_0"),
        lambda secret: secret.rpartition("_")[0],
        lambda secret: "kd_",
        lambda secret: "kl_" + secret,
        lambda secret: "",
        lambda secret: "\ud800",
    ],
)
def test_a_spoilt_token_is_nobodys(tmp_path: Path, spoil: Callable[[str], str]) -> None:
    async def scenario(stage: Stage) -> None:
        await add_tenant(stage, "lab/x")
        token = await stage.identity.add_token(ADMIN, TokenArgs("lab/x", "robot"))
        with pytest.raises(Unauthenticated):
            stage.identity.authenticate(spoil(token.secret))

    run(tmp_path, scenario)


def test_a_token_ends_at_its_time_and_when_it_is_removed(tmp_path: Path) -> None:
    async def scenario(stage: Stage) -> None:
        await add_tenant(stage, "lab/x")
        short = await stage.identity.add_token(ADMIN, TokenArgs("lab/x", "robot", lifetime_s=10.0))
        endless = await stage.identity.add_token(ADMIN, TokenArgs("lab/x", "robot"))
        stage.time.now += 9.0
        stage.identity.authenticate(short.secret)
        stage.time.now += 1.0
        with pytest.raises(Unauthenticated, match="expired"):
            stage.identity.authenticate(short.secret)
        stage.identity.authenticate(endless.secret)
        await stage.identity.remove_token(endless.info.id)
        with pytest.raises(Unauthenticated):
            stage.identity.authenticate(endless.secret)
        with pytest.raises(NotFound):
            await stage.identity.remove_token(endless.info.id)

    run(tmp_path, scenario)


def test_the_last_use_is_shown_at_once_and_stored_later(tmp_path: Path) -> None:
    async def scenario(stage: Stage) -> None:
        await add_tenant(stage, "lab/x")
        token = await stage.identity.add_token(ADMIN, TokenArgs("lab/x", "robot"))
        stage.time.now = 2000.0
        stage.identity.authenticate(token.secret)
        assert [info.last_used_at for info in stage.identity.list_tokens(ListArgs(tenant="lab"))] == [2000.0]
        assert stage.identity.list_tokens(ListArgs(tenant="other")) == []
        await stage.identity.flush()
        assert (await stage.store.load_tokens())[0].info.last_used_at == 2000.0

    run(tmp_path, scenario)


@pytest.mark.parametrize(
    ("giver", "args", "error"),
    [
        (OPERATOR, TokenArgs("lab/x", "robot", frozenset({Role.ADMIN})), PermissionDenied),
        (OPERATOR, TokenArgs("elsewhere", "robot"), PermissionDenied),
        (ADMIN, TokenArgs("nowhere", "robot"), NotFound),
        (ADMIN, TokenArgs("lab/x", "a/b"), InvalidArgument),
        (ADMIN, TokenArgs("lab/x", "-rf"), InvalidArgument),
        (ADMIN, TokenArgs("lab/x", "robot", lifetime_s=-1.0), InvalidArgument),
        (ADMIN, TokenArgs("lab/x", "robot", lifetime_s=float("nan")), InvalidArgument),
        (ADMIN, TokenArgs("lab/x", "ann"), AlreadyExists),
    ],
)
def test_a_token_that_may_not_be_is_refused(tmp_path: Path, giver: Principal, args: TokenArgs, error: type[Exception]) -> None:
    async def scenario(stage: Stage) -> None:
        await add_tenant(stage, "lab/x")
        stage.identity.login(1000, 1000, ())
        with pytest.raises(error):
            await stage.identity.add_token(giver, args)
        assert stage.identity.list_tokens(ListArgs()) == []

    run(tmp_path, scenario)


def test_a_local_user_cannot_take_the_name_of_another_tenants_token(tmp_path: Path) -> None:
    async def scenario(stage: Stage) -> None:
        await add_tenant(stage, "lab/x")
        await stage.identity.add_token(ADMIN, TokenArgs("lab/x", "ann"))
        with pytest.raises(PermissionDenied, match="belongs to a token"):
            stage.identity.login(1000, 1000, ())

    run(tmp_path, scenario)


def test_a_removed_tenants_credentials_are_refused(tmp_path: Path) -> None:
    async def scenario(stage: Stage) -> None:
        await add_tenant(stage, "lab/x")
        token = await stage.identity.add_token(ADMIN, TokenArgs("lab/x", "robot"))
        login = stage.identity.login(1000, 1000, ())
        stage.identity.forget_tenant("lab/x")
        stage.identity.forget_tenant("local/ann")
        for secret in (token.secret, login.secret):
            with pytest.raises(Unauthenticated):
                stage.identity.authenticate(secret)

    run(tmp_path, scenario)


# ----------------------------------------------------------------------------------------------------------------------------- certificates


def test_a_certificate_speaks_for_the_tenant_that_the_configuration_says(tmp_path: Path) -> None:
    async def scenario(stage: Stage) -> None:
        principal = stage.identity.authenticate_certificate("gateway")
        assert (principal.name, principal.tenant, principal.via, principal.credential_id) == ("gateway", "lab/gateway", "tls", "gateway")
        with pytest.raises(Unauthenticated, match="stranger"):
            stage.identity.authenticate_certificate("stranger")
        stage.identity.login(1000, 1000, ())
        with pytest.raises(PermissionDenied, match="belongs to the tenant 'local/ann'"):
            stage.identity.authenticate_certificate("ann")

    run(tmp_path, scenario)
