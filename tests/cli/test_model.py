"""model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cli.model import describe, dtype_text, stream_note
from kerneld_client.values import LoadProgress
from tests.cli.fake_client import MODEL, Kernelctl

AS_TABLE = """\
NAME   STATE     TIER    ARCHITECTURE  PARAMETERS  DTYPE     SIZE  CONTEXTS  BASE
small  resident  device  llama               6.3M  float32  24MiB         1
"""


def test_models_are_listed(kernelctl: Kernelctl) -> None:
    assert kernelctl("model", "ls").stdout == AS_TABLE
    assert json.loads(kernelctl("model", "ls", "-o", "json").stdout)[0]["bytes"] == 24 << 20


def test_load_shows_stages_on_stderr_and_the_model_on_stdout(kernelctl: Kernelctl) -> None:
    loaded = kernelctl("model", "load", "/srv/models/small", "--max-positions", "512")

    assert loaded.stdout == AS_TABLE
    assert loaded.stderr == "small: hash\nsmall: copy\n"
    assert kernelctl.client.arguments_of("load") == (("/srv/models/small",), {"name": "small", "max_positions": 512})


def test_load_by_name_takes_the_folder_that_the_daemon_knows(kernelctl: Kernelctl) -> None:
    kernelctl("model", "load", "small")

    assert kernelctl.client.arguments_of("load") == (("/srv/models/small",), {"name": "small"})


def test_a_gguf_file_is_called_by_its_name_without_the_ending(kernelctl: Kernelctl) -> None:
    kernelctl("model", "register", "/srv/models/small-q8.gguf")
    assert kernelctl.client.arguments_of("register") == ((Path("/srv/models/small-q8.gguf"),), {"name": "small-q8"})


def test_register_says_how_weights_and_pages_are_kept(kernelctl: Kernelctl) -> None:
    kernelctl("model", "register", "/srv/models/small", "--quant", "int4", "--kv-quant", "int8")
    asked = {"name": "small", "quant": "int4", "kv_quant": "int8"}
    assert kernelctl.client.arguments_of("register") == ((Path("/srv/models/small"),), asked)


def test_register_names_a_folder(kernelctl: Kernelctl) -> None:
    kernelctl("model", "register", "/srv/models/small", "--name", "s")

    assert kernelctl.client.arguments_of("register") == ((Path("/srv/models/small"),), {"name": "s"})


def test_an_adapter_is_named_with_its_base(kernelctl: Kernelctl) -> None:
    kernelctl("model", "register", "/srv/models/tone", "--base", "small")
    assert kernelctl.client.arguments_of("register") == ((Path("/srv/models/tone"),), {"name": "tone", "base": "small"})

    kernelctl("model", "load", "/srv/models/tone", "--base", "small")
    assert kernelctl.client.arguments_of("load") == (("/srv/models/tone",), {"name": "tone", "base": "small"})


def test_pin_and_unpin(kernelctl: Kernelctl) -> None:
    pinned = kernelctl("model", "pin", "small", "-o", "json").stdout
    assert json.loads(pinned)["is_pinned"]
    assert kernelctl("model", "pin", "small").stdout.splitlines()[0].endswith("PINNED")
    assert kernelctl("model", "unpin", "small").stdout == AS_TABLE
    assert [verb for verb in kernelctl.client.verbs() if verb != "close"] == ["pin", "pin", "unpin"]


def test_a_wide_list_shows_where_weights_lie(kernelctl: Kernelctl) -> None:
    shown = kernelctl("model", "ls", "-o", "wide").stdout
    assert all(name in shown for name in ("PINNED", "ON DEVICE", "ON HOST", "LOADS", "LAST USED"))


def test_a_load_says_where_its_bytes_come_from_and_how_fast() -> None:
    assert describe(LoadProgress("copy", 1 << 20, 4 << 20, "host", float(2 << 30))) == "copy from host, 2GiB/s"
    assert describe(LoadProgress("wait", 0, 4 << 20)) == "wait"


def test_show_unload_and_rm(kernelctl: Kernelctl) -> None:
    assert "weights       abab" in kernelctl("model", "show", "small").stdout
    assert kernelctl("model", "unload", "small").stdout == AS_TABLE
    assert kernelctl("model", "rm", "small").stdout == "small removed\n"
    assert [verb for verb in kernelctl.client.verbs() if verb != "close"] == ["model", "unload", "remove_model"]


def test_a_load_of_a_model_larger_than_the_device_says_what_to_expect() -> None:
    large = replace(MODEL, streamed_bytes=16 << 20, stream_bytes_per_s=4 << 30)

    assert "every step reads 16MiB of 24MiB again, at 4GiB/s: about 256 steps per second" in stream_note(large)
    assert stream_note(replace(large, stream_bytes_per_s=0)).endswith("every step reads 16MiB of 24MiB again")


@pytest.mark.parametrize(
    ("quant", "kv_quant", "shown"),
    [
        ("", "", "float32"),
        ("int8", "", "int8 weights, float32 compute"),
        ("gptq int4", "int8", "gptq int4 weights, int8 pages, float32 compute"),
        ("", "fp8", "fp8 pages, float32 compute"),
    ],
)
def test_a_dtype_says_what_is_kept_and_what_is_computed_in(quant: str, kv_quant: str, shown: str) -> None:
    assert dtype_text(replace(MODEL, quant=quant, kv_quant=kv_quant)) == shown
    assert dtype_text(replace(MODEL, quant=quant, kv_quant=kv_quant, dtype="")) == "-", "no driver has said"
