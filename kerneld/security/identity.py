"""Identity: from a credential to the principal behind it. Whoever cannot show one is nobody.

    login token    kl_<64 hex>          from the login socket, for the uid at its other end; lives until it expires or the daemon stops
    API token      kd_<id>_<64 hex>     made by an administrator for a tenant; only its SHA-256 is kept
    certificate    common name          mapped to a tenant by the configuration ("cert:NAME" in `kerneld.users`)

Invariants
1. No secret is kept, logged or compared in plain: tables are keyed by SHA-256, and hashes are compared in constant time.
2. A login token ends with the boot that gave it; its age is measured by a clock that nobody can set.
3. What was removed is refused from that moment on; a call that already runs goes on.
4. A wrong secret, an unknown id and a token of another boot are told apart by nobody outside, except that old logins are told to log in.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from kerneld.calls import Limits, ListArgs, NewToken, Principal, Role, TokenInfo
from kerneld.errors import InvalidArgument, KernelError, NotFound, PermissionDenied, Unauthenticated
from kerneld.security.acl import check_may_give, is_beneath
from kerneld.security.keys import new_secret
from kerneld.security.principals import LocalUsers, Principals, is_name, with_ancestors
from kerneld.state.records import Effect
from kerneld.state.store import Store
from kerneld.state.tables import PrincipalRow, TenantRow, TokenRow

logger = logging.getLogger(__name__)

LOGIN_LIFETIME_S = 3600.0
MAX_LOGINS_PER_UID = 64  # the oldest goes when one more comes
_LOGIN_PREFIX, _API_PREFIX = "kl_", "kd_"
_NO_HASH = bytes(32)


@dataclass(frozen=True, slots=True)
class LoginToken:
    """What a login gives; the secret is shown once. `expires_at` in Unix seconds."""

    secret: str
    principal: Principal
    expires_at: float


@dataclass(frozen=True, slots=True)
class TokenArgs:
    """An API token that is wanted. No roles: the role user. `lifetime_s` 0: for ever."""

    tenant: str
    name: str
    roles: frozenset[Role] = frozenset()
    lifetime_s: float = 0.0


@dataclass(frozen=True, slots=True)
class _Login:
    principal: Principal
    uid: int
    expires_at: float  # on the monotonic clock


@dataclass(frozen=True, slots=True)
class Clocks:
    """What the time is: `now` in Unix seconds, `monotonic` in seconds that only go forward."""

    now: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic


class Authenticator:
    """Knows every credential that is good now."""

    def __init__(self, store: Store, users: LocalUsers, clocks: Clocks | None = None, login_lifetime_s: float = LOGIN_LIFETIME_S) -> None:
        self._store = store
        self._users = users
        self._clocks = clocks or Clocks()
        self._login_lifetime_s = login_lifetime_s
        self._logins: dict[bytes, _Login] = {}  # by hash of the secret, oldest first
        self._tokens: dict[str, TokenRow] = {}  # by id
        self._used: dict[str, float] = {}  # id -> time, not yet in the store
        self._principals = Principals(())
        self._writes: set[asyncio.Task[None]] = set()
        # Told of the tenants of a user who is new or has moved, ancestors first. Those that are known already stay as they are.
        self.on_tenant_seen: Callable[[TenantRow], None] = lambda _tenant: None

    async def load(self) -> None:
        """Read tokens and principals from the store; once, before anything else."""
        self._tokens = {row.info.id: row for row in await self._store.load_tokens()}
        self._principals = Principals(await self._store.load_principals())

    async def close(self) -> None:
        """Wait for what is being written."""
        await self.flush()
        while self._writes:
            await asyncio.wait(self._writes)

    # ----------------------------------------------------------------------------------------------------------------------- credentials

    def login(self, uid: int, gid: int, groups: Sequence[int]) -> LoginToken:
        """Give a token to a local user whose uid the machine's kernel has told us.

        A user who is new becomes a principal, and a tenant if need be; both are stored beside, since they follow from the uid.
        Raises: Unauthenticated, if the machine does not know the uid; PermissionDenied, if the name is taken.
        """
        name, tenant = self._users.identify(uid, (gid, *groups))
        principal, changed = self._principals.local(name, tenant, is_admin=self._users.is_admin(uid))
        if changed is not None:
            self._write_down(changed)
        secret = _LOGIN_PREFIX + secrets.token_hex(32)
        self._forget_logins(uid)
        self._logins[_hash(secret)] = _Login(principal, uid, self._clocks.monotonic() + self._login_lifetime_s)
        return LoginToken(secret, principal, self._clocks.now() + self._login_lifetime_s)

    def authenticate(self, bearer: str) -> Principal:
        """Return who shows a token. Raises: Unauthenticated."""
        if bearer.startswith(_API_PREFIX):
            return self._authenticate_api(bearer)
        login = self._logins.get(_hash(bearer))
        if login is None or self._clocks.monotonic() >= login.expires_at:
            raise Unauthenticated("The token is not valid (any more); log in again.", reason="LOGIN_REQUIRED")
        return login.principal

    def authenticate_certificate(self, common_name: str) -> Principal:
        """Return who shows a client certificate that the configured authority signed. Raises: Unauthenticated, PermissionDenied."""
        tenant = self._users.tenants.get(f"cert:{common_name}")
        if tenant is None or not is_name(common_name):
            raise Unauthenticated(
                f"The certificate's name {common_name!r} is not in kerneld.users.",
                reason="CERTIFICATE_UNKNOWN",
                facts={"name": common_name},
            )
        principal, changed = self._principals.remote(common_name, tenant)
        if changed is not None:
            self._write_down(changed)
        return principal

    # ------------------------------------------------------------------------------------------------------------------------ API tokens

    async def add_token(self, giver: Principal, args: TokenArgs, made_by: Iterable[Effect] = ()) -> NewToken:
        """Make an API token. Its secret is in the answer and nowhere else.

        Raises: PermissionDenied, if it would be more than the giver is; InvalidArgument; AlreadyExists, if the name is another tenant's;
        NotFound, if there is no such tenant.
        """
        roles = args.roles or frozenset({Role.USER})
        _check_token(giver, args, roles)
        principal = self._principals.check_name(args.name, args.tenant)
        now = self._clocks.now()
        expires_at = now + args.lifetime_s if args.lifetime_s else 0.0
        info = TokenInfo(secrets.token_hex(8), args.tenant, args.name, roles, now, expires_at)
        secret = f"{_API_PREFIX}{info.id}_{secrets.token_hex(32)}"
        row = TokenRow(info, _hash(secret))
        await self._store.add_token(row, principal, made_by)
        self._tokens[info.id] = row
        self._principals.add(principal)
        return NewToken(info, secret)

    async def remove_token(self, token_id: str, made_by: Iterable[Effect] = ()) -> None:
        """Refuse a token from now on (invariant 3). Raises: NotFound."""
        await self._store.remove_token(token_id, made_by)
        self._tokens.pop(token_id, None)
        self._used.pop(token_id, None)

    def list_tokens(self, args: ListArgs) -> list[TokenInfo]:
        """Return tokens by id, those of `args.tenant` and beneath if that is given; never a secret."""
        rows = (self._with_last_use(row.info) for _, row in sorted(self._tokens.items()))
        return [info for info in rows if not args.tenant or is_beneath(info.tenant, args.tenant)]

    def token(self, token_id: str) -> TokenInfo:
        """Return one token's facts. Raises: NotFound."""
        row = self._tokens.get(token_id)
        if row is None:
            raise NotFound("token", token_id)
        return self._with_last_use(row.info)

    def forget_tenant(self, tenant: str) -> None:
        """Refuse every credential of a tenant that was removed (invariant 3)."""
        self._tokens = {token_id: row for token_id, row in self._tokens.items() if row.info.tenant != tenant}
        self._logins = {key: login for key, login in self._logins.items() if login.principal.tenant != tenant}
        self._principals.forget_tenant(tenant)

    async def flush(self) -> None:
        """Write down when tokens were used last; to be called now and then. Raises: DiskFull, Unavailable; then it can be tried again."""
        used, self._used = self._used, {}
        if not used:
            return
        try:
            await self._store.touch_tokens(used)
        except BaseException:
            self._used = used | self._used
            raise

    # --------------------------------------------------------------------------------------------------------------------------- details

    def _authenticate_api(self, bearer: str) -> Principal:
        token_id, _, _ = bearer[len(_API_PREFIX) :].partition("_")
        row = self._tokens.get(token_id)
        is_right = hmac.compare_digest(_hash(bearer), row.secret_hash if row is not None else _NO_HASH)  # invariant 4
        if row is None or not is_right:
            raise Unauthenticated("The token is not valid.", reason="TOKEN_INVALID")
        now = self._clocks.now()
        if row.info.expires_at and now >= row.info.expires_at:
            raise Unauthenticated("The token has expired; ask for a new one.", reason="TOKEN_EXPIRED", facts={"token": token_id})
        self._used[token_id] = now
        return Principal(row.info.name, row.info.tenant, row.info.roles, via="token", credential_id=token_id)

    def _forget_logins(self, uid: int) -> None:
        """Make room for a login: those that expired go, and the oldest of a user who has too many."""
        now = self._clocks.monotonic()
        self._logins = {key: login for key, login in self._logins.items() if login.expires_at > now}
        own = [key for key, login in self._logins.items() if login.uid == uid]
        for key in own[: max(0, len(own) + 1 - MAX_LOGINS_PER_UID)]:
            del self._logins[key]

    def _write_down(self, row: PrincipalRow) -> None:
        """Write a principal and its tenants down, in the background: the next login would only find the same again."""
        now = self._clocks.now()
        tenants = [TenantRow(path, 1, Limits(), now, new_secret()) for path in with_ancestors(row.tenant)]
        for tenant in tenants:
            self.on_tenant_seen(tenant)
        task = asyncio.ensure_future(self._write(self._store.put_principal(row, tenants), row.name))
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)

    async def _write(self, change: Awaitable[None], name: str) -> None:
        try:
            await change
        except KernelError as error:
            logger.warning("a principal could not be stored", extra={"principal": name, "error": error.message})

    def _with_last_use(self, info: TokenInfo) -> TokenInfo:
        return replace(info, last_used_at=max(info.last_used_at, self._used.get(info.id, 0.0)))


def _check_token(giver: Principal, args: TokenArgs, roles: frozenset[Role]) -> None:
    if not is_name(args.name):
        raise InvalidArgument("name", "1 to 64 letters, digits, '_', '.', '@' or '-', the first a letter, a digit or '_'")
    if not 0 <= args.lifetime_s < float("inf"):
        raise InvalidArgument("lifetime_s", "seconds from now, or 0 for ever")
    check_may_give(giver, roles)
    if not giver.is_admin and not is_beneath(args.tenant, giver.tenant):
        raise PermissionDenied(f"{giver.name} cannot make tokens for the tenant {args.tenant!r}.", facts={"tenant": args.tenant})


def _hash(secret: str) -> bytes:
    """Invariant 1. One round is enough for 256 random bits."""
    return hashlib.sha256(secret.encode("utf-8", "replace")).digest()
