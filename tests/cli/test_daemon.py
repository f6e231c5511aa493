"""kerneld: the configuration on the command line, and its doctor."""

from __future__ import annotations

import json
import stat
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cli.daemon import cli
from cli.doctor import check_compiler, check_driver, check_native, check_package, version_key
from cli.findings import Finding, Level
from cli.host import check_cgroup, check_memory, check_page_file, check_sockets, check_state_dir
from kerneld.config import Config, ConfigError
from kerneld.deviceconfig import config_by_device
from kerneld.settings import load_config


def kerneld(*arguments: str, **environment: str) -> Result:
    """Run the command."""
    return CliRunner().invoke(cli, list(arguments), env=environment, prog_name="kerneld")


def config_of(tmp_path: Path, *assignments: str) -> Config:
    """A configuration in a folder of its own."""
    return load_config(None, {}, [f"kerneld.state_dir={tmp_path}/state", f"syscalls.socket={tmp_path}/k.sock", *assignments])


def by_name(findings: Iterator[Finding]) -> dict[str, Level]:
    """Levels of findings."""
    return {finding.name: finding.level for finding in findings}


def test_short_options_are_keys_and_set_wins(tmp_path: Path) -> None:
    shown = kerneld(
        *("config", "show", "--state", f"{tmp_path}/s", "--socket", f"{tmp_path}/k.sock"),
        *("--model-root", '/a "b"', "--model-root", "/c", "--set", "kerneld.state_dir=/wins"),
    )

    config = tomllib.loads(shown.stdout)
    assert config["kerneld"]["state_dir"] == "/wins"
    assert config["kerneld"]["model_roots"] == ['/a "b"', "/c"]
    assert config["kerneld"]["runtime_dir"] == str(tmp_path)
    assert config["syscalls"]["socket"] == f"{tmp_path}/k.sock"


def test_what_show_prints_is_a_good_file(tmp_path: Path) -> None:
    path = tmp_path / "kerneld.toml"
    path.write_text(kerneld("config", "show", "--set", "memory.host_bytes=3GiB").stdout)

    assert kerneld("config", "check", "--config", str(path)).output == "The configuration is good.\n"
    assert tomllib.loads(kerneld("config", "show", KERNELD_CONFIG=str(path)).stdout)["memory"]["host_bytes"] == "3GiB"


@pytest.mark.parametrize("command", [("serve",), ("config", "check"), ("doctor",)])
def test_a_wrong_configuration_ends_with_2_and_says_why(command: tuple[str, ...]) -> None:
    refused = kerneld(*command, "--set", "kerneld.max_row=3")

    assert refused.exit_code == 2
    assert "did you mean 'kerneld.max_rows'?" in refused.stderr


def test_a_variable_with_an_unknown_key_is_refused() -> None:
    assert "environment KERNELD_MEMORY__DEVICE" in kerneld("config", "show", KERNELD_MEMORY__DEVICE="1").stderr


def test_doctor_looks_at_everything_and_ends_with_1_where_something_fails(tmp_path: Path) -> None:
    folder = f"{tmp_path}/{'x' * 120}"
    looked = kerneld("doctor", "--state", f"{tmp_path}/state", "--socket", f"{folder}/k.sock", "--set", "drivers.use=none", "-o", "json")

    levels = {finding["name"]: finding["level"] for finding in json.loads(looked.stdout)}
    assert looked.exit_code == 1
    assert (levels["driver"], levels["socket"], levels["python"], levels["fsync"]) == ("fail", "fail", "ok", "ok")


def test_each_of_several_devices_is_looked_at_by_its_name() -> None:
    devices = 'drivers.devices=[{ name = "a", driver = "fake", dtype = "float16" }, { name = "b", driver = "none" }]'
    config = load_config(None, {}, [devices])
    found = [finding for name, each in config_by_device(config).items() for finding in check_driver(each, name)]

    levels = {finding.name: finding.level for finding in found}
    assert levels["driver of a"] is Level.OK
    assert levels["driver of b"] is Level.FAIL


def test_the_doctor_asks_a_driver_of_another_distribution_to_prove_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "other_drivers-2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-drivers\nVersion: 2.0\n")
    (info / "entry_points.txt").write_text("[kerneld.drivers]\nother = other_drivers:Driver\n")
    (tmp_path / "other_drivers.py").write_text("class Driver:\n    def probe(self):\n        raise SystemExit(5)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CACHE_DIRECTORY", raising=False)

    [refused] = check_driver(config_of(tmp_path, "drivers.use=other"))
    trusted = next(check_driver(config_of(tmp_path, "drivers.use=other", "drivers.trust=true")))

    assert (refused.name, refused.level, trusted.level) == ("conformance", Level.FAIL, Level.WARN)
    assert refused.detail.startswith("The driver other of other-drivers 2.0 is refused by the conformance suite: other lacks apply, close")


def test_a_package_must_be_there_and_new_enough() -> None:
    assert check_package("click", "1.0").level is Level.OK
    assert check_package("click", "999").level is Level.FAIL
    assert check_package("no-such-distribution", "0").level is Level.FAIL
    assert version_key("2.13.0+cpu") < version_key("2.14") < version_key("2.14.1rc1")


def test_both_compilers_of_native_code_are_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_compiler().level is Level.OK
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert (check_compiler().level, check_compiler().detail) == (Level.WARN, "no C++ compiler (no-such-compiler)")
    assert check_compiler().advice.endswith("sudo apt install g++")


def test_native_code_is_built_or_what_to_do_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_native().level is Level.OK, "the compiler of the tests' machine builds it"
    monkeypatch.setenv("KERNELD_ISA", "generic")
    assert "built for generic (KERNELD_ISA" in check_native().detail
    monkeypatch.setenv("KERNELD_ISA", "mmx")
    assert check_native().level is Level.WARN
    assert "'mmx'" in check_native().detail


def test_more_memory_than_there_is_fails(tmp_path: Path) -> None:
    assert check_memory(config_of(tmp_path, "memory.host_bytes=900TiB")).level is Level.FAIL
    assert check_memory(config_of(tmp_path, "memory.host_bytes=0", "memory.device_bytes=4MiB")).level is Level.OK


def test_a_state_dir_that_others_can_read_is_warned_of(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    config.kerneld.state_dir.mkdir(mode=0o755)
    config.kerneld.state_dir.chmod(0o755)
    assert by_name(check_state_dir(config))["state dir"] is Level.WARN

    config.kerneld.state_dir.chmod(stat.S_IRWXU)
    assert by_name(check_state_dir(config))["state dir"] is Level.OK


def test_a_full_disk_fails(tmp_path: Path) -> None:
    assert by_name(check_state_dir(config_of(tmp_path, "kerneld.disk_reserve_bytes=900TiB")))["disk"] is Level.FAIL


def test_a_socket_path_has_room_for_the_login_socket(tmp_path: Path) -> None:
    fits = config_of(tmp_path, f"syscalls.socket=/tmp/{'x' * 96}")
    assert by_name(check_sockets(fits)) == {"runtime dir": Level.OK, "daemon": Level.OK}

    assert by_name(check_sockets(config_of(tmp_path, f"syscalls.socket=/tmp/{'x' * 97}"))) == {"socket": Level.FAIL}


def test_every_limit_of_the_control_group_is_told(tmp_path: Path) -> None:
    (tmp_path / "self").write_text("0::/a/b\n")
    group = tmp_path / "a" / "b"
    group.mkdir(parents=True)
    for name, limit in (("memory.max", "1073741824"), ("cpu.max", "200000 100000"), ("pids.max", "max")):
        (group / name).write_text(limit + "\n")

    findings = list(check_cgroup(tmp_path / "self", tmp_path))

    assert [(finding.name, finding.detail) for finding in findings] == [
        ("memory.max", "limited to 1073741824"),
        ("cpu.max", "limited to 200000 100000"),
    ]


def test_the_doctor_looks_whether_the_page_file_has_room(tmp_path: Path) -> None:
    assert by_name(check_page_file(config_of(tmp_path))) == {}
    assert by_name(check_page_file(config_of(tmp_path, "memory.page_file_bytes=8MiB")))["page file"] is Level.OK
    assert by_name(check_page_file(config_of(tmp_path, "memory.page_file_bytes=900TiB")))["page file"] is Level.WARN


def test_a_disk_tier_without_a_host_tier_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="host_bytes"):
        config_of(tmp_path, "memory.page_file_bytes=1GiB", "memory.host_bytes=0")


@pytest.mark.parametrize("command", [("serve",), ("config", "check")])
def test_a_driver_that_nobody_has_is_refused_before_anything_starts(command: tuple[str, ...], tmp_path: Path) -> None:
    refused = kerneld(*command, "--state", f"{tmp_path}/state", "--set", "drivers.use=nosuch")
    assert refused.exit_code == 2
    assert "drivers.use is 'nosuch', and there is no such driver: there are cpu, cuda," in refused.stderr
    assert not (tmp_path / "state").exists()
