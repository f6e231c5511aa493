"""Adapters end to end: the demo model and two made-up LoRA adapters of it, together in one batch, through deaths, unloads and restarts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from kerneld_client import Client, Context, errors
from tests.e2e.rig import MODEL, DaemonRig, stream_all

PROMPTS = ["Once upon a time", "The little dog said", "There was a big"]
ADAPTERS = ("", "a", "b")


def write_adapter(folder: Path, seed: int, layers: int = 0) -> Path:
    """A random adapter of the demo model in PEFT form; `layers` more than it has make it one of another base."""
    config = json.loads((MODEL / "config.json").read_text())
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head_dim = config.get("head_dim") or hidden // config["num_attention_heads"]
    kv = config["num_key_value_heads"] * head_dim
    linears = {"self_attn.q_proj": (hidden, config["num_attention_heads"] * head_dim), "self_attn.v_proj": (hidden, kv)}
    linears |= {"mlp.up_proj": (hidden, inner), "mlp.down_proj": (inner, hidden)}
    random = np.random.default_rng(seed)
    tensors = {}
    for layer in range(config["num_hidden_layers"] + layers):
        for name, (columns, rows) in linears.items():
            prefix = f"base_model.model.model.layers.{layer}.{name}."
            tensors[prefix + "lora_A.weight"] = random.normal(0, columns**-0.5, (4, columns)).astype(np.float32)
            tensors[prefix + "lora_B.weight"] = random.normal(0, 0.5, (rows, 4)).astype(np.float32)
    folder.mkdir()
    fields = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": [name.split(".")[1] for name in linears]}
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.fixture
def k(rig: DaemonRig) -> Client:
    """A client of a daemon of its own that knows the demo model and two adapters."""
    client = rig.connect()
    client.load(MODEL, name="demo")
    for seed, name in enumerate(ADAPTERS[1:]):
        client.register(write_adapter(rig.folder / name, seed), name=name, base="demo")
    return client


def tokens_of(context: Context, text: str = "", num_tokens: int = 24) -> list[int]:
    """What a context goes on with."""
    return list(context.infer(text or None, max_tokens=num_tokens, temperature=0, ignore_eos=True).result().tokens)


def test_base_and_adapters_say_together_what_they_say_alone_even_when_the_worker_dies(rig: DaemonRig, k: Client) -> None:
    alone = [tokens_of(k.alloc("demo", adapter=name), prompt, 64) for name, prompt in zip(ADAPTERS, PROMPTS, strict=True)]
    same_prompt = [tokens_of(k.alloc("demo", adapter=name), PROMPTS[0], 64) for name in ADAPTERS]
    assert len({tuple(tokens) for tokens in same_prompt}) == 3, "the adapters change what is said"

    together = [k.alloc("demo", adapter=name) for name in ADAPTERS]
    assert stream_all(together, PROMPTS, 64) == alone
    through_a_death = [k.alloc("demo", adapter=name) for name in ADAPTERS]
    assert stream_all(through_a_death, PROMPTS, 64, during=lambda: rig.kill_worker(k)) == alone
    assert [(context.stat().model, context.stat().adapter) for context in together] == [("demo", name) for name in ADAPTERS]


def test_an_adapter_that_was_unloaded_comes_back_with_the_next_request_and_after_a_restart(rig: DaemonRig, k: Client) -> None:
    context = k.alloc("demo", adapter="a")
    whole = tokens_of(k.alloc("a"), PROMPTS[1], 36)
    found = tokens_of(context, PROMPTS[1], 12)
    assert k.unload("a").state == "registered"
    found += tokens_of(context, num_tokens=12)
    assert (k.model("a").state, k.model("a").base) == ("resident", "demo")
    k.unload("demo")
    assert [k.model(name).state for name in ("demo", "a")] == ["registered"] * 2
    rig.kill()
    rig.start()
    with rig.connect() as again:
        kept = again.context(context.id)
        assert kept.stat().adapter == "a"
        found += tokens_of(kept, num_tokens=12)
    assert found == whole


def test_an_adapter_of_another_base_is_refused_and_leaves_nothing(rig: DaemonRig, k: Client) -> None:
    path = write_adapter(rig.folder / "c", 5, layers=1)
    with pytest.raises(errors.KerneldError, match="another base"):
        k.register(path, name="c", base="demo")
    with pytest.raises(errors.KerneldError, match="another base"):
        k.load(path, name="c", base="demo")
    assert {model.name for model in k.models()} == {"demo", "a", "b"}
    (path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "use_dora": True}))
    with pytest.raises(errors.KerneldError, match="use_dora"):
        k.load(path, name="c", base="demo")


def test_an_adapter_with_contexts_is_not_removed(k: Client) -> None:
    context = k.alloc("demo", adapter="b")
    with pytest.raises(errors.KerneldError, match=context.id):
        k.remove_model("b")
    with pytest.raises(errors.KerneldError, match="adapters: a, b"):
        k.remove_model("demo")
    context.free()
    k.remove_model("b")
    assert {model.name for model in k.models()} == {"demo", "a"}
