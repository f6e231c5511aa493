"""Quantized models on the CPU driver, natively and in torch: they answer what their weights stand for, but for the rounding of inputs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from drivers.contract import InspectSpec, LoadSpec, OpenSpec, Plan, RowRun, RowStart, Sampling
from drivers.cpu import CpuDriver
from drivers.errors import ModelUnsupported
from drivers.hostmem import HostMemory
from tests.drivers.models.checkpoint_rig import CONFIG, VOCAB, Array, Store, Written, write_checkpoint
from tests.drivers.models.test_quant import AWQ, FP8, PACKED, awq, compressed, fp8, gptq, gptq_config, w4a16, w8a8

GRANULE_BYTES, HOST_BYTES = 1024, 4 << 20
PROMPT = tuple(int(token) for token in np.random.default_rng(8).integers(0, VOCAB, 40))
NATIVE: Mapping[str, str] = {}
TORCH: Mapping[str, str] = {"native": "off"}


def plain(random: np.random.Generator, rows: int, columns: int) -> tuple[dict[str, Array], Array]:
    """A linear of floats."""
    values = (random.standard_normal((rows, columns)) * 0.08).astype(np.float32)
    return {"weight": values}, values.astype(np.float64)


@dataclass(frozen=True)
class Way:
    """How a model is run."""

    options: Mapping[str, str]
    quant: str = ""
    kv_quant: str = ""
    is_streamed: bool = False
    is_parked: bool = False


def host_tier() -> int:
    """A host tier; the driver closes it."""
    host = HostMemory.create(HOST_BYTES, GRANULE_BYTES)
    fd = os.dup(host.fd)
    host.close()
    return fd


def scores(path: Path, way: Way) -> Array:
    """Log-probabilities of the prompt's tokens but the first."""
    driver = CpuDriver()
    host_fd = host_tier() if way.is_parked else None
    host_bytes = HOST_BYTES if way.is_parked else 0
    driver.open(OpenSpec(16, 1 << 18, GRANULE_BYTES, 16, 2, 64, threads=1, host_bytes=host_bytes, options=dict(way.options)), host_fd)
    try:
        source = InspectSpec(str(path), quant=way.quant, kv_quant=way.kv_quant)
        spec = driver.inspect(source)
        offsets, end = [], 0
        for segment in spec.segments:
            offsets.append(end)
            end += -(-segment.size_bytes // GRANULE_BYTES) * GRANULE_BYTES
        slots = (offsets[1],) if way.is_streamed else ()
        places = (offsets[0], -1, offsets[2]) if way.is_streamed else tuple(offsets)
        driver.load(LoadSpec(1, source, (1,), places, slots), lambda _done, _total: None)
        if way.is_parked:
            images = tuple(sum(segment.size_bytes for segment in spec.segments[:idx]) for idx in range(3))
            checksums = driver.park(1, images)
            driver.unload(1)
            loaded = driver.load(LoadSpec(1, source, (1,), places, slots, images, checksums), lambda _done, _total: None)
            assert loaded.num_corrupt == 0
        size = spec.groups[0].frame_bytes // GRANULE_BYTES
        frames = tuple(end // GRANULE_BYTES + page * size for page in range(3))
        start = RowStart(0, 1, 0, PROMPT, (frames,), Sampling(temperature=0.0), score_from=0)
        driver.apply(Plan(boot_generation=1, seq=1, starts=(start,), runs=(RowRun(0, len(PROMPT)),), num_steps=1))
        [row] = driver.step(0).rows
        assert not row.error
        return np.array([scored.logprob for scored in row.logprobs])
    finally:
        driver.close()


def truth(written: Written) -> Array:
    """The same by `transformers`, with the weights that the checkpoint stands for."""
    fields = {name: value for name, value in CONFIG.items() if name not in ("architectures", "model_type")}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**fields)).eval()
    model.load_state_dict({name: torch.from_numpy(values).float() for name, values in written.weights.items()})
    with torch.inference_mode():
        logprobs = model(torch.tensor([PROMPT])).logits[0].log_softmax(-1)
    return logprobs[torch.arange(len(PROMPT) - 1), torch.tensor(PROMPT[1:])].numpy()


CHECKPOINTS: dict[str, tuple[Mapping[str, object], Store]] = {
    "gptq": (gptq_config(sym=False), gptq(4, 32, is_symmetric=False)),
    "awq": (AWQ, awq(32)),
    "w8a8": (compressed("int-quantized", symmetric=False), w8a8(is_symmetric=False)),
    "w4a16": (compressed("pack-quantized", **PACKED), w4a16(32)),
    "fp8": (FP8, fp8((128, 128))),
}


@pytest.mark.parametrize("options", [NATIVE, TORCH], ids=["native", "torch"])
@pytest.mark.parametrize("case", CHECKPOINTS)
def test_a_quantized_checkpoint_answers_as_its_weights_do(case: str, options: Mapping[str, str], tmp_path: Path) -> None:
    written = write_checkpoint(tmp_path, *CHECKPOINTS[case])
    found, right = scores(tmp_path, Way(options)), truth(written)
    is_rounded = options is NATIVE and case != "fp8"  # inputs of integer matrices are integers, too
    assert np.abs(found - right).mean() < (0.1 if is_rounded else 1e-4) * right.std()
    assert np.corrcoef(found, right)[0, 1] > (0.98 if is_rounded else 0.999999)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """A model of floats."""
    return write_checkpoint(tmp_path_factory.mktemp("plain") / "model", {}, plain)


@pytest.mark.parametrize("options", [NATIVE, TORCH], ids=["native", "torch"])
@pytest.mark.parametrize(("quant", "bound"), [("", 1e-4), ("int8", 0.05), ("int4", 0.2)])
def test_a_model_quantized_while_it_is_loaded_answers_nearly_the_same(
    quant: str, bound: float, options: Mapping[str, str], written: Written
) -> None:
    found, right = scores(written.path, Way(options, quant)), truth(written)
    assert np.abs(found - right).mean() < bound * right.std()


@pytest.mark.parametrize(("kv_quant", "bound"), [("int8", 0.02), ("fp8", 0.05)])
def test_pages_of_eight_bits_answer_nearly_the_same(kv_quant: str, bound: float, written: Written) -> None:
    found, right = scores(written.path, Way(NATIVE, "", kv_quant)), truth(written)
    assert 0 < np.abs(found - right).mean() < bound * right.std()


@pytest.mark.parametrize("kv_quant", ["int8", "fp8", "int2"])
def test_pages_that_the_driver_cannot_keep_are_refused(kv_quant: str, written: Written) -> None:
    with pytest.raises(ModelUnsupported, match=f"kv_quant is '{kv_quant}'"):
        scores(written.path, Way(NATIVE if kv_quant == "int2" else TORCH, "", kv_quant))


@pytest.mark.parametrize("options", [NATIVE, TORCH], ids=["native", "torch"])
@pytest.mark.parametrize("quant", ["int8", "int4"])
def test_images_and_streams_of_quantized_weights_are_their_bytes(quant: str, options: Mapping[str, str], written: Written) -> None:
    right = scores(written.path, Way(options, quant))
    for is_streamed, is_parked in ((True, False), (False, True), (True, True)):
        found = scores(written.path, Way(options, quant, "", is_streamed, is_parked))
        np.testing.assert_array_equal(found, right)
