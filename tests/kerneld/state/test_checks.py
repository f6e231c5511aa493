"""Checks of a state directory: what is whole, what is damaged, and what is only unfinished."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from kerneld.state.checks import check_audit, check_database, check_journal
from tests.kerneld.state.test_journal import step, written


def database(path: Path) -> Path:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE tenants (path TEXT PRIMARY KEY)")
        connection.executemany("INSERT INTO tenants VALUES (?)", [(f"t{idx:05}",) for idx in range(2000)])
        connection.commit()
    return path


def test_a_whole_journal_is_counted(tmp_path: Path) -> None:
    written(tmp_path, [step(1), step(2)], [step(3)])

    part = check_journal(tmp_path, is_live=False)

    assert (part.num_checked, part.unit, part.problems) == (3, "records", ())


def test_damage_within_the_journal_is_found_and_nothing_is_changed(tmp_path: Path) -> None:
    path = written(tmp_path, [step(*range(100))], [step(2)])
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)

    part = check_journal(tmp_path, is_live=False)

    assert "there are records behind it" in part.problems[0]
    assert path.read_bytes() == content


def test_an_append_that_did_not_finish_is_told_of_only_when_nobody_appends(tmp_path: Path) -> None:
    path = written(tmp_path, [step(1)], [step(*range(50))])
    content = path.read_bytes()
    end = len(content.rstrip(b"\0"))
    path.write_bytes(content[: end - 20] + bytes(len(content) - end + 20))

    assert "did not finish" in check_journal(tmp_path, is_live=False).problems[0]
    assert check_journal(tmp_path, is_live=True).problems == ()


def test_a_missing_segment_is_found(tmp_path: Path) -> None:
    written(tmp_path, [step(1)])
    (tmp_path / "000000000001.log").rename(tmp_path / "000000000003.log")

    assert check_journal(tmp_path, is_live=False).problems


def test_a_database_is_looked_through(tmp_path: Path) -> None:
    path = database(tmp_path / "kerneld.db")
    assert (check_database(path).num_checked, check_database(path).problems) == (2000, ())
    content = bytearray(path.read_bytes())
    content[4096:8192] = b"\xff" * 4096
    path.write_bytes(content)

    assert check_database(path).problems
    assert check_database(tmp_path / "other.db").problems


def test_an_audit_log_that_is_not_there_has_nothing_wrong(tmp_path: Path) -> None:
    assert check_audit(tmp_path / "audit").problems == ()
