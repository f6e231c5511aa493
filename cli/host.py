"""What this machine gives the daemon: memory, disk, sockets, limits, systemd. Part of `kerneld doctor`."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from cli.findings import Finding, Level
from cli.render import bytes_text
from kerneld.config import Config
from kerneld.deviceconfig import config_by_device

MAX_SOCKET_PATH = 107  # bytes of sun_path, less the end mark
LOGIN_SUFFIX = ".login"
SLOW_FSYNC_S = 0.02
MIN_OPEN_FILES = 1024
GIB = 1 << 30
CGROUP = Path("/sys/fs/cgroup")


def examine_host(config: Config) -> Iterator[Finding]:
    """Look at the machine, for this configuration."""
    yield check_memory(config)
    yield check_huge_pages()
    yield from check_cgroup(Path("/proc/self/cgroup"), CGROUP)
    yield check_open_files()
    yield from check_state_dir(config)
    for each in config_by_device(config).values():
        yield from check_page_file(each)
    yield from check_sockets(config)
    yield from check_model_roots(config)
    yield from check_unit()


def check_memory(config: Config) -> Finding:
    """Whether what the tiers are to take is there now."""
    configs = config_by_device(config).values()
    wanted = sum(each.memory.host_bytes + (each.memory.device_bytes if each.drivers.use == "cpu" else 0) for each in configs)
    available = psutil.virtual_memory().available
    found = f"{bytes_text(available)} available, {bytes_text(wanted)} configured"
    if wanted > available:
        return Finding("memory", Level.FAIL, found, "Lower memory.device_bytes or memory.host_bytes.")
    return Finding("memory", Level.OK, found)


def check_huge_pages() -> Finding:
    """Transparent huge pages, which make large copies cheaper; not needed."""
    path = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    modes = path.read_text(encoding="ascii").split() if path.exists() else []
    mode = next((word.strip("[]") for word in modes if word.startswith("[")), "not there")
    return Finding("huge pages", Level.OK, f"transparent: {mode}")


def check_cgroup(membership: Path, root: Path) -> Iterator[Finding]:
    """Limits of the control group that this process is in."""
    lines = membership.read_text(encoding="utf-8").splitlines() if membership.exists() else []
    group = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), None)
    if group is None:
        yield Finding("cgroup", Level.OK, "no unified control group")
        return
    paths = {name: root / group / name for name in ("memory.max", "cpu.max", "pids.max")}
    limits = {name: path.read_text(encoding="ascii").strip() for name, path in paths.items() if path.exists()}
    narrow = {name: limit for name, limit in limits.items() if not limit.startswith("max")}
    for name, limit in narrow.items():
        yield Finding(name, Level.WARN, f"limited to {limit}", "See that the configured tiers and threads stay within it.")
    if not narrow:
        yield Finding("cgroup", Level.OK, "no limits")


def check_open_files() -> Finding:
    """How many files and sockets a process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < MIN_OPEN_FILES:
        return Finding("open files", Level.WARN, f"at most {soft}", f"ulimit -n {MIN_OPEN_FILES}, or LimitNOFILE= in the unit.")
    return Finding("open files", Level.OK, f"at most {soft}")


def check_state_dir(config: Config) -> Iterator[Finding]:
    """Permissions, room and speed of the state directory."""
    state_dir = config.kerneld.state_dir
    place = nearest_existing(state_dir)
    if not os.access(place, os.W_OK | os.X_OK):
        yield Finding("state dir", Level.FAIL, f"{place} cannot be written", f"Give yourself {place}, or set kerneld.state_dir.")
        return
    if place == state_dir and place.stat().st_mode & 0o077:
        yield Finding("state dir", Level.WARN, f"{place} is open to others", f"chmod 700 {place}")
    else:
        yield Finding("state dir", Level.OK, str(state_dir) if place == state_dir else f"{state_dir} will be made")
    free = shutil.disk_usage(place).free
    wanted = max(GIB, config.kerneld.disk_reserve_bytes + 2 * config.kerneld.journal_segment_bytes)
    if free < config.kerneld.disk_reserve_bytes:
        yield Finding("disk", Level.FAIL, f"{bytes_text(free)} free", "Free some: below kerneld.disk_reserve_bytes no work is admitted.")
    elif free < wanted:
        yield Finding("disk", Level.WARN, f"{bytes_text(free)} free", f"Have at least {bytes_text(wanted)} for journal and images.")
    else:
        yield Finding("disk", Level.OK, f"{bytes_text(free)} free")
    yield check_fsync(place)


def check_page_file(config: Config) -> Iterator[Finding]:
    """Whether the disk tier has the room that it may take, beside what is reserved for the journal."""
    most = config.memory.page_file_bytes
    if not most:
        return
    path = config.kerneld.page_file or config.kerneld.state_dir / "pages"
    place = nearest_existing(path.parent)
    if not os.access(place, os.W_OK | os.X_OK):
        yield Finding("page file", Level.FAIL, f"{place} cannot be written", f"Give yourself {place}, or set kerneld.page_file.")
        return
    taken = path.stat().st_blocks * 512 if path.exists() else 0
    free, reserve = shutil.disk_usage(place).free, config.kerneld.disk_reserve_bytes
    if free < most - taken + reserve:
        text = f"{bytes_text(free)} free, {bytes_text(most - taken)} wanted beside the reserve of {bytes_text(reserve)}"
        yield Finding("page file", Level.WARN, text, "Lower memory.page_file_bytes; pages that find no room on disk are computed again.")
    else:
        yield Finding("page file", Level.OK, f"up to {bytes_text(most)} in {path}")


def check_fsync(place: Path) -> Finding:
    """How long a small durable write takes there."""
    took = []
    with tempfile.TemporaryFile(dir=place) as file:
        for _ in range(8):
            file.write(bytes(4096))
            file.flush()
            started_at = time.perf_counter()
            os.fsync(file.fileno())
            took.append(time.perf_counter() - started_at)
    median_s = statistics.median(took)
    if median_s > SLOW_FSYNC_S:
        return Finding("fsync", Level.WARN, f"{median_s * 1e3:.1f} ms", "Durability `fsync` will be slow here; a local SSD is better.")
    return Finding("fsync", Level.OK, f"{median_s * 1e3:.1f} ms")


def check_sockets(config: Config) -> Iterator[Finding]:
    """The folder of the sockets, the length of their paths, and who listens there."""
    path = config.syscalls.socket
    longest = max(len(os.fsencode(path)) + len(LOGIN_SUFFIX), len(os.fsencode(config.kerneld.worker_socket)))
    if longest > MAX_SOCKET_PATH:
        yield Finding(
            "socket", Level.FAIL, f"a socket's path has {longest} bytes, {MAX_SOCKET_PATH} are possible", "Set a shorter syscalls.socket."
        )
        return
    place = nearest_existing(path.parent)
    if not os.access(place, os.W_OK | os.X_OK):
        yield Finding("runtime dir", Level.FAIL, f"{place} cannot be written", "Set syscalls.socket, or change the owner of the folder.")
        return
    yield Finding("runtime dir", Level.OK, str(path.parent) if place == path.parent else f"{path.parent} will be made")
    yield Finding("daemon", Level.OK, f"running, at {path}" if is_listening(path) else f"not running at {path}")


def check_model_roots(config: Config) -> Iterator[Finding]:
    """Folders that models may be loaded from."""
    for root in config.kerneld.model_roots:
        if root.is_dir() and os.access(root, os.R_OK | os.X_OK):
            yield Finding("model root", Level.OK, str(root))
        else:
            yield Finding("model root", Level.WARN, f"{root} is not a folder that can be read", "Make it, or set kerneld.model_roots.")


def check_unit() -> Iterator[Finding]:
    """The state of the system's own unit, where systemd runs."""
    if not Path("/run/systemd/system").is_dir() or shutil.which("systemctl") is None:
        yield Finding("systemd", Level.OK, "not running on this machine")
        return
    asked = subprocess.run(["systemctl", "is-active", "kerneld.service"], capture_output=True, text=True, timeout=10, check=False)
    state = asked.stdout.strip() or "unknown"
    if state == "failed":
        yield Finding("systemd", Level.WARN, "kerneld.service has failed", "journalctl -u kerneld -e")
    else:
        yield Finding("systemd", Level.OK, f"kerneld.service is {state}")


def nearest_existing(path: Path) -> Path:
    """The path itself, or the nearest folder above it that exists."""
    while not path.exists():
        path = path.parent
    return path


def is_listening(path: Path) -> bool:
    """Whether somebody answers on a unix socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(2.0)
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True
