"""The audit log: order, survival, and that every edit is seen."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from kerneld.calls import Principal, Role
from kerneld.state.audit import AuditLog
from kerneld.state.chain import Head, parse, seal, verify

ANN = Principal("ann", "lab/ann", frozenset({Role.USER}))


def written(folder: Path, num_entries: int, max_bytes: int = 1 << 20) -> list[bytes]:
    """Write a log, close it and return the lines of its newest file."""
    log = AuditLog(folder, clock=lambda: 1.5, max_bytes=max_bytes)
    for number in range(num_entries):
        log.append(ANN, "FreeContext", f"c{number}", "OK", {})
    log.close()
    return (folder / "audit.log").read_bytes().splitlines()


def test_entries_stand_in_the_order_in_which_they_were_appended(tmp_path: Path) -> None:
    entries = [parse(line) for line in written(tmp_path, 50)]
    assert [(entry.seq, entry.object_id) for entry in entries if entry] == [(number + 1, f"c{number}") for number in range(50)]
    assert verify(tmp_path) is None


def test_the_chain_goes_on_over_restarts_and_files(tmp_path: Path) -> None:
    for _ in range(3):
        log = AuditLog(tmp_path, clock=lambda: 1.5, max_bytes=1000)
        for _ in range(10):
            log.append(ANN, "FreeContext", "c", "OK", {"made": "x"})
            asyncio.run(log.flush())
        log.close()
    assert len(list(tmp_path.glob("audit-*.log"))) > 3
    assert verify(tmp_path) is None


def test_texts_that_json_cannot_hold_are_written_all_the_same(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    log.append(ANN, "AddTenant", "\ud800" + "x" * 10_000, "OK", {"\udfff": "\0"})
    log.close()
    assert verify(tmp_path) is None


# ---------------------------------------------------------------------------------------------------------------------------------- edits


def test_every_edit_of_one_byte_is_seen(tmp_path: Path) -> None:
    lines = written(tmp_path, 100)
    previous = Head().hash
    for line in lines:
        for offset in range(len(line)):
            for flip in (0x01, 0x20):  # the second changes case, and the spelling of an escape
                entry = parse(line[:offset] + bytes([line[offset] ^ flip]) + line[offset + 1 :])
                assert entry is None or entry != seal(entry, previous)
        sealed = parse(line)
        assert sealed is not None
        previous = sealed.hash


@pytest.mark.parametrize("name", ["audit.log", "audit.head"])
def test_every_edit_of_one_byte_in_the_files_is_seen(tmp_path: Path, name: str) -> None:
    written(tmp_path, 2)
    content = (tmp_path / name).read_bytes()
    with (tmp_path / name).open("r+b", buffering=0) as file:
        for offset in range(len(content)):
            for edited in (bytes([content[offset] ^ 1]) + content[offset + 1 :], content[offset + 1 :], b"\n" + content[offset:]):
                file.seek(offset)
                file.write(edited)
                file.truncate()
                assert (verify(tmp_path) is None) == (content[:offset] + edited == content)
            file.seek(0)
            file.write(content)
            file.truncate()
    assert verify(tmp_path) is None


def test_every_removed_or_exchanged_line_is_seen(tmp_path: Path) -> None:
    lines = written(tmp_path, 100)
    path = tmp_path / "audit.log"
    for idx in range(100):
        exchanged = lines.copy()
        exchanged[idx], exchanged[idx - 1] = exchanged[idx - 1], exchanged[idx]
        for edited in (lines[:idx] + lines[idx + 1 :], lines[:idx], lines[idx:][1:], exchanged):
            path.write_bytes(b"".join(line + b"\n" for line in edited))
            assert verify(tmp_path) is not None


def test_a_missing_file_is_seen(tmp_path: Path) -> None:
    for _ in range(4):
        written(tmp_path, 10, max_bytes=1000)
    for path in [*tmp_path.glob("audit-*.log"), tmp_path / "audit.log", tmp_path / "audit.head"]:
        content = path.read_bytes()
        path.unlink()
        assert verify(tmp_path) is not None
        path.write_bytes(content)
    assert verify(tmp_path) is None


@pytest.mark.parametrize("lost", ["audit.head", "lines"])
def test_what_was_lost_stays_seen_after_a_restart(tmp_path: Path, lost: str) -> None:
    lines = written(tmp_path, 10)
    if lost == "lines":
        (tmp_path / "audit.log").write_bytes(b"".join(line + b"\n" for line in lines[:5]))
    else:
        (tmp_path / lost).unlink()
    written(tmp_path, 10)
    assert verify(tmp_path) is not None


# -------------------------------------------------------------------------------------------------------------------------------- crashes


def test_a_line_that_a_crash_cut_is_no_tampering(tmp_path: Path) -> None:
    lines = written(tmp_path, 10)
    head = (tmp_path / "audit.head").read_bytes()
    written(tmp_path, 1)
    (tmp_path / "audit.head").write_bytes(head)  # the eleventh was being written
    eleventh = (tmp_path / "audit.log").read_bytes().splitlines()[10]
    for length in range(len(eleventh) + 1):
        (tmp_path / "audit.log").write_bytes(b"\n".join([*lines, eleventh[:length]]))
        assert verify(tmp_path) is None
    written(tmp_path, 1)
    assert verify(tmp_path) is None


def test_a_head_that_stayed_behind_is_no_tampering(tmp_path: Path) -> None:
    written(tmp_path, 10)
    head = (tmp_path / "audit.head").read_bytes()
    written(tmp_path, 5)
    (tmp_path / "audit.head").write_bytes(head)
    assert verify(tmp_path) is None
    written(tmp_path, 5)
    assert verify(tmp_path) is None
    assert len((tmp_path / "audit.log").read_bytes().splitlines()) == 20
