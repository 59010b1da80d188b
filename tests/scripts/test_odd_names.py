"""Variables, files and runs of any name: training-free scoring, saved results, forecasts, pictures, page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import run_main
from data_provider.series import column_name
from scripts import explain, plot, predict, report
from tests.conftest import forget_accelerator
from utils.forecast_columns import DATE, ORIGIN, reserved

ODD = [
    "wv (m/s)", "../../x", "all", "温度", "<b>$x$</b>", "wv (m_s)", "CON", "é" * 120, "a\nb", "A", "a",
    "_true",
]  # fmt: skip
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), min_size=1, max_size=30)


def table(names: list[str], rows: int = 110) -> pd.DataFrame:
    values = np.random.default_rng(0).normal(size=(rows, len(names))).cumsum(axis=0)
    frame = pd.DataFrame(values, columns=names)
    frame.insert(0, "date", pd.date_range("2020-01-01", periods=rows, freq="h"))
    return frame


def scored(folder: Path, frame: pd.DataFrame, *words: str) -> Path:
    """The folder of a run of Persistence on the table."""
    frame.to_csv(folder / "my data.csv", index=False)
    forget_accelerator()
    flags = f"--model Persistence --data custom --seq_len 16 --pred_len 4 --cpu --root_path {folder}".split()
    where = ["--data_path", "my data.csv", "--checkpoints", str(folder / "runs")]
    return run_main.main([*flags, *where, "--levels", *words]).run_dir


def own_errors(frame: pd.DataFrame) -> dict[str, float]:
    """Mean squared errors of repeating the last row, standardised: by hand, over every test window."""
    train, test = int(len(frame) * 0.7), int(len(frame) * 0.2)
    errors = {}
    for name in frame.columns.drop("date"):
        x = frame[name].to_numpy()
        x = (x - x[:train].mean()) / x[:train].std()
        ends = range(len(x) - test, len(x) - 3)
        errors[column_name(name)] = float(np.mean([(x[end - 1] - x[end : end + 4]) ** 2 for end in ends]))
    return errors


@given(st.lists(texts, min_size=1, max_size=4, unique_by=column_name))
@settings(max_examples=3, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_variable_has_its_own_scores_whatever_it_is_called(tmp_path_factory, names):
    """A variable called all lost its row to the mean."""
    names = [n for n in names if column_name(n) not in ("", DATE, ORIGIN)] or ["all"]
    names = [n for n in names if n not in reserved([*map(column_name, names)])]
    frame = table(names)
    folder = tmp_path_factory.mktemp("odd")
    run = scored(folder, frame)
    own = json.loads((run / "results.json").read_text())["best"]["by_variable"]
    assert own.keys() == {column_name(name) for name in names}
    for name, mse in own_errors(frame).items():
        assert own[name]["mse"] == pytest.approx(mse, rel=1e-5)


@pytest.fixture(scope="module")
def odd_run(tmp_path_factory) -> Path:
    return scored(
        tmp_path_factory.mktemp("odd"), table(ODD), "--model_id", "../up", "--model_comment", "../../x"
    )


def test_nothing_is_written_outside_the_runs_folder(odd_run, capsys):
    """wv (m/s) made a folder, and ../../x a picture beside the folder of runs."""
    home = odd_run.parent
    assert home.name == "runs" and [p.name for p in home.iterdir()] == [odd_run.name]
    before = sorted(home.parent.rglob("*"))
    shown = ["wv (m/s)", "wv (m_s)", "../../x", "a"]
    for name in shown:
        assert explain.main([str(odd_run), "--variable", name]) == 0
    pictures = list((odd_run / "explain").glob("*.png"))
    assert len(pictures) == len(shown), sorted(p.name for p in pictures)
    assert plot.main([str(odd_run), "--windows", "3"]) == 0
    assert report.main([str(odd_run), "--windows", "2"]) == 0
    new = set(home.parent.rglob("*")) - set(before)
    assert all(path.is_relative_to(odd_run) for path in new)
    page = (odd_run / "report.html").read_text()
    assert "<b>$x$" not in page and "no training curves" in capsys.readouterr().out


def test_a_backtest_and_a_forecast_hold_every_variable(odd_run, tmp_path, capsys):
    frame = table(ODD)
    frame.to_csv(tmp_path / "in.csv", index=False)
    words = ["--checkpoint", str(odd_run), "--input", str(tmp_path / "in.csv"), "--cpu"]
    assert predict.main([*words, "--output", str(tmp_path / "b.csv"), "--backtest", "3"]) == 0
    written = pd.read_csv(tmp_path / "b.csv")
    assert [c for c in written if not c.endswith("_true") or c == "_true"] == ["origin", "date", *ODD]
    assert predict.main([*words, "--output", str(tmp_path / "z.csv.gz")]) == 0
    assert list(pd.read_csv(tmp_path / "z.csv.gz")) == ["date", *ODD]


def test_an_output_of_no_known_kind_is_refused_before_any_work(odd_run, tmp_path, capsys, monkeypatch):
    """--output z.npy held the text of a CSV file."""
    monkeypatch.setattr(predict.Forecaster, "load", lambda *_, **__: pytest.fail("loaded"))
    for flags in (["in.csv", "z.npy"], ["in.xlsx", "z.csv"]):
        words = [
            "--checkpoint",
            str(odd_run),
            "--input",
            str(tmp_path / flags[0]),
            "--output",
            str(tmp_path / flags[1]),
        ]
        assert predict.main(words) == 2
        said = capsys.readouterr().err
        assert "expected a name that ends in .csv, .csv.gz" in said and len(said.splitlines()) == 1


def test_a_tail_without_numbers_is_cut_or_filled_as_advised(odd_run, tmp_path, capsys):
    """The advice was to remove a column that the model needs."""
    frame = table(ODD)
    frame.loc[frame.index[-3:], ODD[:2]] = np.nan
    frame.to_csv(tmp_path / "in.csv", index=False)
    words = ["--checkpoint", str(odd_run), "--input", str(tmp_path / "in.csv"), "--cpu", "--output"]
    assert predict.main([*words, str(tmp_path / "a.csv")]) == 2
    said = capsys.readouterr().err
    assert "cut the last 3 rows, or fill it with --fill_missing interpolate" in said and "remove" not in said
    assert predict.main([*words, str(tmp_path / "a.csv"), "--fill_missing", "interpolate"]) == 0
    frame.iloc[:-3].to_csv(tmp_path / "in.csv", index=False)
    assert predict.main([*words, str(tmp_path / "b.csv")]) == 0
    first = pd.read_csv(tmp_path / "b.csv", parse_dates=["date"])["date"].iloc[0]
    assert first == frame["date"].iloc[-3]


def test_a_mark_for_missing_numbers_is_told_in_a_forecast_too(odd_run, tmp_path, caplog):
    frame = table(ODD)
    frame.loc[[2, 5, 9], "all"] = -9999
    predict.Forecaster.load(odd_run, device="cpu").predict(frame)
    assert "column 'all': the value -9999 stands in 3 rows of 110" in caplog.text


def test_a_column_that_begins_after_the_training_part_is_told_beside_the_scores(tmp_path, capsys):
    frame = table(["pv", "new_sensor"])
    frame.loc[:95, "new_sensor"] = 0.0
    run = scored(tmp_path, frame)
    results = json.loads((run / "results.json").read_text())
    said, own = (run / "run.log").read_text(), results["best"]["by_variable"]
    assert f"'new_sensor', constant in the training part: mse {own['new_sensor']['mse']:.4f}" in said
    assert f"the other 1 of 2 variables: mse {own['pv']['mse']:.4f}" in said
    assert "warning: column 'new_sensor'" in said
    assert any("new_sensor" in text for text in results["notes"].values())
