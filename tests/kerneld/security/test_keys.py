"""Keys that follow from a tenant's secret."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from kerneld.security.keys import Purpose, derive, new_secret


def test_every_tenant_and_purpose_has_its_own_key() -> None:
    keys = {derive(secret, purpose) for secret in (b"a" * 32, b"b" * 32) for purpose in Purpose}
    assert len(keys) == 2 * len(Purpose)


def test_a_key_is_the_one_of_the_specification() -> None:
    expected = hmac.new(b"a" * 32, b"kerneld image page name v1\x01", hashlib.sha256).digest()  # RFC 5869: T(1) = HMAC(PRK, info | 0x01)
    assert derive(b"a" * 32, Purpose.PAGE_NAME) == expected


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        derive(b"short", Purpose.PREFIX)


def test_secrets_are_not_repeated() -> None:
    assert new_secret() != new_secret()
