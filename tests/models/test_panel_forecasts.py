"""A panel's forecasts: in units and form of the table, also of series that were never seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import run_main
from data_provider.panel import series_numbers
from models import Forecaster
from models.trained import ReadOptions
from scripts import predict
from utils.config import Config
from utils.errors import UserError

L, H = 16, 4
Settings = dict[str, Any]


def days(name: object, rows: int, *, begin: int = 0, level: float = 5.0, seed: int = 0) -> pd.DataFrame:
    """One series with a weekly cycle."""
    rng = np.random.default_rng(seed)
    time = np.arange(begin, begin + rows)
    values = level * (5 + np.sin(2 * np.pi * time / 7) + rng.normal(0, 0.1, rows))
    dates = pd.date_range("2020-01-01", periods=400, freq="D")[time]
    return pd.DataFrame({"unique_id": name, "ds": dates, "y": values})


def panel(**more: int) -> pd.DataFrame:
    parts = [
        days("b", 80, level=1),
        days("a", 80, begin=9, level=100, seed=1),
        days("10", 70, level=10, seed=2),
    ]
    return pd.concat(
        [*parts, *(days(name, rows, begin=30, seed=7) for name, rows in more.items())], ignore_index=True
    )


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Of runs on the panel."""
    folder = tmp_path_factory.mktemp("panel")
    panel().to_csv(folder / "panel.csv", index=False)
    own = {"data": "custom", "root_path": str(folder), "data_path": "panel.csv", "seq_len": L, "pred_len": H}
    return {**own, "cpu": True, "checkpoints": str(folder / "runs"), "batch_size": 8, "log_steps": 1}


@pytest.fixture(scope="module")
def run(settings: Settings) -> Path:
    return run_main.train(
        Config.from_flat({**settings, "model": "RetrievalRidge"}), model="RetrievalRidge"
    ).run_dir


@pytest.fixture(scope="module")
def forecaster(run: Path) -> Forecaster:
    return Forecaster.load(run, device="cpu")


def by_hand(model: Any, values: np.ndarray, rows: np.ndarray, *, name: str, begin: int) -> np.ndarray:
    """The model's forecast of a series' last lookback, standardised by ``rows`` and taken back in float64."""
    mean, std = rows.mean(), rows.std()
    x = torch.from_numpy(((values[-L:] - mean) / std).astype(np.float32))[None, :, None]
    place = torch.tensor([begin + len(values) - L])
    with torch.no_grad():
        found = model(x, start=place, series_id=torch.from_numpy(series_numbers([name])))
    return np.asarray(found[0, :, 0].double().numpy() * std + mean)


@pytest.mark.parametrize("model", ["RetrievalRidge", "Persistence", "DLinear"])
def test_each_series_is_forecast_in_its_own_scale_and_a_new_one_in_its_lookbacks(settings, model, caplog):
    """A series that was not there in training had the scale of another, or needed a refit."""
    config = Config.from_flat({**settings, "model": model, "max_steps": 2, "model_comment": "own"})
    forecaster = Forecaster.load(run_main.train(config, model=model).run_dir, device="cpu")
    frame = panel(new=40)
    found = forecaster.predict(frame)
    assert list(found) == ["unique_id", "ds", "y"]
    assert found["unique_id"].unique().tolist() == ["b", "a", "10", "new"]
    assert "1 of 4 series were not trained on: forecast in the scale of their own lookback" in caplog.text
    for name, begin in (("b", 0), ("a", 9), ("10", 0), ("new", 30)):
        own, mine = (f[f["unique_id"] == name] for f in (frame, found))
        values = own["y"].to_numpy()
        after = own["ds"].iloc[-1] + pd.to_timedelta(np.arange(1, H + 1), unit="D")
        assert (mine["ds"].to_numpy() == after.to_numpy()).all()
        rows = values[-L:] if name == "new" else values[: int(0.7 * len(values))]
        expected = by_hand(forecaster.model, values, rows, name=name, begin=begin)
        np.testing.assert_allclose(mine["y"], expected, rtol=1e-5)


def test_the_form_of_the_table_is_kept(forecaster):
    """Columns, ids and their type, order, and zone: fev sorts whole numbers as text."""
    frame = panel().rename(columns={"unique_id": "item_id", "ds": "timestamp", "y": "target"})
    frame["item_id"] = frame["item_id"].map({"b": 10, "a": 100, "10": 9})
    frame["timestamp"] = frame["timestamp"].dt.tz_localize("Europe/Berlin")
    before = frame.copy()
    found = forecaster.predict(frame, levels=[0.8])
    pd.testing.assert_frame_equal(frame, before)  # the caller's is left alone
    assert list(found) == ["item_id", "timestamp", "target", "target_lo_80", "target_hi_80"]
    assert found["item_id"].dtype == frame["item_id"].dtype and found["item_id"].unique().tolist() == [
        10,
        100,
        9,
    ]
    assert str(found["timestamp"].dt.tz) == "Europe/Berlin"
    last = frame.groupby("item_id")["timestamp"].max()
    first = found.groupby("item_id")["timestamp"].min()
    assert ((first.dt.tz_localize(None) - last.dt.tz_localize(None)) == pd.Timedelta(days=1)).all()
    inside = (found["target_lo_80"] < found["target"]) & (found["target"] < found["target_hi_80"])
    assert inside.all()


def test_rows_in_any_order_and_a_series_alone_give_the_same_forecast(forecaster):
    whole = forecaster.predict(panel())
    shuffled = forecaster.predict(panel().sample(frac=1, random_state=0))
    alone = forecaster.predict(panel()[80:160])
    for other in (shuffled, alone):
        for name in other["unique_id"].unique():
            expected, found = (f.loc[f["unique_id"] == name, "y"].to_numpy() for f in (whole, other))
            np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_series_too_short_is_forecast_by_its_last_season_the_others_as_ever(forecaster, caplog):
    frame = panel(some=9, few=3)
    found = forecaster.predict(frame, levels=[0.8])
    values = {name: own["y"].to_numpy() for name, own in frame.groupby("unique_id")}
    some, few = (found[found["unique_id"] == name] for name in ("some", "few"))
    np.testing.assert_allclose(some["y"], values["some"][-7:][:H])
    np.testing.assert_allclose(few["y"], values["few"][-1])
    assert (
        some["y_lo_80"].isna().all()
        and "2 of 5 series have fewer rows than the lookback of 16" in caplog.text
    )
    others = forecaster.predict(panel())["y"].to_numpy()
    np.testing.assert_allclose(found["y"].to_numpy()[: 3 * H], others, rtol=1e-6)


def test_a_backtest_of_the_test_windows_has_the_runs_scores(forecaster, run, settings):
    """Scores of the run and of its forecaster are of the same windows, in the same units."""
    scored = pd.read_csv(run / "series_scores.csv").set_index("series")
    folder = Path(settings["root_path"])
    for name, rows in (("b", 80), ("10", 70)):
        tested = forecaster.backtest(panel()[lambda f, n=name: f["unique_id"] == n], int(0.2 * rows) - H + 1)
        assert tested.scores.loc[name, "mse"] == pytest.approx(scored.loc[name, "mse"], rel=1e-4)
        assert tested.scores.loc[name, "mae_standardised"] == pytest.approx(
            scored.loc[name, "mae_standardised"], rel=1e-4
        )
    last = forecaster.backtest(folder / "panel.csv", 1).frame
    written = pd.read_csv(folder / "panel.csv").groupby("unique_id", sort=False).tail(H)
    assert last["y_true"].tolist() == written["y"].tolist()  # to the bit, not by way of standardised numbers
    assert list(last) == [
        "unique_id",
        "origin",
        "ds",
        "y",
        "y_true",
    ]


def test_a_backtest_says_which_windows_were_trained_on(forecaster, caplog):
    forecaster.backtest(panel(), 60)
    assert "windows forecast rows that the model was trained on" in caplog.text


def test_the_command_reads_and_writes_long_files(run, settings, tmp_path, capsys):
    given, out = Path(settings["root_path"]) / "panel.csv", tmp_path / "forecast.csv"
    words = ["--checkpoint", str(run), "--input", str(given), "--output", str(out), "--cpu"]
    assert predict.main([*words, "--levels", "0.8"]) == 0
    assert "12 rows, 2020-03-11" in capsys.readouterr().out
    found = pd.read_csv(out, dtype={"unique_id": str})
    assert list(found) == ["unique_id", "ds", "y", "y_lo_80", "y_hi_80"] and "10" in set(found["unique_id"])
    assert predict.main([*words, "--backtest", "2", "--overwrite"]) == 0
    (tmp_path / "parts").mkdir()
    panel()[:80].to_csv(tmp_path / "parts" / "1.csv", index=False)
    panel()[80:].to_csv(tmp_path / "parts" / "2.csv", index=False)
    words[words.index(str(given))] = str(tmp_path / "parts")
    assert predict.main([*words, "--overwrite"]) == 0
    np.testing.assert_allclose(pd.read_csv(out)["y"], found["y"], rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda f: f.drop(columns="unique_id"),
            "expected the columns that the model was trained on, unique_id, ds",
        ),
        (lambda f: f.assign(ds=pd.date_range("2020", periods=len(f), freq="h")), "expected steps of D"),
        (lambda f: f.drop(index=5), "insert the rows and fill them with --fill_missing"),
        (lambda f: f.assign(y=f["y"].mask(f.index == 3)), "series 'b', data row 4: expected a finite number"),
    ],
)
def test_a_table_that_does_not_fit_is_one_line(forecaster, change, said):
    with pytest.raises(UserError, match=said):
        forecaster.predict(change(panel()))


def test_what_a_panel_cannot_do_is_said(forecaster):
    with pytest.raises(UserError, match="--recalibrate: .*panel"):
        forecaster.predict(panel(), levels=[0.8], recalibrate=5)


def test_what_a_panels_forecast_does_not_read_is_refused(forecaster: Forecaster) -> None:
    """Passed over, prices of the horizon would seem to be in the forecast."""
    other = panel()
    for given, flag in (({"future": other}, "--future"), ({"static": other}, "--static_path")):
        with pytest.raises(UserError, match=f"{flag}: .* trained without such covariates; leave it out"):
            forecaster.predict(other, **given)
    for name in ("texts", "what_if"):
        with pytest.raises(UserError, match="a panel is forecast without texts"):
            forecaster.predict(other, **{name: other})
    with pytest.raises(UserError, match="--static_path: .* trained without"):
        forecaster.backtest(other, 1, static=other)
    with pytest.raises(UserError, match="--round_dates: the times of a panel are not rounded"):
        forecaster.predict(other, reading=ReadOptions(round_dates=True))
    with pytest.raises(UserError, match="static: expected columns of it, named as static or static_numbers"):
        Forecaster(model="Ridge", cpu=True).fit(other, static=other)
    with pytest.raises(UserError, match="expected a run on one series, found one on a panel of 3"):
        forecaster.own_series()
    with pytest.raises(UserError, match="--backtest: expected 1 or more windows"):
        forecaster.backtest(panel(), 100)
    filled = forecaster.predict(panel().drop(index=5), reading=ReadOptions(fill_missing="interpolate"))
    assert len(filled) == 3 * H
