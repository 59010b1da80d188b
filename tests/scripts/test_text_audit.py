"""The audit of texts as a command: its counts on real reports, and one line for a file that is none."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pandas as pd
import pytest

from scripts import text_audit

TIME_MMD = Path(os.environ.get("ETT_ROOT", "")) / "time-mmd"
needs_time_mmd = pytest.mark.skipif(
    not (TIME_MMD / "Energy_report.csv").is_file(), reason="needs Time-MMD under ETT_ROOT"
)


@pytest.fixture
def files(tmp_path):
    """Texts of Fridays that name the Monday after, and their series."""
    dates = pd.date_range("2020-01-06", periods=60, freq="W-MON")
    pd.DataFrame({"date": dates, "OT": range(60)}).to_csv(tmp_path / "series.csv", index=False)
    texts = pd.DataFrame(
        {"end": dates - pd.Timedelta(days=3), "text": [f"On {d:%B %d, %Y} it rose" for d in dates]}
    )
    texts.to_csv(tmp_path / "texts.csv", index=False)
    return tmp_path


def audited(capsys, *words: str) -> dict:
    assert text_audit.main([*words, "--json"]) == 0
    out = capsys.readouterr().out
    return json.loads(
        out[out.index("{\n") :]
    )  # behind lines of the log, where a run before left it on screen


@needs_time_mmd
def test_energy_s_reports_of_the_next_week_are_found(capsys):
    """351 of the 352 that name a day in words name one after their own end; a lag of ten days ends it."""
    found = audited(
        capsys, str(TIME_MMD / "Energy_report.csv"), "--series", str(TIME_MMD / "Energy.csv"),
        "--shuffles", "5", "--text_lag", "0", "3D", "7D", "10D",
    )  # fmt: skip
    assert found["forms"]["words"] == {"named": 352, "late": 351}
    assert found["lateness_days"] == {"3": 349, "5": 1, "10": 1} and found["gone_at_days"] == 10
    assert [at["days"] for at in found["lags"]] == [351, 2, 1, 0]


@needs_time_mmd
@pytest.mark.parametrize("domain", ["Agriculture", "Climate", "Economy", "Environment", "Health_US"])
def test_every_domain_is_read_whatever_the_order_of_its_rows(domain, capsys):
    """Climate runs backwards, Economy's years do, Health_US has weeks twice."""
    found = audited(
        capsys, str(TIME_MMD / f"{domain}_report.csv"), "--series", str(TIME_MMD / f"{domain}.csv"),
        "--shuffles", "1", "--text_lag", "0",
    )  # fmt: skip
    late = {"Agriculture": 0, "Climate": 1, "Economy": 0, "Environment": 25, "Health_US": 3}
    assert found["forms"]["words"]["late"] == late[domain]


def test_a_reader_sees_counts_lags_and_examples(files, capsys):
    assert text_audit.main([str(files / "texts.csv"), "--series", str(files / "series.csv")]) == 0
    out = capsys.readouterr().out
    assert "texts that name a later day, by lag: 60 at 0 days, none at 3 days" in out
    assert "known 2020-01-03, tells 2020-01-06: On January 06, 2020 it rose" in out
    assert text_audit.main([str(files / "texts.csv"), "--text_lag", "2D"]) == 0
    assert "2 days 60" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["none.csv"], "none.csv: no such file"),
        (["series.csv"], "expected a column called text, found date, OT"),
        (["texts.csv", "--text_columns", "news"], "name one of text"),
        (["texts.csv", "--series", "series.csv", "--target", "x"], "expected the column of --target, 'x'"),
        (["texts.csv", "--series", "texts.csv"], "expected a column named 'date', found end, text"),
        (["texts.csv", "--text_lag", "2"], "--text_lag: expected days, such as 7D, or --series"),
        (["texts.csv", "--text_lag", "soon"], "such as 7D, found 'soon'"),
        (["texts.csv", "--shuffles", "0"], "--shuffles: expected 1 or more"),
    ],
)
def test_a_wrong_file_gets_one_line(files, words, said, monkeypatch, capsys):
    monkeypatch.chdir(files)
    assert text_audit.main(words) == 2
    error = capsys.readouterr().err
    assert said in error and error.startswith("error: ") and error.count("\n") == 1
