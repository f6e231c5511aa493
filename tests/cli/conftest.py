"""What tests of kernelctl share."""

from __future__ import annotations

import pytest

from tests.cli.fake_client import Kernelctl


@pytest.fixture
def kernelctl() -> Kernelctl:
    """kernelctl against a fake client."""
    return Kernelctl()
