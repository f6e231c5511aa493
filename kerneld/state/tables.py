"""The relational schema: what is durable and is not a context's life.

tenants       1 --- n  principals        who is known, and in which tenant
tenants       1 --- n  api_tokens        credentials of programs; only hashes of their secrets
models                                   what was registered, and what should be loaded after a restart
images                                   what checkpoint left; the pages are files (kerneld.checkpoint)
sharing_groups                           which tenants may compute equal beginnings once, together
effects                                  answers to calls with a request id, kept for a day
usage         1 --- 1  tenants           what a tenant has used, added up; hours and half-lives are in usagetables
boots                                    one row: how often a daemon has started here
schema_versions                          see kerneld.state.migrations

A change here needs a migration in the same commit. Times are Unix seconds; tenants are named by path.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import BigInteger, Boolean, Column, Float, ForeignKey, Integer, LargeBinary, MetaData, Row, String, Table, Text

from kerneld.calls import Limits, Role, TokenInfo

metadata = MetaData()

schema_versions = Table(
    "schema_versions",
    metadata,
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("applied_at", Float, nullable=False),
)

boots = Table(
    "boots",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),  # always 1
    Column("generation", BigInteger, nullable=False),
)

tenants = Table(
    "tenants",
    metadata,
    Column("path", String(256), primary_key=True),
    Column("weight", Integer, nullable=False),
    Column("limits", Text, nullable=False),  # JSON object of calls.Limits
    Column("created_at", Float, nullable=False),
    Column("secret", LargeBinary(32), nullable=False),  # see kerneld.security.keys
)

principals = Table(
    "principals",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("tenant", ForeignKey("tenants.path"), nullable=False),
    Column("roles", Text, nullable=False),  # JSON array, sorted
    Column("is_local", Boolean, nullable=False),  # comes from a uid; the tenant follows the configuration
)

api_tokens = Table(
    "api_tokens",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("secret_hash", LargeBinary(32), nullable=False),  # SHA-256
    Column("tenant", ForeignKey("tenants.path"), nullable=False),
    Column("name", String(128), nullable=False),
    Column("roles", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),  # 0: never
    Column("last_used_at", Float, nullable=False),  # written now and then
)

models = Table(
    "models",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("path", Text, nullable=False),
    Column("max_positions", BigInteger, nullable=False),
    Column("quant", String(64), nullable=False),
    Column("weights_hash", String(128), nullable=False),
    Column("fingerprint", String(128), nullable=False),
    Column("file_stamp", Text, nullable=False),
    Column("want_loaded", Boolean, nullable=False),
    Column("registered_by", String(128), nullable=False),
    Column("base", String(128), nullable=False, server_default=""),  # name of the model that an adapter changes
    Column("is_pinned", Boolean, nullable=False, server_default="0"),
    Column("kv_quant", String(64), nullable=False, server_default=""),
    Column("devices", Text, nullable=False, server_default=""),  # where it is wanted, by name; empty: on the only device
)

images = Table(
    "images",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("context_id", String(32), nullable=False, index=True),
    Column("model", String(128), nullable=False),
    Column("owner", String(128), nullable=False),
    Column("tenant", ForeignKey("tenants.path"), nullable=False, index=True),
    Column("num_tokens", BigInteger, nullable=False),
    Column("num_pages", BigInteger, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("name", String(256), nullable=False),
)

sharing_groups = Table(
    "sharing_groups",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("members", Text, nullable=False),  # JSON array of paths of tenants, sorted
    Column("created_at", Float, nullable=False),
    Column("secret", LargeBinary(32), nullable=False),  # see kerneld.security.keys
)

effects = Table(
    "effects",
    metadata,
    Column("principal", String(128), primary_key=True),
    Column("request_id", String(64), primary_key=True),
    Column("verb", String(64), nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Column("answer", LargeBinary, nullable=False),
    Column("at", Float, nullable=False, index=True),
)

usage = Table(
    "usage",
    metadata,
    Column("tenant", String(256), primary_key=True),
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("service", BigInteger, nullable=False),
)


@dataclass(frozen=True, slots=True)
class TenantRow:
    """A tenant as it is stored."""

    path: str
    weight: int
    limits: Limits
    created_at: float
    secret: bytes


@dataclass(frozen=True, slots=True)
class PrincipalRow:
    """Somebody who was seen, or was given a credential."""

    name: str
    tenant: str
    roles: frozenset[Role]
    is_local: bool


@dataclass(frozen=True, slots=True)
class TokenRow:
    """An API token and the hash of its secret."""

    info: TokenInfo
    secret_hash: bytes


@dataclass(frozen=True, slots=True)
class ModelRow:
    """A registered model."""

    name: str
    path: str
    max_positions: int
    quant: str
    weights_hash: str
    fingerprint: str
    file_stamp: str  # what the files looked like when they were hashed: a change means to hash again
    want_loaded: bool
    registered_by: str
    base: str = ""  # name of the model that an adapter changes
    is_pinned: bool = False
    kv_quant: str = ""
    devices: str = ""  # names of those where it is wanted, with spaces between; empty: on the only one, or on any


@dataclass(frozen=True, slots=True)
class GroupRow:
    """A sharing group."""

    name: str
    members: tuple[str, ...]
    created_at: float
    secret: bytes


@dataclass(frozen=True, slots=True)
class UsageRow:
    """What a tenant has used, ever; `service` is that of its fair-share account when this was written."""

    input_tokens: int = 0
    output_tokens: int = 0
    service: int = 0


def tenant_of(row: Row[Any]) -> TenantRow:
    """Return the tenant that a row holds."""
    return TenantRow(row.path, row.weight, msgspec.json.decode(row.limits, type=Limits), row.created_at, row.secret)


def tenant_values(tenant: TenantRow) -> dict[str, object]:
    """Return the columns of a tenant."""
    limits = limits_json(tenant.limits)
    return {"path": tenant.path, "weight": tenant.weight, "limits": limits, "created_at": tenant.created_at, "secret": tenant.secret}


def principal_of(row: Row[Any]) -> PrincipalRow:
    """Return the principal that a row holds."""
    return PrincipalRow(row.name, row.tenant, _roles_of(row.roles), row.is_local)


def token_of(row: Row[Any]) -> TokenRow:
    """Return the API token that a row holds."""
    info = TokenInfo(row.id, row.tenant, row.name, _roles_of(row.roles), row.created_at, row.expires_at, row.last_used_at)
    return TokenRow(info, row.secret_hash)


def token_values(token: TokenRow) -> dict[str, object]:
    """Return the columns of an API token."""
    info = token.info
    return {
        "id": info.id,
        "secret_hash": token.secret_hash,
        "tenant": info.tenant,
        "name": info.name,
        "roles": roles_json(info.roles),
        "created_at": info.created_at,
        "expires_at": info.expires_at,
        "last_used_at": info.last_used_at,
    }


def group_of(row: Row[Any]) -> GroupRow:
    """Return the sharing group that a row holds."""
    return GroupRow(row.name, msgspec.json.decode(row.members, type=tuple[str, ...]), row.created_at, row.secret)


def members_json(members: tuple[str, ...]) -> str:
    """Return the members of a sharing group as they are stored."""
    return msgspec.json.encode(sorted(members)).decode()


def limits_json(limits: Limits) -> str:
    """Return limits as they are stored; a limit that a later version adds is 0 in what an earlier one wrote."""
    return msgspec.json.encode(limits).decode()


def roles_json(roles: frozenset[Role]) -> str:
    """Return roles as they are stored."""
    return msgspec.json.encode(sorted(role.value for role in roles)).decode()


def _roles_of(text: str) -> frozenset[Role]:
    return msgspec.json.decode(text, type=frozenset[Role])
