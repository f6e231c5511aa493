"""The engine's threads, by entry points that are there for this: parts are Python functions."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drivers.native.build import cpu_library

PART = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, ctypes.c_int)
DEADLINE_S = 20.0


class Threads:
    """`cpu/threads.h`."""

    def __init__(self, num_threads: int, cpus: list[int] | None = None) -> None:
        library = cpu_library().library
        assert library is not None
        self._library = library
        library.kd_threads_open.restype = ctypes.c_void_p
        places = None if cpus is None else (ctypes.c_int32 * len(cpus))(*cpus)
        self._handle: int | None = library.kd_threads_open(num_threads, places)

    def run(self, part: Callable[[int, int], None], num_parts: int) -> None:
        """Call `part(idx, thread)` for each."""
        self._library.kd_threads_run(ctypes.c_void_p(self._handle), PART(lambda _work, idx, thread: part(idx, thread)), None, num_parts)

    def close(self) -> None:
        """End them."""
        self._library.kd_threads_close(ctypes.c_void_p(self._handle))


@pytest.fixture
def threads() -> Iterator[Callable[..., Threads]]:
    made: list[Threads] = []

    def make(num_threads: int, cpus: list[int] | None = None) -> Threads:
        made.append(Threads(num_threads, cpus))
        return made[-1]

    yield make
    for one in made:
        one.close()


def tasks(name: str = "kd-") -> list[Path]:
    """Threads of this process with such a name."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        try:
            if (task / "comm").read_text().startswith(name):
                found.append(task)
        except OSError:  # it ended meanwhile
            continue
    return found


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that other threads bring about."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def new_tasks(before: set[Path], count: int) -> list[Path]:
    """Threads that were started since, once they have their names."""
    until(lambda: len(set(tasks()) - before) == count)
    return sorted(set(tasks()) - before)


def is_asleep(task: Path) -> bool:
    return (task / "stat").read_text().rpartition(")")[2].split()[0] == "S"


def switches(task: Path) -> int:
    """How often it began to wait by its own will."""
    [line] = [line for line in (task / "status").read_text().splitlines() if line.startswith("voluntary")]
    return int(line.split()[1])


@pytest.mark.parametrize("num_threads", [1, 2, 3, 8])
@pytest.mark.parametrize("num_parts", [0, 1, 2, 7, 200])
def test_every_part_is_done_once(threads: Callable[..., Threads], num_threads: int, num_parts: int) -> None:
    pool, done = threads(num_threads), []

    for _ in range(5):
        done.clear()
        pool.run(lambda idx, _thread: done.append(idx), num_parts)
        assert sorted(done) == list(range(num_parts))


def test_runs_follow_each_other_without_a_part_of_one_in_another(threads: Callable[..., Threads]) -> None:
    pool = threads(4)
    wrong: list[int] = []

    def work(run: int) -> Callable[[int, int], None]:
        started = run

        def part(_idx: int, _thread: int) -> None:
            if started != current[0]:
                wrong.append(started)

        return part

    current = [0]
    for run in range(400):
        current[0] = run
        pool.run(work(run), 1 + run % 9)

    assert not wrong


def test_another_thread_goes_on_where_one_is_held_up(threads: Callable[..., Threads]) -> None:
    pool, all_others = threads(2), threading.Event()
    done: list[int] = []

    def part(idx: int, _thread: int) -> None:
        if idx == 0:
            assert all_others.wait(DEADLINE_S)
        done.append(idx)
        if len(done) == 9:
            all_others.set()

    pool.run(part, 10)

    assert done[-1] == 0
    assert sorted(done) == list(range(10))


def test_a_thread_does_its_own_parts_from_the_front_and_then_those_of_others_from_the_end(threads: Callable[..., Threads]) -> None:
    pool, all_others = threads(2), threading.Event()
    done: list[int] = []

    def part(idx: int, _thread: int) -> None:
        if idx == 0:
            assert all_others.wait(DEADLINE_S)
        else:
            done.append(idx)
        if len(done) == 7:
            all_others.set()

    pool.run(part, 8)

    assert done == [4, 5, 6, 7, 3, 2, 1]  # by the other thread: the caller is held up


def threads_of_a_run(pool: Threads) -> set[int]:
    """Who takes part in a run of parts that take a while."""
    found: set[int] = set()

    def part(_idx: int, thread: int) -> None:
        found.add(thread)
        time.sleep(0.001)

    pool.run(part, 12)
    return found


@pytest.mark.parametrize("num_threads", [2, 3])
def test_a_thread_that_was_put_aside_rests_and_comes_back(threads: Callable[..., Threads], num_threads: int) -> None:
    pools: list[Threads] = []

    def held_up_together(together: threading.Barrier) -> Callable[[int, int], None]:
        def part(_idx: int, thread: int) -> None:
            together.wait()
            if thread:
                time.sleep(0.03)  # asleep, as if its processor had gone to somebody else

        return part

    def one_rests() -> bool:
        pools.append(threads(num_threads))
        pools[-1].run(held_up_together(threading.Barrier(num_threads, timeout=DEADLINE_S)), num_threads)
        return threads_of_a_run(pools[-1]) == set(range(num_threads - 1))

    until(one_rests)  # a thread that is slow to end its part may still take one of the next run
    until(lambda: threads_of_a_run(pools[-1]) == set(range(num_threads)))


def test_a_thread_that_works_longer_than_the_others_does_not_rest(threads: Callable[..., Threads]) -> None:
    together = threading.Barrier(2, timeout=DEADLINE_S)

    def part(_idx: int, thread: int) -> None:
        together.wait()
        end = time.thread_time() + 0.03
        while thread and time.thread_time() < end:
            pass

    def all_go_on() -> bool:
        pool = threads(2)
        pool.run(part, 2)
        return threads_of_a_run(pool) == {0, 1}

    until(all_go_on)  # where the machine is busy, the thread is really put aside now and then


def test_parts_are_told_which_thread_does_them(threads: Callable[..., Threads]) -> None:
    pool, both = threads(2), threading.Barrier(2, timeout=DEADLINE_S)
    found: dict[int, int] = {}

    def part(idx: int, thread: int) -> None:
        found[thread] = threading.get_ident()
        both.wait()

    pool.run(part, 2)

    assert sorted(found) == [0, 1]
    assert found[0] == threading.get_ident()


def test_threads_sleep_between_runs(threads: Callable[..., Threads]) -> None:
    before = set(tasks())
    pool = threads(4)
    pool.run(lambda _idx, _thread: None, 20)
    mine = new_tasks(before, 3)

    until(lambda: all(is_asleep(task) for task in mine))
    slept = {task: switches(task) for task in mine}
    time.sleep(0.1)

    assert {task: switches(task) for task in mine} == slept  # they do not wake up to look


def test_sleepers_are_woken_by_the_next_run(threads: Callable[..., Threads]) -> None:
    before = set(tasks())
    pool = threads(2)
    [mine] = new_tasks(before, 1)

    for _ in range(10):
        until(lambda: is_asleep(mine))
        until(lambda: threads_of_a_run(pool) == {0, 1})


def test_pools_come_and_go(threads: Callable[..., Threads]) -> None:
    before = len(tasks())
    for idx in range(60):
        pool = Threads(1 + idx % 4)
        if idx % 3:
            pool.run(lambda _idx, _thread: None, 5)
        pool.close()

    assert len(tasks()) == before


def test_several_pools_work_at_once(threads: Callable[..., Threads]) -> None:
    pools = [threads(3) for _ in range(3)]
    done: list[list[int]] = [[] for _ in pools]

    def use(which: int) -> None:
        for _ in range(30):
            pools[which].run(lambda idx, _thread: done[which].append(idx), 10)

    callers = [threading.Thread(target=use, args=(which,)) for which in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()

    assert [sorted(each) for each in done] == [sorted(list(range(10)) * 30)] * 3


def test_threads_stay_where_they_were_put(threads: Callable[..., Threads]) -> None:
    before = set(tasks())
    cpu = max(os.sched_getaffinity(0))
    pool = threads(2, [-1, cpu])
    [mine] = new_tasks(before, 1)
    pool.run(lambda _idx, _thread: None, 2)

    until(lambda: os.sched_getaffinity(int(mine.name)) == {cpu})
    assert cpu in os.sched_getaffinity(0)


def test_a_processor_that_is_not_there_is_no_trouble(threads: Callable[..., Threads]) -> None:
    pool = threads(2, [-1, 1023])
    done: list[int] = []

    pool.run(lambda idx, _thread: done.append(idx), 10)

    assert sorted(done) == list(range(10))
