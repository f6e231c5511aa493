"""kerneld sim on the command line."""

from __future__ import annotations

import builtins
import json
from dataclasses import asdict
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cli import sim
from cli.daemon import cli
from kerneld.simulation.measures import Books, claims_of
from kerneld.simulation.reading import read_workload
from kerneld.simulation.records import read_records

WORKLOAD = """
duration_s = 20
[device]
pages = 64
page_tokens = 4
page_bytes = 4096
max_rows = 4
max_step_tokens = 64
[[tenant]]
path = "light"
rate = 0.2
input = 16
output = 16
[[tenant]]
path = "hog"
weight = 2
rate = 8.0
input = 16
output = 32
limits = { max_queued = 20 }
"""


@pytest.fixture
def workload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A small workload in the folder where the command runs."""
    monkeypatch.chdir(tmp_path)
    Path("w.toml").write_text(WORKLOAD)
    return "w.toml"


def kerneld(*arguments: str) -> Result:
    """Run the command."""
    return CliRunner().invoke(cli, ["sim", *arguments], prog_name="kerneld")


def test_json_has_exactly_what_is_promised(workload: str) -> None:
    done = kerneld(workload, "-o", "json")
    printed = json.loads(done.stdout)

    assert done.exit_code == 0
    assert list(printed) == ["schedulers"]
    assert list(printed["schedulers"]) == ["fcfs", "hvtc"]
    for measures in printed["schedulers"].values():
        assert list(measures) == ["max_gap", "max_diff", "tokens_per_s", "rejected", "mean_ttft_s"]
        assert list(measures["mean_ttft_s"]) == ["light", "hog"]
    assert [path.name for path in Path().iterdir()] == ["w.toml"], "no plots unless they are asked for"


def test_the_figures_follow_from_the_records(workload: str) -> None:
    printed = json.loads(kerneld(workload, "-o", "json", "--records", "r.jsonl").stdout)["schedulers"]
    records = list(read_records(Path("r.jsonl").read_text().splitlines()))
    loaded = read_workload(Path(workload))
    claims = claims_of(loaded.tenants, loaded.senders)

    assert {record.scheduler for record in records} == {"fcfs", "hvtc"}
    for name, measures in printed.items():
        own = [record for record in records if record.scheduler == name]
        assert asdict(Books(own, loaded.duration_s, claims).measures()) == measures
    assert printed["hvtc"]["rejected"] == sum(record.outcome.value == "rejected" for record in records if record.scheduler == "hvtc") > 0


def test_every_record_has_its_fields(workload: str) -> None:
    kerneld(workload, "-o", "json", "--records", "r.jsonl")
    first = json.loads(Path("r.jsonl").read_text().splitlines()[0])

    assert {"tenant", "scheduler", "arrival_s", "first_token_s", "finish_s", "input_tokens", "output_tokens"} <= set(first)


def test_the_same_run_twice_prints_the_same(workload: str) -> None:
    assert kerneld(workload, "-o", "json").stdout == kerneld(workload, "-o", "json").stdout


def test_people_get_tables_and_plots(workload: str) -> None:
    done = kerneld(workload)

    assert done.exit_code == 0
    assert "MAX GAP" in done.stdout
    assert "WORST LAG" in done.stdout
    assert "hog" in done.stdout
    assert {path.name for path in Path("sim-w").iterdir()} == {"service.png", "delay.png", "lag.png"}


def test_plots_go_where_they_are_wanted_or_nowhere(workload: str) -> None:
    kerneld(workload, "--no-plots")
    assert not Path("sim-w").exists()

    kerneld(workload, "-o", "json", "--plots", "here")
    assert len(list(Path("here").iterdir())) == 3


def test_without_matplotlib_the_table_is_printed_and_a_line_says_why(workload: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: object, **more: object) -> object:
        if name.partition(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    done = kerneld(workload)

    assert done.exit_code == 0
    assert "MAX GAP" in done.stdout
    assert sim.HOW_TO_PLOT in done.stderr


def test_an_event_log_is_sent_again(workload: str) -> None:
    facts = {"request": "1", "tenant": "lab/ann", "input_tokens": "30", "max_tokens": "8"}
    events = [
        {"sequence": 1, "at": 5.0, "name": "EventsMissed", "facts": {"count": "3"}},
        {"sequence": 2, "at": 7.0, "name": "RequestArrived", "facts": facts},
        {"sequence": 3, "at": 9.0, "name": "RequestFinished", "facts": {"request": "1", "output_tokens": "8", "reason": "length"}},
    ]
    Path("events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    done = kerneld("events.jsonl", "-o", "json")

    assert "3 events are missing" in done.stderr
    assert json.loads(done.stdout)["schedulers"]["hvtc"]["mean_ttft_s"].keys() == {"lab/ann"}


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("fig99", "'fig99' is neither a file nor one of the presets: fig3, "),
        ("absent.jsonl", "cannot read the event log"),
        ("bad.toml", "bad.toml: tenant x: rate = -1"),
    ],
)
def test_what_cannot_be_run_ends_with_2_and_says_why(workload: str, argument: str, said: str) -> None:
    Path("bad.toml").write_text('duration_s = 1\n[[tenant]]\npath = "x"\nrate = -1\n')
    refused = kerneld(argument)

    assert refused.exit_code == 2
    assert said in refused.stderr


def test_records_that_cannot_be_written_are_an_error(workload: str) -> None:
    refused = kerneld(workload, "-o", "json", "--records", "absent/r.jsonl")

    assert refused.exit_code == 1
    assert "absent/r.jsonl" in refused.stderr
    assert not refused.stdout


def test_help_says_what_the_figures_mean() -> None:
    told = CliRunner().invoke(cli, ["sim", "--help"]).stdout

    for word in ("max_gap", "max_diff", "fig3", "tenants64", "--records", "max_queued and max_running do not hold under fcfs"):
        assert word in told
