"""Settings: how configuration comes in and how it is shown.

A setting is one key as somebody wrote it. Settings are taken in this order, and a later one wins:

    1. the TOML file                     [memory]  device_bytes = "2GiB"
    2. environment KERNELD_SECTION__KEY  KERNELD_MEMORY__DEVICE_BYTES=2GiB
    3. flags --set section.key=value     --set memory.device_bytes=2GiB

A value from the environment or a flag is read as TOML where the key is not a plain string (`8`, `true`, `["/a", "/b"]`), and else as
it stands. Sizes (`..._bytes`) may have a suffix. An unknown key is an error that names the nearest known one. `KERNELD_` variables
without a double underscore are not settings (the clients use some).
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import Field, dataclass, fields
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

from drivers.config import DeviceConfig
from kerneld.config import Config, ConfigError, default_runtime_dir, default_state_dir
from kerneld.configcheck import check_config

PREFIX = "KERNELD_"
SUFFIXES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12} | {
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "TiB": 1 << 40,
}
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")

Values = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Setting:
    """One key as somebody wrote it: `source` says where, `is_text` that it has no type yet."""

    section: str
    key: str
    value: object
    source: str
    is_text: bool = False

    @property
    def name(self) -> str:
        """The key with its section."""
        return f"{self.section}.{self.key}"

    def error(self, expected: str) -> ConfigError:
        """An error that says where, what was given and what is accepted."""
        return ConfigError(f"{self.source}: {self.name} = {self.value!r}: expected {expected}.")


def load_config(path: Path | None, environment: Mapping[str, str], assignments: Iterable[str] = ()) -> Config:
    """Read the file (if any), the environment and `section.key=value` flags. Raises: ConfigError."""
    settings = [*read_file(path)] if path is not None else []
    settings += read_environment(environment)
    settings += [read_assignment(assignment) for assignment in assignments]
    values: Values = {section.name: {} for section in fields(Config)}
    known = known_fields()
    for setting in settings:
        if setting.name not in known:
            raise ConfigError(f"{setting.source}: there is no key {setting.name!r}{_nearest(setting.name, known)}.")
        values[setting.section][setting.key] = _value_of(setting, *known[setting.name])
    _follow_paths(values, environment)
    hints = get_type_hints(Config)
    config = Config(**{section: hints[section](**given) for section, given in values.items()})
    check_config(config)
    return config


def known_fields() -> dict[str, tuple[Field[Any], Any]]:
    """Field and type of every `section.key`, in the order of the file."""
    known: dict[str, tuple[Field[Any], Any]] = {}
    for section, section_class in get_type_hints(Config).items():
        known |= {f"{section}.{key}": found for key, found in _fields_of(section_class).items()}
    return known


def _fields_of(section_class: type[Any]) -> dict[str, tuple[Field[Any], Any]]:
    hints = get_type_hints(section_class)
    return {item.name: (item, hints[item.name]) for item in fields(section_class)}


# ---------------------------------------------------------------------------------------------------------------------------- sources


def read_file(path: Path) -> Iterator[Setting]:
    """Settings of a TOML file. Raises: ConfigError, if it cannot be read or is not TOML."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the configuration: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}.") from error
    sections = [section.name for section in fields(Config)]
    for section, table in tables.items():
        if section not in sections:
            raise ConfigError(f"{path}: there is no section [{section}]; there are {', '.join(sections)}.")
        if not isinstance(table, dict):
            raise ConfigError(f"{path}: {section} is a section: write [{section}] and its keys below it.")
        for key, value in table.items():
            yield Setting(section, key, value, str(path))


def read_environment(environment: Mapping[str, str]) -> Iterator[Setting]:
    """Settings of `KERNELD_SECTION__KEY` variables."""
    for variable, text in sorted(environment.items()):
        section, separator, key = variable.removeprefix(PREFIX).partition("__")
        if variable.startswith(PREFIX) and separator:
            yield Setting(section.lower(), key.lower(), text, f"environment {variable}", is_text=True)


def read_assignment(assignment: str) -> Setting:
    """The setting of one `section.key=value`. Raises: ConfigError."""
    name, separator, text = assignment.partition("=")
    section, dot, key = name.strip().partition(".")
    if not separator or not dot:
        raise ConfigError(f"--set {assignment}: expected section.key=value, such as memory.device_bytes=2GiB.")
    return Setting(section, key, text.strip(), "--set", is_text=True)


def _nearest(name: str, known: Iterable[str]) -> str:
    names = list(known)
    near = [other for other in names if other.partition(".")[2] == name.partition(".")[2]]
    near = near or difflib.get_close_matches(name, names, n=1, cutoff=0.75)
    return f"; did you mean {near[0]!r}?" if near else "; `kerneld config show` lists all keys"


def _follow_paths(values: Values, environment: Mapping[str, str]) -> None:
    """Fill in the paths that follow from others (see `kerneld.config`)."""
    kernel, syscalls = values["kerneld"], values["syscalls"]
    kernel.setdefault("state_dir", default_state_dir(environment))
    if "socket" in syscalls:
        kernel.setdefault("runtime_dir", syscalls["socket"].parent)
    kernel.setdefault("runtime_dir", default_runtime_dir(environment))
    syscalls.setdefault("socket", kernel["runtime_dir"] / "kerneld.sock")
    kernel.setdefault("worker_socket", kernel["runtime_dir"] / "worker.sock")
    kernel.setdefault("model_roots", (kernel["state_dir"] / "models",))


# ----------------------------------------------------------------------------------------------------------------------------- values


def _value_of(setting: Setting, field: Field[Any], kind: Any) -> object:
    """The setting's value in the field's type and range. Raises: ConfigError."""
    value = _typed(setting, kind, field.name.endswith("_bytes"))
    choices, low, high = field.metadata.get("choices"), field.metadata.get("min"), field.metadata.get("max")
    if choices is not None and value not in choices:
        raise setting.error("one of " + ", ".join(choices))
    if low is not None and value < low:
        raise setting.error(f"at least {low}")
    if high is not None and value > high:
        raise setting.error(f"at most {high}")
    return value


def _typed(setting: Setting, kind: Any, is_size: bool) -> Any:
    value = _parse_text(str(setting.value)) if setting.is_text and kind not in (str, Path, Path | None) else setting.value
    if kind is bool and isinstance(value, bool):
        return value
    if kind is int and not isinstance(value, bool):
        if is_size and isinstance(value, str):
            return _parse_size(setting, value)
        if isinstance(value, int):
            return value
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf"):
        return float(value)
    if kind is str and isinstance(value, str):
        return value
    if kind in (Path, Path | None) and isinstance(value, str):
        return _path(setting, value, kind)
    if kind == tuple[Path, ...]:
        items = [value] if setting.is_text and isinstance(value, str) else value
        if isinstance(items, list) and all(isinstance(item, str) for item in items):
            return tuple(_path(setting, item, Path) for item in items)
    if kind == Mapping[str, str] and isinstance(value, dict) and all(isinstance(item, str) for item in value.values()):
        return value
    if kind == tuple[DeviceConfig, ...] and isinstance(value, list) and all(isinstance(item, dict) for item in value):
        return tuple(_device(setting, item) for item in value)
    raise setting.error(_expected(kind, is_size))


def _device(setting: Setting, given: Mapping[str, object]) -> DeviceConfig:
    """One of a list of devices, whose keys are checked like any others. Raises: ConfigError."""
    section, known = f"{setting.name}[{given.get('name', '')}]", _fields_of(DeviceConfig)
    values: dict[str, Any] = {}
    for key, value in given.items():
        if key not in known:
            raise ConfigError(f"{setting.source}: there is no key {section}.{key}; there are {', '.join(known)}.")
        item, kind = known[key]
        kind = next((each for each in get_args(kind) if each is not NoneType), kind) if NoneType in get_args(kind) else kind
        values[key] = _value_of(Setting(section, key, value, setting.source), item, kind)
    return DeviceConfig(**values)


def _parse_text(text: str) -> object:
    """Text as TOML where it is that, else as it stands."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _parse_size(setting: Setting, text: str) -> int:
    match = SIZE.fullmatch(text.strip())
    if match is None or match[2] not in SUFFIXES:
        raise setting.error(_expected(int, is_size=True))
    return int(float(match[1]) * SUFFIXES[match[2]]) if "." in match[1] else int(match[1]) * SUFFIXES[match[2]]


def _path(setting: Setting, text: str, kind: Any) -> Path | None:
    """An absolute path; "~" is the user's home, and empty is none where there may be none."""
    if not text:
        if kind == Path | None:
            return None
        raise setting.error("a path")
    return Path(text).expanduser().absolute()


def _expected(kind: Any, is_size: bool) -> str:
    if is_size:
        return 'a size such as 1048576, "512MiB" or "2GiB"'
    names: dict[Any, str] = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "a string",
        tuple[Path, ...]: 'a list of paths such as ["/srv/models"]',
        Mapping[str, str]: 'a table of strings such as { "uid:1000" = "lab/ana" }',
        tuple[DeviceConfig, ...]: 'a list of devices such as [{ name = "cpu0", driver = "cpu", device_bytes = "2GiB" }]',
    }
    return names.get(kind, "a path")


# ------------------------------------------------------------------------------------------------------------------------------- show


def render_config(config: Config) -> str:
    """The configuration as TOML with a comment for every key; reading it gives the same configuration."""
    lines = [
        "# Configuration of kerneld. Any key may be left out: its default then holds.",
        "# Order: this file, KERNELD_SECTION__KEY, --set section.key=value.",
    ]
    for section in fields(Config):
        part = getattr(config, section.name)
        lines += ["", f"[{section.name}]"]
        for item in fields(part):
            lines += [f"# {item.metadata['doc']}{_range(item)}", f"{item.name} = {_toml(getattr(part, item.name), item.name)}"]
    return "\n".join(lines) + "\n"


def _range(field: Field[Any]) -> str:
    if "choices" in field.metadata:
        return f" One of {', '.join(field.metadata['choices'])}."
    low, high = field.metadata.get("min"), field.metadata.get("max")
    if high is not None:
        return f" From {_toml(low, field.name)} to {_toml(high, field.name)}."
    return f" At least {_toml(low, field.name)}." if low else ""


def _toml(value: object, name: str) -> str:
    if value is None:
        return '""'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and name.endswith("_bytes"):
        return _size_text(value)
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(item, name) for item in value) + "]"
    if isinstance(value, DeviceConfig):
        given = ((item.name, getattr(value, item.name)) for item in fields(value))
        return "{ " + ", ".join(f"{key} = {_toml(each, key)}" for key, each in given if each is not None) + " }"
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{quoted(key)} = {quoted(item)}" for key, item in value.items()) + " }" if value else "{}"
    return quoted(str(value))


def _size_text(size_bytes: int) -> str:
    for suffix in ("TiB", "GiB", "MiB", "KiB"):
        if size_bytes and size_bytes % SUFFIXES[suffix] == 0:
            return f'"{size_bytes // SUFFIXES[suffix]}{suffix}"'
    return str(size_bytes)


def quoted(text: str) -> str:
    """A TOML basic string; control characters are written as escapes."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() or ord(c) > 0x7F else f"\\u{ord(c):04x}" for c in escaped) + '"'
