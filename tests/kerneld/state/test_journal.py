"""The token journal: what survives, what is cut, what is refused."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from pathlib import Path

import pytest

from kerneld.errors import DataLoss, DiskFull
from kerneld.state.journal import Journal
from kerneld.state.records import Free, Record, Suspend, Tokens, Truncate, pack_tokens
from kerneld.state.segment import HEADER_BYTES
from tests.kerneld.small_disk import full_disk

ROW = bytes(range(16))
BOOT = b"b" * 16
OTHER_BOOT = b"c" * 16


def step(*tokens: int) -> Tokens:
    return Tokens(((ROW, pack_tokens(tokens)),))


def opened(path: Path, machine_boot: bytes = BOOT, **options: int) -> tuple[Journal, list[Record]]:
    journal = Journal(path, machine_boot=machine_boot, **options)
    return journal, list(journal.replay())


def written(path: Path, *appends: list[Record]) -> Path:
    """Append to a fresh journal, leave it as after kill -9, and return the segment's path."""
    journal, _ = opened(path)
    for records in appends:
        journal.append(records)
    return path / "000000000001.log"


def test_records_come_back_in_order_after_a_death(tmp_path: Path) -> None:
    records: list[Record] = [step(1, 2, 3), Suspend(ROW), step(4)]
    written(tmp_path, records[:2], records[2:])
    assert opened(tmp_path)[1] == records


def test_records_come_back_over_many_lives(tmp_path: Path) -> None:
    for life in range(5):
        journal, records = opened(tmp_path)
        assert records == [step(before) for before in range(life)]
        journal.append([step(life)])
        journal.close()


def test_a_full_segment_is_followed_by_another(tmp_path: Path) -> None:
    journal, _ = opened(tmp_path, segment_bytes=200)
    for token in range(50):
        journal.append([step(token)])
    journal.close()
    assert len(list(tmp_path.glob("*.log"))) > 5
    assert opened(tmp_path)[1] == [step(token) for token in range(50)]


def test_a_torn_append_is_cut_at_every_length(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal, _ = opened(tmp_path / "whole")
    journal.append([step(1)])
    kept = journal._segment.offset
    journal.append([step(2, 3)], [Suspend(ROW)])
    content = (tmp_path / "whole/000000000001.log").read_bytes()
    end = journal._segment.offset
    for length in range(kept, end):
        path = tmp_path / str(length)
        path.mkdir()
        (path / "000000000001.log").write_bytes(content[:length] + bytes(len(content) - length))  # the rest is still as it was allocated
        caplog.clear()
        _, records = opened(path)
        assert records == [step(1)]  # all records of an append, or none
        assert (length == kept) or caplog.messages


def test_what_is_appended_after_a_cut_is_kept(tmp_path: Path) -> None:
    segment = written(tmp_path, [step(1)], [step(2)])
    content = segment.read_bytes().rstrip(b"\0")
    segment.write_bytes(content[:-3])
    journal, records = opened(tmp_path)
    assert records == [step(1)]
    journal.append([step(9)])
    assert opened(tmp_path)[1] == [step(1), step(9)]


def outcome(path: Path) -> list[Record] | str:
    """Return the records of a journal, or the name of the file that is damaged."""
    try:
        return opened(path)[1]
    except DataLoss as error:
        return Path(error.facts["file"]).name


def test_every_flipped_byte_is_refused_or_cut_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    segment = written(tmp_path / "whole", [step(1)], [step(2)], [Suspend(ROW)])
    content = segment.read_bytes()
    outcomes = []
    for offset in range(len(content.rstrip(b"\0"))):
        path = tmp_path / str(offset)
        path.mkdir()
        (path / segment.name).write_bytes(content[:offset] + bytes([content[offset] ^ 0x20]) + content[offset + 1 :])
        outcomes.append(outcome(path))
    cut = [result for result in outcomes if result != segment.name]
    assert all(result == [step(1), step(2)] for result in cut)
    assert len(caplog.messages) == len(cut) <= 4  # only the length of the very last record can read like a torn append


def test_damage_before_whole_records_names_file_and_offset(tmp_path: Path) -> None:
    segment = written(tmp_path, [step(1)], [step(2)], [step(3)])
    content = bytearray(segment.read_bytes())
    content[HEADER_BYTES] ^= 0xFF  # the first record's length
    segment.write_bytes(content)
    with pytest.raises(DataLoss) as caught:
        opened(tmp_path)
    assert caught.value.facts == {"file": str(segment), "offset": str(HEADER_BYTES)}
    assert segment.read_bytes() == content


def test_damage_in_a_sealed_segment_is_refused_even_at_its_end(tmp_path: Path) -> None:
    for token in range(3):
        journal, _ = opened(tmp_path)
        journal.append([step(token)])
        journal.close()
    segment = tmp_path / "000000000002.log"
    segment.write_bytes(segment.read_bytes()[:HEADER_BYTES])  # cut at a record's border
    with pytest.raises(DataLoss, match=r"000000000002\.log"):
        opened(tmp_path)


@pytest.mark.parametrize("number", [1, 2])
def test_a_missing_segment_is_refused(tmp_path: Path, number: int) -> None:
    for token in range(3):
        journal, _ = opened(tmp_path)
        journal.append([step(token)])
        journal.close()
    (tmp_path / f"{number:012d}.log").unlink()
    with pytest.raises(DataLoss, match=f"misses segment {number}"):
        opened(tmp_path)


def holed(path: Path) -> Path:
    """Return a segment whose second of three records is gone, as a power cut leaves unsynced pages."""
    journal, _ = opened(path)
    journal.append([step(1)])
    start = journal._segment.offset
    journal.append([step(2)])
    end = journal._segment.offset
    journal.append([step(3)])
    segment = path / "000000000001.log"
    content = segment.read_bytes()
    segment.write_bytes(content[:start] + bytes(end - start) + content[end:])
    return segment


def test_a_hole_of_unsynced_records_is_cut_after_a_restart_of_the_machine(tmp_path: Path) -> None:
    holed(tmp_path)
    assert opened(tmp_path, OTHER_BOOT)[1] == [step(1)]


def test_the_same_hole_is_damage_while_the_machine_ran_on(tmp_path: Path) -> None:
    holed(tmp_path)
    with pytest.raises(DataLoss):
        opened(tmp_path, BOOT)


def test_a_hole_in_synced_records_is_damage_even_after_a_restart(tmp_path: Path) -> None:
    journal, _ = opened(tmp_path)
    start = journal._segment.offset
    journal.append([step(1)])
    end = journal._segment.offset
    asyncio.run(journal.sync())
    journal.append([step(2)])
    segment = tmp_path / "000000000001.log"
    content = segment.read_bytes()
    segment.write_bytes(content[:start] + bytes(end - start) + content[end:])
    with pytest.raises(DataLoss):
        opened(tmp_path, OTHER_BOOT)


def test_a_record_hidden_in_tokens_is_not_believed(tmp_path: Path) -> None:
    journal, _ = opened(tmp_path)
    journal.append([Suspend(ROW)])
    segment = tmp_path / "000000000001.log"
    hidden = segment.read_bytes()[HEADER_BYTES : journal._segment.offset]
    other, _ = opened(tmp_path / "other")
    other.append([Tokens(((ROW, hidden + bytes(64)),))])
    victim = tmp_path / "other/000000000001.log"
    victim.write_bytes(victim.read_bytes()[: other._segment.offset - 8])  # torn behind the hidden record
    assert opened(tmp_path / "other")[1] == []


def test_replay_comes_before_append(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    with pytest.raises(RuntimeError):
        journal.append([step(1)])


# ------------------------------------------------------------------------------------------------------------------------------ compaction


def first_only(records: Iterable[Record]) -> Iterable[Record]:
    return list(records)[:1]


def test_a_compaction_replaces_the_sealed_segments(tmp_path: Path) -> None:
    async def scenario() -> None:
        journal, _ = opened(tmp_path)
        journal.append([step(1), step(2)])
        await journal.compact(first_only)
        journal.append([step(3)])

    asyncio.run(scenario())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000000000002.log", "000000000002.snapshot"]
    assert opened(tmp_path)[1] == [step(1), step(3)]


def test_a_compaction_of_a_compaction_keeps_everything(tmp_path: Path) -> None:
    async def scenario() -> None:
        journal, _ = opened(tmp_path)
        for token in range(10):
            journal.append([step(token)])
            await journal.compact(list)

    asyncio.run(scenario())
    assert opened(tmp_path)[1] == [step(token) for token in range(10)]


def test_appends_go_on_while_a_compaction_runs(tmp_path: Path) -> None:
    async def scenario() -> None:
        journal, _ = opened(tmp_path)
        journal.append([step(0)])
        compaction = asyncio.create_task(journal.compact(list))
        for token in range(1, 20):
            journal.append([step(token)])
            await asyncio.sleep(0)
        await compaction

    asyncio.run(scenario())
    assert opened(tmp_path)[1] == [step(token) for token in range(20)]


def test_a_grown_log_asks_for_a_compaction(tmp_path: Path) -> None:
    journal, _ = opened(tmp_path)
    assert not journal.needs_compaction
    for _ in range(4):
        journal.rotate()
    assert journal.needs_compaction
    asyncio.run(journal.compact(list))
    assert not journal.needs_compaction


def test_every_flipped_or_missing_byte_of_a_snapshot_is_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        journal, _ = opened(tmp_path)
        journal.append([step(1), Truncate(ROW, 1), Free(ROW)])
        await journal.compact(list)
        journal.close()

    asyncio.run(scenario())
    snapshot = tmp_path / "000000000002.snapshot"
    content = snapshot.read_bytes()
    broken = [content[:offset] + bytes([content[offset] ^ 1]) + content[offset + 1 :] for offset in range(len(content))]
    for damaged in [*broken, *(content[:length] for length in range(len(content))), content + b"\0"]:
        snapshot.write_bytes(damaged)
        with pytest.raises(DataLoss, match="snapshot"):
            opened(tmp_path)


# ------------------------------------------------------------------------------------------------------------------------------------ sync


def test_callers_that_come_together_share_a_sync(tmp_path: Path) -> None:
    async def scenario() -> None:
        journal, _ = opened(tmp_path)
        journal.append([step(1)])
        await asyncio.gather(*(journal.sync() for _ in range(50)))
        assert journal._segment.synced == journal._segment.offset
        journal.close()

    asyncio.run(scenario())


def test_a_sync_that_ends_after_its_segment_was_sealed_is_good(tmp_path: Path) -> None:
    async def scenario() -> None:
        journal, _ = opened(tmp_path)
        journal.append([step(1)])
        sync = asyncio.create_task(journal.sync())
        await asyncio.sleep(0)
        journal.rotate()
        await sync
        journal.close()

    asyncio.run(scenario())
    assert opened(tmp_path)[1] == [step(1)]


# --------------------------------------------------------------------------------------------------------------------------------- reserve


def test_more_than_was_reserved_cannot_be_released(tmp_path: Path) -> None:
    journal, _ = opened(tmp_path)
    journal.reserve(100)
    journal.release(60)
    with pytest.raises(ValueError, match="released"):
        journal.release(60)
    assert journal.reserved_bytes == 40


def test_reserved_bytes_are_allocated_behind_the_records(tmp_path: Path) -> None:
    journal, _ = opened(tmp_path)
    journal.reserve(10 << 20)
    journal.append([step(1)])
    journal.rotate()
    assert (tmp_path / "000000000002.log").stat().st_blocks * 512 >= 10 << 20


def test_what_nobody_reserved_is_written_and_counted_beside_the_reserved_bytes(tmp_path: Path) -> None:
    journal, _ = opened(tmp_path)
    journal.reserve(10 << 20)
    journal.append_unreserved([step(1)])
    assert journal.reserved_bytes == 10 << 20
    journal.close()
    assert opened(tmp_path)[1] == [step(1)]


def nearly_full(path: Path, num_reserved: int) -> tuple[Journal, int]:
    """A journal with reserved bytes, and the size of its file."""
    journal, _ = opened(path)
    journal.reserve(num_reserved)
    journal.append([step(1)])
    return journal, (path / "000000000001.log").stat().st_size


def test_riders_go_along_in_the_same_write(tmp_path: Path) -> None:
    journal, _ = opened(tmp_path)
    assert journal.append([step(1)], [Suspend(ROW)])
    assert journal.append((), [Free(ROW)])
    assert opened(tmp_path)[1] == [step(1), Suspend(ROW), Free(ROW)]


def test_riders_take_nothing_that_is_reserved_and_no_append_fails_for_them(tmp_path: Path) -> None:
    journal, size_bytes = nearly_full(tmp_path, 2 << 20)
    rider = step(*range(1000))
    with full_disk(size_bytes):
        room = 0
        while journal.append([step(2)], [rider]):
            room += 1
        assert 0 < room < 500
        assert not journal.append((), [rider])
        for token in range(1000):
            assert not journal.append([step(token)], [rider])
    assert journal.append([step(3)], [rider])
    assert opened(tmp_path)[1].count(rider) == room + 1


def test_riders_stay_behind_on_a_disk_that_takes_nothing(tmp_path: Path) -> None:
    journal, _ = opened(tmp_path)
    with full_disk():
        assert not journal.append((), [Suspend(ROW)])
        with pytest.raises(DiskFull):
            journal.append([step(1)], [Suspend(ROW)])
    assert opened(tmp_path)[1] == []


def test_what_is_owed_goes_in_front_of_the_next_append(tmp_path: Path) -> None:
    journal, _ = opened(tmp_path)
    journal.owe(step(1))
    with full_disk(), pytest.raises(DiskFull):
        journal.append((), [Suspend(ROW)])
    assert journal.append((), [Free(ROW)])
    assert opened(tmp_path)[1] == [step(1), Free(ROW)]


@pytest.fixture(autouse=True)
def _warnings(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
