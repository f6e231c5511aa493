"""Workloads from TOML files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from drivers.sim import StepModel
from kerneld.calls import Limits, Priority
from kerneld.simulation.arrivals import jobs_of
from kerneld.simulation.reading import read_workload
from kerneld.simulation.workload import Arrival, DeviceSpec, Fixed, Lognormal, Phase, Uniform, Workload, WorkloadInvalid

EXAMPLES = Path(__file__).resolve().parents[3] / "examples" / "workloads"
PLAIN = 'duration_s = 60\n[[tenant]]\npath = "a"\nrate = 1.0\n'


def read(tmp_path: Path, text: str) -> Workload:
    path = tmp_path / "w.toml"
    path.write_text(text)
    return read_workload(path)


def test_what_is_not_said_is_the_default(tmp_path: Path) -> None:
    workload = read(tmp_path, PLAIN)

    assert (workload.name, workload.duration_s, workload.seed, workload.device) == ("w", 60.0, 1, DeviceSpec())
    [tenant] = workload.tenants
    assert tenant.phases == (Phase(1.0),)
    assert (tenant.weight, tenant.input, tenant.output, tenant.priority) == (1, Fixed(256), Fixed(256), Priority.INTERACTIVE)


def test_everything_that_can_be_said_of_a_tenant(tmp_path: Path) -> None:
    workload = read(
        tmp_path,
        """
        name = "all"
        duration_s = 10
        seed = 9
        [[tenant]]
        path = "lab"
        weight = 3
        [[tenant]]
        path = "lab/ann"
        class = "batch"
        nice = -3
        deadline_s = 5.5
        max_tokens = 100
        limits = { max_running = 2, requests_per_minute = 30 }
        input = { low = 1, high = 9 }
        output = { mean = 20, sigma = 0.5, most = 90 }
        arrival = "onoff"
        rate = 2
        on_s = 1
        off_s = 2.5
        """,
    )

    lab, ann = workload.tenants
    assert (workload.name, workload.seed, lab.weight, lab.is_sending) == ("all", 9, 3, False)
    assert ann.phases == (Phase(2.0, Arrival.ONOFF, on_s=1.0, off_s=2.5),)
    assert (ann.input, ann.output, ann.max_tokens) == (Uniform(1, 9), Lognormal(20.0, 0.5, 90), 100)
    assert (ann.priority, ann.nice, ann.deadline_s) == (Priority.BATCH, -3, 5.5)
    assert ann.limits == Limits(max_running=2, requests_per_minute=30)
    assert workload.senders == ("lab/ann",)


def test_a_device_and_a_scheduler_of_ones_own(tmp_path: Path) -> None:
    workload = read(
        tmp_path,
        PLAIN
        + """
        [device]
        step_s = 0.01
        token_s = 0.001
        pages = 50
        page_tokens = 32
        host_pages = 7
        [scheduler]
        preempt_lag_us = 5
        gap_factor = 3
        input_ns = 1
        max_queued = 4
        """,
    )

    assert workload.device.costs == StepModel(0.01, 0.001)
    assert (workload.device.pool_tokens, workload.device.host_pages) == (1600, 7)
    assert (workload.scheduler.policy.preempt_lag_us, workload.scheduler.policy.gap_factor) == (5, 3.0)
    assert (workload.scheduler.tariff.input_ns, workload.scheduler.max_queued) == (1, 4)


def test_step_costs_come_from_a_file_beside_the_workload(tmp_path: Path) -> None:
    (tmp_path / "steps.json").write_text(json.dumps({"step_s": 0.1, "token_s": 0.2, "row_s": 0.3, "context_s": 0.4}))

    assert read(tmp_path, PLAIN + '[device]\ncosts = "steps.json"\n').device.costs == StepModel(0.1, 0.2, 0.3, 0.4)


def test_phases_and_traces(tmp_path: Path) -> None:
    phased = read(tmp_path, 'duration_s = 9\n[[tenant]]\npath = "a"\n[[tenant.phase]]\nrate = 1\nuntil_s = 4\n[[tenant.phase]]\nrate = 2\n')
    traced = read(tmp_path, 'duration_s = 9\n[[tenant]]\npath = "a"\narrival = "trace"\ntimes = [0, 1.5, 1.5]\n')

    assert phased.tenants[0].phases == (Phase(1.0, until_s=4.0), Phase(2.0))
    assert traced.tenants[0].trace == (0.0, 1.5, 1.5)


def test_a_replay_brings_its_tenants_along(tmp_path: Path) -> None:
    event = {"sequence": 1, "at": 5.0, "name": "RequestArrived"}
    facts = {"request": "1", "tenant": "lab/ann", "input_tokens": "3", "max_tokens": "4"}
    (tmp_path / "log.jsonl").write_text(json.dumps(event | {"facts": facts}) + "\n")
    workload = read(tmp_path, '[replay]\nfile = "log.jsonl"\n[[tenant]]\npath = "lab"\nweight = 5\n')

    assert [(tenant.path, tenant.weight) for tenant in workload.tenants] == [("lab", 5), ("lab/ann", 1)]
    assert (len(jobs_of(workload)), workload.duration_s, workload.senders) == (1, 1.0, ("lab/ann",))


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.name)
def test_the_examples_can_be_read(path: Path) -> None:
    assert jobs_of(read_workload(path))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("wieght = 2", r"tenant a: there is no key 'wieght'; did you mean 'weight'"),
        ("weight = 0", "tenant a: weight = 0: expected a whole number of at least 1"),
        ("weight = 1.5", "weight = 1.5"),
        ("weight = true", "weight = True"),
        ("deadline_s = -1", "deadline_s = -1: expected a number of at least 0"),
        ("nice = 99", "nice = 99"),
        ('class = "vip"', "class = 'vip': expected one of interactive, batch, idle"),
        ('arrival = "bursty"', "arrival = 'bursty': expected one of constant, poisson, onoff"),
        ('arrival = "onoff"', "on_s is missing"),
        ('arrival = "onoff"\non_s = 0\noff_s = 1', "on_s = 0: expected a number above 0"),
        ("input = 0", "input = 0"),
        ("input = { low = 5, high = 4 }", "input: high = 4: expected a whole number of at least 5"),
        ("input = { mean = 5 }", "input: sigma is missing"),
        ("input = { mean = 5, sigma = 1, most = 9, least = 2 }", "input: there is no key 'least'"),
        ('input = "long"', "input = 'long'"),
        ("limits = { max_runing = 1 }", "limits: there is no key 'max_runing'; did you mean 'max_running'"),
        ("limits = 3", "limits = 3: expected a table"),
        ("input = 5000", "input and output may have 5000 [+] 256 tokens"),
        ("max_tokens = 20000", "such a request could never run"),
        ('[[tenant]]\npath = "a"', "tenant 'a' is there twice"),
        ('[[tenant]]\npath = "b/c"\nrate = 1', "tenants are below 'b', which is no tenant"),
        ('[[tenant]]\npath = "a//c"\nrate = 1', "names are not empty"),
        ("[[tenant]]\nrate = 1", "tenant 2: path is missing"),
        ("[[tenant.phase]]\nrate = 1", "a rate here or in"),
        ("[device]\npages = 0", "device: pages = 0"),
        ("[device]\nstep_s = -1\ntoken_s = 1", "device: step_s = -1"),
        ("[device]\nstep_s = 0\ntoken_s = 0", "steps would take no time"),
        ("[device]\nstep_s = 1", "device: token_s is missing"),
        ('[device]\nstep_s = 1\ntoken_s = 1\ncosts = "x.json"', "either a file of step costs or step_s here"),
        ('[device]\ncosts = "absent.json"', "device: costs: .*absent.json"),
        ("[device]\nmax_rows = 64\nmax_step_tokens = 32", "max_step_tokens = 32: expected at least a token for each"),
        ("[device]\npage_bytes = 5000", "page_bytes = 5000: expected a multiple of 4096"),
        ("[scheduler]\nmax_step_tokens = 5", "scheduler: there is no key 'max_step_tokens'"),
        ("[scheduler]\npreempt_lag_us = 0.5", "preempt_lag_us = 0.5"),
        ("[scheduler]\noutput_ns = -1", "output_ns = -1"),
        ('[replay]\nfile = "absent.jsonl"', "cannot read the event log"),
        ("[divice]\npages = 1", "there is no key 'divice'; did you mean 'device'"),
    ],
)
def test_what_cannot_be_is_refused_with_file_and_key(tmp_path: Path, change: str, said: str) -> None:
    with pytest.raises(WorkloadInvalid, match=said) as refused:
        read(tmp_path, PLAIN + change + "\n")
    assert "w.toml" in str(refused.value) or "absent" in str(refused.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("duration_s = ", "not TOML"),
        ("duration_s = 5", "no tenant sends anything"),
        (PLAIN.replace("rate = 1.0", "rate = -1.0"), "rate = -1.0: expected a number of at least 0"),
        (PLAIN.replace("duration_s = 60", "duration_s = 0"), "duration_s = 0: expected a number above 0"),
        (PLAIN.replace("duration_s = 60\n", ""), "duration_s is missing"),
        ('duration_s = 9\n[[tenant]]\npath = "a"\n[[tenant.phase]]\nrate = 1\n[[tenant.phase]]\nrate = 2', "until_s is missing"),
        (
            'duration_s = 9\n[[tenant]]\npath = "a"\n[[tenant.phase]]\nrate = 1\nuntil_s = 5\n[[tenant.phase]]\nrate = 2\nuntil_s = 4',
            "until_s = 4: expected a number above 5",
        ),
        ('duration_s = 9\n[[tenant]]\npath = "a"\narrival = "trace"\ntimes = [2, 1]', "numbers that do not fall"),
        ('duration_s = 9\n[[tenant]]\npath = "a"\narrival = "trace"\ntimes = ["x"]', "a list of numbers"),
        ("duration_s = 9\ntenant = 3", "tenant = 3: expected tables"),
        ("duration_s = 9\ndevice = 3", "device = 3: expected a table"),
    ],
)
def test_a_workload_that_is_none_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(WorkloadInvalid, match=said):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            'duration_s = 1e6\n[[tenant]]\npath = "a"\n[[tenant]]\npath = "b"\nrate = 1e6\n',
            r"w\.toml: tenant b: about 1,000,000,000,000 requests would come in 1e\+06 s, 1,000,000,000,000 of them from it: at most 1,0",
        ),
        ('duration_s = 10\n[[tenant]]\npath = "a"\nrate = 60_000\n[[tenant]]\npath = "b"\nrate = 50_000\n', "tenant a: about 1,100,000"),
        ('duration_s = 1e300\n[[tenant]]\npath = "a"\nrate = 1e300\n', "about inf requests"),
    ],
)
def test_more_requests_than_can_be_drawn_are_refused_before_one_is(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(WorkloadInvalid, match=said):
        read(tmp_path, text)


def test_as_many_as_can_be_drawn_are_accepted(tmp_path: Path) -> None:
    assert read(tmp_path, 'duration_s = 10\n[[tenant]]\npath = "a"\nrate = 1e5\n').duration_s == 10.0


@pytest.mark.parametrize(
    ("sending", "count"),
    [
        ("rate = 2", 40),
        ('arrival = "onoff"\nrate = 2\non_s = 3\noff_s = 5', 18),
        ("[[tenant.phase]]\nrate = 1\nuntil_s = 4\n[[tenant.phase]]\nrate = 2\nuntil_s = 30\n[[tenant.phase]]\nrate = 9", 36),
        ('arrival = "trace"\ntimes = [0, 1.5, 19, 20, 21]', 3),
    ],
)
def test_as_many_come_as_are_expected(tmp_path: Path, sending: str, count: int) -> None:
    workload = read(tmp_path, f'duration_s = 20\n[[tenant]]\npath = "a"\n{sending}\n')

    assert workload.tenants[0].expected(workload.duration_s) == len(jobs_of(workload)) == count


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(WorkloadInvalid, match="cannot read the workload"):
        read_workload(tmp_path / "absent.toml")


def test_a_replay_takes_no_other_requests(tmp_path: Path) -> None:
    event = {"at": 5.0, "name": "RequestArrived", "facts": {"request": "1", "tenant": "a", "input_tokens": "3"}}
    (tmp_path / "log.jsonl").write_text(json.dumps(event))

    with pytest.raises(WorkloadInvalid, match="a tenant has neither rate nor times"):
        read(tmp_path, PLAIN + '[replay]\nfile = "log.jsonl"\n')
