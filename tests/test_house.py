"""The rules of the house, over the syntax tree of every source file (ARCHITECTURE.md, section 1).

memory < drivers < kerneld < syscalls < cli: a folder imports only from folders below it, and no import circle runs through its files.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SDK = ROOT / "sdk" / "python"
FLOORS = ("memory", "drivers", "kerneld", "syscalls", "cli")
OURS = (*FLOORS, "kerneld_client")

MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 50
# Files that may be longer, and how long: each is one noun that reads worse in two.
LONGER_FILES = {"drivers/contract.py": 440, "kerneld/calls.py": 610, "kerneld/events.py": 440, "kerneld_client/values.py": 450}

# The files of `kernelctl` know only what any user's program knows; the others of cli/ may see the tower.
DAEMON_COMMANDS = {"cli/daemon.py", "cli/serve.py", "cli/doctor.py", "cli/host.py", "cli/sim.py", "cli/state.py"}
KERNELCTL_MAY_IMPORT = {"kerneld_client", "click", "rich", "yaml", "cli"}
# What a floor may take from one below, where that is less than all of it. The host tier is mapped by the front too; the configuration is
# composed of every floor's section.
DOORS = {
    ("drivers", "memory"): {"memory.page"},
    ("kerneld", "drivers"): {
        "drivers.contract",
        "drivers.client",
        "drivers.sim",
        "drivers.listener",
        "drivers.wire",
        "drivers.registry",
        "drivers.errors",
        "drivers.config",
        "drivers.hostmem",
        "drivers.page_header",
        "drivers.gguf",
    },
    ("syscalls", "memory"): {"memory.errors", "memory.remedy"},
    ("syscalls", "drivers"): {"drivers.errors", "drivers.contract"},
    # Handlers do their work through the kernel alone; the interceptors ask security.
    ("syscalls", "kerneld"): {
        "kerneld.kernel",
        "kerneld.calls",
        "kerneld.errors",
        "kerneld.config",
        "kerneld.events",
        "kerneld.devicereport",
        "kerneld.holdings",
        "kerneld.metrics",
        "kerneld.security.acl",
        "kerneld.security.identity",
        "kerneld.usage.amounts",
        "kerneld.usage.report",
        "kerneld.state.audit",
    },
}

# The loop tops, where any error may be caught: it is logged, and fails one request or one life. A worker has two threads, so two of them.
# The conformance suite runs code of strangers, and reports whatever it raises.
# A handler that undoes and raises again catches nothing, and may stand anywhere.
BROAD_CATCHES = {
    "syscalls/interceptors.py",
    "kerneld/dispatcher.py",
    "kerneld/supervisor.py",
    "drivers/server.py",
    "drivers/side_thread.py",
    "drivers/conformance.py",
}
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "marshal", "shelve"}
FORBIDDEN_CALLS = {"eval", "exec", "torch.load"}


def source_files() -> list[Path]:
    """Every Python file of the tower and of the client, generated ones excepted."""
    folders = [ROOT / floor for floor in FLOORS] + [SDK / "kerneld_client"]
    return sorted(path for folder in folders for path in folder.rglob("*.py") if "pb" not in path.parts)


def name_of(path: Path) -> str:
    """Path as the rules above write it: from the root, or from sdk/python."""
    return str(path.relative_to(SDK if path.is_relative_to(SDK) else ROOT))


def module_of(path: Path) -> str:
    """Dotted module name of a file."""
    return name_of(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@cache
def tree_of(path: Path) -> ast.Module:
    """Syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


MODULES = {module_of(path): path for path in source_files()}
FILES = [pytest.param(path, id=name_of(path)) for path in source_files()]


def imports_of(path: Path) -> Iterator[str]:
    """Full module names that a file imports, anywhere in it; `from a import b` gives a.b where that is a module of ours."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno} imports by relative dots"
            module = node.module or ""
            yield from (f"{module}.{alias.name}" if f"{module}.{alias.name}" in MODULES else module for alias in node.names)


def floor_of(module: str) -> str:
    """First part of a module name."""
    return module.partition(".")[0]


@pytest.mark.parametrize("path", FILES)
def test_a_folder_imports_only_from_folders_below_it(path: Path) -> None:
    here = floor_of(module_of(path))
    below: tuple[str, ...] = FLOORS[: FLOORS.index(here) + 1] if here in FLOORS else (here,)
    allowed = {*below, "kerneld_client"} if here in ("syscalls", "cli") else set(below)

    upward = {module for module in imports_of(path) if floor_of(module) in OURS and floor_of(module) not in allowed}

    assert not upward, f"{name_of(path)} imports {sorted(upward)} from above"


@pytest.mark.parametrize("path", FILES)
def test_each_floor_keeps_to_the_doors_of_the_floors_below(path: Path) -> None:
    assert [module for module in sorted(set(imports_of(path))) if not is_door(name_of(path), module)] == []


def test_kernelctl_files_do_not_import_the_files_of_the_daemon_command() -> None:
    daemon_modules = {module_of(ROOT / name) for name in DAEMON_COMMANDS if (ROOT / name).exists()}
    files = [path for path in source_files() if floor_of(module_of(path)) == "cli" and name_of(path) not in DAEMON_COMMANDS]

    assert {name_of(path) for path in files if daemon_modules & set(imports_of(path))} == set()


def test_only_status_maps_the_errors_of_other_floors_to_grpc() -> None:
    below = {"memory.errors", "drivers.errors"}
    takers = {name_of(path) for path in source_files() if floor_of(module_of(path)) == "syscalls" and below & set(imports_of(path))}

    assert takers <= {"syscalls/status.py"}


def test_no_import_circle_runs_through_the_files() -> None:
    graph = {module: {other for other in imports_of(path) if other in MODULES and other != module} for module, path in MODULES.items()}
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"import circle: {' -> '.join(error.args[1])}")
    assert len(order) == len(MODULES)


@pytest.mark.parametrize("path", FILES)
def test_files_and_functions_stay_small(path: Path) -> None:
    num_lines = len(path.read_text(encoding="utf-8").splitlines())
    functions = [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = {node.name: (node.end_lineno or node.lineno) - node.lineno + 1 for node in functions}
    long = {name: length for name, length in lengths.items() if length > MAX_FUNCTION_LINES}

    assert num_lines <= LONGER_FILES.get(name_of(path), MAX_FILE_LINES), f"{name_of(path)} has {num_lines} lines"
    assert long == {}, f"functions of more than {MAX_FUNCTION_LINES} lines in {name_of(path)}"


@pytest.mark.parametrize("path", FILES)
def test_errors_are_caught_narrowly_outside_the_loop_tops(path: Path) -> None:
    handlers = [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.ExceptHandler) and not raises_again(node)]
    broad = [node.lineno for node in handlers if node.type is None or {"Exception", "BaseException"} & names_in(node.type)]

    assert broad == [] or name_of(path) in BROAD_CATCHES, f"{name_of(path)} catches everything in lines {broad}"


@pytest.mark.parametrize("path", FILES)
def test_nothing_stored_is_ever_run_as_code(path: Path) -> None:
    calls = {ast.unparse(node.func) for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)}

    assert calls & FORBIDDEN_CALLS == set()
    assert {floor_of(module) for module in imports_of(path)} & FORBIDDEN_MODULES == set()


def test_tests_have_no_packages_of_their_own() -> None:
    assert list((ROOT / "tests").rglob("__init__.py")) == [], "tests/memory/__init__.py would hide memory/"


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("kerneld.daemon", {"torch", "transformers"}),
        ("kerneld_client", {"torch", "sqlalchemy", "msgspec", *FLOORS}),
        ("cli.main", {"torch", "sqlalchemy", "msgspec", "grpc", "kerneld", "drivers", "memory", "syscalls"}),
        ("cli.daemon", {"torch", "sqlalchemy", "grpc"}),
    ],
)
def test_importing_a_module_loads_nothing_heavy(module: str, unwanted: set[str]) -> None:
    if module not in MODULES:
        pytest.skip(f"{module} is not there yet")
    lines = [
        f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(SDK)!r}]",
        f"import {module}",
        "print(*{name.partition('.')[0] for name in sys.modules})",
    ]
    script = "\n".join(lines)

    finished = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)

    assert set(finished.stdout.split()) & unwanted == set()


def is_door(name: str, module: str) -> bool:
    """Whether the file `name` may import `module`, as far as the tightenings go."""
    here, floor = name.partition("/")[0], floor_of(module)
    is_standard = floor in sys.stdlib_module_names
    if here == "memory":
        return is_standard or floor == "memory"
    if here == "cli":
        return is_standard or name in DAEMON_COMMANDS or floor in KERNELCTL_MAY_IMPORT
    if here not in FLOORS:
        return floor not in FLOORS
    return floor == here or (here, floor) not in DOORS or module in DOORS[here, floor]


def raises_again(handler: ast.ExceptHandler) -> bool:
    """Whether a handler ends by raising what it caught."""
    last = handler.body[-1]
    return isinstance(last, ast.Raise) and last.exc is None


def names_in(node: ast.expr) -> set[str]:
    """Names of the classes in an `except` clause."""
    return {item.id for item in ast.walk(node) if isinstance(item, ast.Name)}
