"""How configuration comes in, and that what is shown can be read back."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivers.config import DriversConfig
from kerneld.config import Config, ConfigError, KerneldConfig, SyscallsConfig
from kerneld.deviceconfig import config_by_device
from kerneld.settings import known_fields, load_config, render_config
from memory.config import MemoryConfig

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
PATHS = st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=10).map(lambda name: Path("/srv") / name)
TENANTS = st.from_regex(r"[a-z]{1,5}(/[a-z]{1,5}){0,2}", fullmatch=True)
USERS = st.dictionaries(st.integers(0, 70000).map("uid:{}".format) | st.just("group:lab"), TENANTS, max_size=3)
CONFIGS = st.builds(
    Config,
    memory=st.builds(
        MemoryConfig,
        device_bytes=st.integers(1 << 30, 1 << 40),
        host_bytes=st.just(0) | st.integers(4 << 20, 1 << 40),
        page_tokens=st.sampled_from([8, 16, 32]),
    ),
    drivers=st.builds(
        DriversConfig, use=TEXT, threads=st.integers(0, 64), batch_invariant=st.booleans(), options=st.dictionaries(TEXT, TEXT)
    ),
    kerneld=st.builds(
        KerneldConfig,
        state_dir=PATHS,
        model_roots=st.lists(PATHS, max_size=3).map(tuple),
        detach_grace_s=st.floats(0, 1e9),
        users=USERS,
        log_json=st.booleans(),
    ),
    syscalls=st.builds(SyscallsConfig, socket=PATHS, tls_cert=PATHS, tls_key=PATHS, tcp=st.just("0.0.0.0:8420")),
)


def load(tmp_path: Path, text: str = "", *assignments: str, **environment: str) -> Config:
    """Load a file with this text, these flags and this environment."""
    path = tmp_path / "kerneld.toml"
    path.write_text(text)
    return load_config(path, environment, assignments)


@settings(max_examples=50)
@given(config=CONFIGS)
def test_what_is_shown_reads_back_as_the_same_configuration(tmp_path_factory: pytest.TempPathFactory, config: Config) -> None:
    path = tmp_path_factory.getbasetemp() / "shown.toml"
    path.write_text(render_config(config))

    assert load_config(path, {}) == config


def test_every_key_is_shown_under_its_sentence() -> None:
    shown = render_config(load_config(None, {}))

    for field, _ in known_fields().values():
        assert field.metadata["doc"].endswith("."), field.name
        assert f"# {field.metadata['doc']}" in shown


def test_flags_win_over_the_environment_and_the_environment_over_the_file(tmp_path: Path) -> None:
    text = "[kerneld]\nmax_rows = 1\nmax_steps = 1\nmax_queued = 1\n"

    config = load(tmp_path, text, "kerneld.max_rows=3", KERNELD_KERNELD__MAX_ROWS="2", KERNELD_KERNELD__MAX_STEPS="2")

    assert (config.kerneld.max_rows, config.kerneld.max_steps, config.kerneld.max_queued) == (3, 2, 1)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("4194304", 4 << 20), ("512MiB", 512 << 20), ("2 GiB", 2 << 30), ("1.5GiB", 3 << 29), ("100MB", 100 * 10**6)],
)
def test_sizes_take_suffixes(tmp_path: Path, text: str, size_bytes: int) -> None:
    assert load(tmp_path, "", f"memory.device_bytes={text}").memory.device_bytes == size_bytes
    assert load(tmp_path, f'[memory]\ndevice_bytes = "{text}"').memory.device_bytes == size_bytes


def test_lists_and_tables_come_as_toml_and_one_path_as_it_stands(tmp_path: Path) -> None:
    assert load(tmp_path, "", 'kerneld.model_roots=["/a", "/b"]').kerneld.model_roots == (Path("/a"), Path("/b"))
    assert load(tmp_path, "", "kerneld.model_roots=/a").kerneld.model_roots == (Path("/a"),)
    for who in ("uid:1000", "group:ml", "cert:ana"):
        assert load(tmp_path, "", f'kerneld.users={{"{who}" = "lab/ana"}}').kerneld.users == {who: "lab/ana"}


def test_variables_of_the_clients_are_not_settings(tmp_path: Path) -> None:
    assert load(tmp_path, KERNELD_SOCKET="/elsewhere") == load(tmp_path)


def test_other_paths_follow_the_socket_and_the_state_directory(tmp_path: Path) -> None:
    config = load(tmp_path, "", "syscalls.socket=/tmp/here/k.sock", "kerneld.state_dir=/tmp/state")

    assert config.kerneld.runtime_dir == Path("/tmp/here")
    assert config.kerneld.worker_socket == Path("/tmp/here/worker.sock")
    assert config.kerneld.model_roots == (Path("/tmp/state/models"),)


def test_directories_given_by_systemd_are_the_defaults(tmp_path: Path) -> None:
    config = load(tmp_path, STATE_DIRECTORY="/var/lib/k", RUNTIME_DIRECTORY="/run/k")

    assert (config.kerneld.state_dir, config.syscalls.socket) == (Path("/var/lib/k"), Path("/run/k/kerneld.sock"))


@pytest.mark.parametrize(
    ("assignment", "told"),
    [
        ("kerneld.max_row=1", "did you mean 'kerneld.max_rows'"),
        ("memory.max_rows=1", "did you mean 'kerneld.max_rows'"),
        ("drivers.color=red", "kerneld config show"),
        ("kerneld.max_rows=many", "expected a whole number"),
        ("kerneld.max_rows=0", "expected at least 1"),
        ("kerneld.max_rows=true", "expected a whole number"),
        ("kerneld.detach_grace_s=nan", "expected a number"),
        ("kerneld.log_json=yes", "expected true or false"),
        ("memory.device_bytes=2GiX", 'such as 1048576, "512MiB" or "2GiB"'),
        ("drivers.dtype=float8", "expected one of float32, bfloat16, float16"),
        ("kerneld.state_dir=", "expected a path"),
        ("kerneld.users=7", "expected a table of strings"),
        ("max_rows=3", "expected section.key=value"),
        ("memory.slab_bytes=1TiB", "larger than memory.device_bytes"),
        ("memory.device_low=0.5", "above memory.device_high"),
        ("drivers.options={nativ='on'}", "The cpu driver has no option nativ; it has cpus"),
        ("drivers.options={isa='foo'}", "drivers.options: isa is 'foo'; this processor runs "),
        ("drivers.options={cpus='99999'}", "cpus names 99999; this process may use "),
        ("memory.host_low=0.5", "above memory.host_high"),
        ("memory.page_file_bytes=1MiB", "smaller than memory.slab_bytes"),
        ("kerneld.max_step_tokens=1", "kerneld.max_rows"),
        ('kerneld.users={"ana" = "lab"}', 'neither "uid:NUMBER" nor "group:NAME"'),
        ('kerneld.users={"uid:1" = "lab//x"}', "not a tenant path"),
        ("syscalls.tcp=8420", "is not HOST:PORT"),
        ("syscalls.tcp=0.0.0.0:8420", "set syscalls.tls_cert and syscalls.tls_key"),
        ("syscalls.tls_cert=/c.pem", "given together"),
        ("syscalls.tls_client_ca=/c.pem", "needs syscalls.tls_cert"),
        ("syscalls.metrics=10.0.0.1:9420", "must be on loopback"),
    ],
)
def test_a_wrong_setting_is_told_with_what_is_accepted(tmp_path: Path, assignment: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "", assignment)

    assert told in str(caught.value)
    assert assignment.partition("=")[0].split(".")[-1] in str(caught.value)


def test_a_disk_tier_needs_a_host_tier(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"memory\.page_file_bytes needs a host tier.*set memory\.host_bytes"):
        load(tmp_path, "", "memory.page_file_bytes=1GiB", "memory.host_bytes=0")


def test_a_host_tier_that_would_hold_no_slab_is_refused_and_not_left_out_in_silence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"memory\.host_bytes \(1048576\) is smaller than memory\.slab_bytes \(4194304\).* or .* to 0"):
        load(tmp_path, "", "memory.host_bytes=1MiB")

    assert load(tmp_path, "", "memory.host_bytes=1MiB", "memory.slab_bytes=1MiB").memory.host_bytes == 1 << 20
    assert load(tmp_path, "", "memory.host_bytes=0").memory.host_bytes == 0


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[memory]\nbytes = 1", "kerneld.toml: there is no key 'memory.bytes'"),
        ("[memori]\n", "there is no section [memori]"),
        ("memory = 1", "memory is a section"),
        ("[memory", "not TOML"),
    ],
)
def test_a_wrong_file_is_told_by_its_name(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)

    assert told in str(caught.value)
    assert "kerneld.toml" in str(caught.value)


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_config(tmp_path / "missing.toml", {})


@pytest.mark.parametrize("address", ["127.0.0.1:1", "localhost:1", "[::1]:1"])
def test_loopback_needs_no_tls(tmp_path: Path, address: str) -> None:
    assert load(tmp_path, "", f"syscalls.tcp={address}").syscalls.tcp == address


# ------------------------------------------------------------------------------------------------------------------------ several devices


TWO = """[memory]
host_bytes = "64MiB"
[drivers]
threads = 3
[[drivers.devices]]
name = "gpu0"
driver = "cuda"
device_bytes = "8GiB"
dtype = "bfloat16"
[[drivers.devices]]
name = "cpu0"
driver = "cpu"
options = { isa = "avx2" }
max_rows = 4
"""


def test_devices_are_listed_and_what_they_leave_out_is_as_in_the_other_sections(tmp_path: Path) -> None:
    found = config_by_device(load(tmp_path, TWO))

    assert list(found) == ["gpu0", "cpu0"]
    gpu, cpu = found["gpu0"], found["cpu0"]
    assert (gpu.drivers.use, gpu.drivers.dtype, gpu.memory.device_bytes, gpu.drivers.threads) == ("cuda", "bfloat16", 8 << 30, 3)
    assert (cpu.drivers.use, cpu.drivers.dtype, cpu.drivers.options, cpu.kerneld.max_rows) == ("cpu", "float32", {"isa": "avx2"}, 4)
    assert gpu.memory.host_bytes == cpu.memory.host_bytes == 64 << 20
    assert gpu.kerneld.page_file != cpu.kerneld.page_file


def test_one_device_is_called_after_its_driver_and_has_the_configuration_of_the_daemon(tmp_path: Path) -> None:
    config = load(tmp_path, "[drivers]\nuse = 'fake'\n")
    assert config_by_device(config) == {"fake0": config}


def test_devices_come_by_flag_and_read_back_as_they_are_shown(tmp_path: Path) -> None:
    config = load(tmp_path, "", 'drivers.devices=[{ name = "a", driver = "cpu", device_bytes = "1GiB" }, { name = "b", driver = "fake" }]')
    assert [device.name for device in config.drivers.devices] == ["a", "b"]
    assert load(tmp_path, render_config(config)) == config


@pytest.mark.parametrize(
    ("devices", "told"),
    [
        ('[{ name = "A", driver = "cpu" }]', "a device has the name 'A'; use 1 to 32 small letters"),
        ('[{ name = "a" }]', "a has no driver"),
        ('[{ name = "a", driver = "cpu" }, { name = "a", driver = "cpu" }]', "two devices have the name 'a'"),
        ('[{ name = "a", driver = "cpu", threds = 1 }]', r"there is no key drivers.devices\[a\].threds; there are name, driver, threads"),
        ('[{ name = "a", driver = "cpu", threads = -1 }]', r"drivers.devices\[a\].threads = -1: expected at least 0"),
        ('[{ name = "a", driver = "cpu", device_bytes = "1MiB" }]', "device a: memory.slab_bytes .* is larger than memory.device_bytes"),
        (
            '[{ name = "a", driver = "cpu", page_file_bytes = "1GiB", host_bytes = 0 }]',
            "device a: memory.page_file_bytes needs a host tier",
        ),
        ('[{ name = "a", driver = "cpu", options = { isa = "foo" } }]', "device a: drivers.options: isa is 'foo'"),
        ("7", "expected a list of devices such as"),
    ],
)
def test_a_wrong_device_is_told_with_its_name(tmp_path: Path, devices: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load(tmp_path, "", f"drivers.devices={devices}")
