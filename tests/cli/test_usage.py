"""usage and share."""

from __future__ import annotations

import json
import time

import pytest

from tests.cli.fake_client import Kernelctl

TOTALS = """\
TENANT            REQUESTS  INPUT  CACHED  OUTPUT  DEVICE S  SERVICE S  PAGE S  LOADS  LOAD S
lab/ana                  3   1.2k      64      30       2.5        2.4   12.5k      1     0.5
lab/bo (removed)         1     10       0       5       0.1        0.1       3      0     0.0
all                      4   1.2k      64      35       2.6        2.5   12.5k      1     0.5
"""
TREE = """\
TENANT  WEIGHT  SHARE  OF ALL   USED  FACTOR  SHARE NOW  OF ALL NOW  WAITING  RUNNING
lab          1  50.0%   50.0%  80.0%   0.791      33.4%       33.4%        2        1
  ana        1  50.0%   25.0%  50.0%   1.000      50.0%       16.7%        2        0
  bo         1  50.0%   25.0%  50.0%   1.000      50.0%       16.7%        0        1
lab-b        1  50.0%   50.0%  20.0%   1.581      66.6%       66.6%        0        0
"""


def test_usage_is_a_table_with_a_sum(kernelctl: Kernelctl) -> None:
    assert kernelctl("usage").stdout == TOTALS


def test_usage_by_day_names_the_days_in_utc(kernelctl: Kernelctl) -> None:
    lines = kernelctl("usage", "lab", "--by", "day").stdout.splitlines()
    assert lines[0].startswith("DAY         TENANT")
    assert lines[1].startswith("2026-03-01  lab/ana")
    assert kernelctl.client.arguments_of("usage")[0] == ("lab",)
    assert kernelctl("usage", "--by", "hour").stdout.splitlines()[1].startswith("2026-03-01 08:00  lab/ana")


def test_programs_get_the_records_alone(kernelctl: Kernelctl) -> None:
    records = json.loads(kernelctl("usage", "-o", "json").stdout)
    assert [record["tenant"] for record in records] == ["lab/ana", "lab/bo"]
    assert {"requests", "input_tokens", "cached_tokens", "output_tokens", "device_s", "service_us"} <= set(records[0])
    assert "cached_tokens: 64" in kernelctl("usage", "-o", "yaml").stdout
    assert kernelctl("usage", "-o", "name").stdout == "lab/ana\nlab/bo (removed)\n"


@pytest.mark.parametrize(("text", "age_s"), [("30m", 1800), ("12h", 43_200), ("7d", 604_800), ("4w", 2_419_200)])
def test_since_takes_an_age(kernelctl: Kernelctl, text: str, age_s: int) -> None:
    kernelctl("usage", "--since", text)
    assert kernelctl.client.arguments_of("usage")[1]["since"] == pytest.approx(time.time() - age_s, abs=60)


@pytest.mark.parametrize(
    ("text", "at"),
    [("2026-03-01", 1772323200.0), ("2026-03-01T08:00", 1772352000.0), ("2026-03-01T08:00:00+02:00", 1772344800.0), (" 1970-01-01 ", 0.0)],
)
def test_since_and_until_take_iso_dates(kernelctl: Kernelctl, text: str, at: float) -> None:
    kernelctl("usage", "--since", text, "--until", "2030-01-01")
    assert kernelctl.client.arguments_of("usage")[1] == {"since": at, "until": 1893456000.0, "by": "total"}


@pytest.mark.parametrize("text", ["", "7", "7y", "-7d", "yesterday", "2026-13-01", "1900-01-01", "1e3d", "9999999d", "٣d"])
def test_what_is_no_time_is_refused_with_what_is(kernelctl: Kernelctl, text: str) -> None:
    result = kernelctl("usage", f"--since={text}")
    assert result.exit_code == 2
    assert "is not a time; use an age such as 30m, 12h, 7d or 4w, or a date" in " ".join(result.stderr.replace("│", " ").split())


def test_since_is_not_in_the_future(kernelctl: Kernelctl) -> None:
    result = kernelctl("usage", "--since", "9998-01-01")
    assert result.exit_code == 2
    assert "--since: it is in the future" in " ".join(result.stderr.replace("│", " ").split())
    assert kernelctl.client.verbs() == []


@pytest.mark.parametrize("until", ["2026-03-01", "2026-03-02"])
def test_until_is_later_than_since(kernelctl: Kernelctl, until: str) -> None:
    result = kernelctl("usage", "--since", "2026-03-02", "--until", until)
    assert result.exit_code == 2
    assert "must be later than --since" in result.stderr


@pytest.mark.parametrize("arguments", [("share", "-l"), ("share",)])
def test_share_draws_the_tree(kernelctl: Kernelctl, arguments: tuple[str, ...]) -> None:
    assert kernelctl(*arguments).stdout == TREE


def test_share_as_json_has_whole_paths(kernelctl: Kernelctl) -> None:
    records = json.loads(kernelctl("share", "-l", "-o", "json").stdout)
    assert [record["tenant"] for record in records] == ["lab", "lab/ana", "lab/bo", "lab-b"]
    assert records[0]["factor_milli"] == 791
    assert records[0]["used_share"] == 0.8
