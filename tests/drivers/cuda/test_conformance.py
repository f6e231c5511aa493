"""The CUDA driver passes the conformance suite on a device that does everything as late as it may, in any order that it may."""

from __future__ import annotations

from pathlib import Path

import pytest

from drivers.conformance import CHECKS, Check
from drivers.conformance_bench import Subject
from drivers.conformance_models import LAYERS, write_adapter, write_model, write_refused_models
from drivers.cuda.driver import CudaDriver
from tests.drivers.cuda.late_runtime import late_runtimes


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder: Path = tmp_path_factory.mktemp("models")
    make = late_runtimes(0)
    adapter, other = write_adapter(folder / "adapter"), write_adapter(folder / "other", layers=LAYERS + 1)
    return Subject(lambda: CudaDriver(make), write_model(folder / "model"), write_refused_models(folder / "refused"), adapter, other)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_driver_conforms(subject: Subject, check: Check) -> None:
    check(subject)
