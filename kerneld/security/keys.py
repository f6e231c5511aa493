"""Keys that follow from a tenant's secret.

A tenant has one secret of 32 random bytes, made with the tenant and kept in the database. It is never used itself: every purpose has a key
of its own, so that a page's name, say, tells nothing about a prefix hash, and the same content has different names in two tenants.

Source: HKDF-Expand (RFC 5869, section 2.3) with SHA-256 and one round of output; the secret is uniform, so there is nothing to extract.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from enum import Enum

KEY_BYTES = 32


class Purpose(Enum):
    """What a key is for. A value is never changed: what was made with its key could not be read any more."""

    PAGE_NAME = b"kerneld image page name v1"
    MANIFEST = b"kerneld image manifest v1"
    PREFIX = b"kerneld prefix hash v1"


def new_secret() -> bytes:
    """Return the secret of a new tenant."""
    return secrets.token_bytes(KEY_BYTES)


def derive(tenant_secret: bytes, purpose: Purpose) -> bytes:
    """Return the tenant's key for a purpose. Raises: ValueError, if the secret is not one."""
    if len(tenant_secret) != KEY_BYTES:
        raise ValueError(f"a tenant's secret has {KEY_BYTES} bytes, not {len(tenant_secret)}")
    return hmac.digest(tenant_secret, purpose.value + b"\x01", hashlib.sha256)
