"""From a data frame to a trained forecaster, in scikit-learn's manners, and the same as by command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone

import run_main
import run_main_enhanced
from models import Forecaster
from scripts import predict
from tests.conftest import AsWords, Settings, TinySettings, WriteSeries, forget_accelerator
from utils.config import ConfigError
from utils.errors import UserError

HORIZON, BOTH = 8, {"use_tapr": True, "use_gram": True, "max_steps": 2, "known_covariates": ("price",)}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory, write_series: WriteSeries) -> Path:
    path = write_series(tmp_path_factory.mktemp("fit") / "waves.csv", 400)
    pd.read_csv(path).assign(price=np.sin(np.arange(400.0))).to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def settings(tiny_settings: TinySettings, table: Path) -> Settings:
    """Those of `fit`: no files, no folder."""
    files = ("root_path", "data_path", "checkpoints", "data")
    return {k: v for k, v in tiny_settings(table, table).items() if k not in files} | BOTH


@pytest.fixture(scope="module")
def fitted(settings: Settings, table: Path) -> Forecaster:
    forget_accelerator()
    return Forecaster(**settings).fit(pd.read_csv(table))


def future(frame: pd.DataFrame) -> pd.DataFrame:
    dates = pd.date_range(frame["date"].iloc[-1], periods=HORIZON + 1, freq="h")[1:]
    return pd.DataFrame({"date": dates, "price": np.linspace(0, 1, HORIZON)})


def test_a_fit_is_the_command_lines_run_to_the_bit(
    fitted: Forecaster, settings: Settings, table: Path, as_words: AsWords, tmp_path: Path
) -> None:
    """Read or divided otherwise, what is tried in Python would not be what is then run."""
    files = {"data": "custom", "root_path": table.parent, "data_path": table.name, "checkpoints": tmp_path}
    words = as_words({**settings, **files, "known_covariates": "price"})
    forget_accelerator()
    run = run_main_enhanced.main(words)
    assert run.results["best"] == fitted.results["best"] and run.results["last"] == fitted.results["last"]
    theirs, mine = Forecaster.load(run.run_dir, device="cpu"), fitted
    assert all(map(torch.equal, theirs.model.state_dict().values(), mine.model.state_dict().values()))
    frame = pd.read_csv(table)
    found = mine.predict(frame, future=future(frame), levels=(0.8,), quantiles=(0.1, 0.5))
    pd.testing.assert_frame_equal(
        found,
        theirs.predict(table, future=future(frame), levels=(0.8,), quantiles=(0.1, 0.5)),
        check_exact=True,
    )
    assert np.allclose(found["OT_lo_80"], found["OT_q10"]) and (found["OT"] == found["OT_q50"]).all()
    future(frame).to_csv(tmp_path / "future.csv", index=False)
    command = ["--checkpoint", str(run.run_dir), "--input", str(table), "--output", str(tmp_path / "out.csv")]
    flags = [
        "--future",
        str(tmp_path / "future.csv"),
        "--levels",
        "0.8",
        "--quantiles",
        "0.1",
        "0.5",
        "--cpu",
    ]
    assert predict.main([*command, *flags]) == 0
    written = pd.read_csv(tmp_path / "out.csv", parse_dates=["date"])
    pd.testing.assert_frame_equal(written, found, rtol=1e-7, check_dtype=False)


def test_what_is_saved_forecasts_the_same(fitted: Forecaster, table: Path, tmp_path: Path) -> None:
    """The run's own folder is temporary; a folder with something in it is no place to write."""
    frame = pd.read_csv(table)
    kept = Forecaster.load(fitted.save(tmp_path / "kept"), device="cpu")
    wanted = fitted.predict(frame, future=future(frame))
    pd.testing.assert_frame_equal(kept.predict(frame, future=future(frame)), wanted, check_exact=True)
    with pytest.raises(UserError, match="kept: expected a new folder, or an empty one"):
        fitted.save(tmp_path / "kept")


def test_a_shorter_horizon_is_cut_and_a_longer_refused(fitted: Forecaster, table: Path) -> None:
    """A model forecasts all rows at once: more of them it has no weights for."""
    frame = pd.read_csv(table)
    whole, cut = (fitted.predict(frame, rows, future=future(frame)) for rows in (None, 3))
    pd.testing.assert_frame_equal(cut, whole[:3], check_exact=True)
    for rows in (0, HORIZON + 1):
        with pytest.raises(UserError, match=f"horizon: expected 1 to 8 rows, .* found {rows}; train one"):
            fitted.predict(frame, rows, future=future(frame))


def test_a_forecast_has_the_form_of_its_table(fitted: Forecaster, table: Path) -> None:
    """Dates as an index came back as a column: what was forecast could not be put behind what was given."""
    frame = pd.read_csv(table, parse_dates=["date"])
    indexed = frame.set_index("date").rename_axis("when")
    found = fitted.predict(indexed, future=future(frame))
    assert found.index.name == "when" and list(found) == ["a", "OT"]
    joined = pd.concat([indexed[["a", "OT"]], found]).index
    assert (joined[1:] - joined[:-1] == pd.Timedelta("1h")).all()


def test_settings_are_get_and_set_as_scikit_learn_does(settings: Settings) -> None:
    """A search over settings clones what it is given, and sets what it tries."""
    one = Forecaster(**settings)
    other = clone(one)
    assert other.get_params() == one.get_params() and one.get_params()["start"] == "auto"
    assert one.set_params(d_model=8) is one and one.get_params()["d_model"] == 8
    assert other.get_params()["d_model"] == settings["d_model"]
    for wrong, expected in (({"d_modle": 8}, "--d_modle: no such setting"), ({"d_model": 6}, "multiple of")):
        with pytest.raises(ConfigError, match=expected):
            one.set_params(**wrong)
        with pytest.raises(ConfigError, match=expected):
            Forecaster(**{**settings, **wrong})
    assert one.get_params()["d_model"] == 8


@pytest.mark.parametrize("ask", [lambda f: f.predict(None), lambda f: f.save("x"), lambda f: f.targets])
def test_what_is_not_fitted_says_so(settings: Settings, ask: Any) -> None:
    """AttributeError of an attribute that the caller never heard of told nothing of what to do."""
    with pytest.raises(UserError, match=r"not fitted; call fit\(table\) first"):
        ask(Forecaster(**settings))
    assert not hasattr(Forecaster(**settings), "targets")


def test_rows_that_are_forecast_were_never_seen(table: Path) -> None:
    """One look ahead, in scaler or memory, and a validation is none: later rows must change no forecast."""
    frame = pd.read_csv(table, parse_dates=["date"]).drop(columns="price")
    model = Forecaster(model="Ridge", seq_len=32, pred_len=HORIZON, patch_len=16, cpu=True)
    later = frame.copy()
    later.loc[400 - HORIZON :, ["a", "OT"]] += 5.0
    found, again = (model.cross_validation(f, 2, refit=True, levels=(0.5,)) for f in (frame, later))
    assert found.frame["date"].tolist() == frame["date"].iloc[-2 * HORIZON :].tolist()
    assert found.frame["OT_true"].tolist() == frame["OT"].iloc[-2 * HORIZON :].tolist()  # to the bit
    columns = ["a", "OT", "OT_lo_50"]
    pd.testing.assert_frame_equal(found.frame[columns], again.frame[columns], check_exact=True)
    alone = Forecaster(**model.get_params()).fit(frame[: 400 - HORIZON])
    wanted = alone.predict(frame[: 400 - HORIZON], levels=(0.5,))[columns]
    pd.testing.assert_frame_equal(
        found.frame[columns][HORIZON:].reset_index(drop=True), wanted, check_exact=True
    )
    error = found.frame["OT"] - found.frame["OT_true"]
    assert found.scores.loc["OT", "mse"] == pytest.approx(float((error**2).mean()))
    with pytest.raises(
        UserError, match="cross_validation: expected .* 40 rows or more before the first window"
    ):
        model.cross_validation(frame[:50], 2)
    with pytest.raises(UserError, match="in the order of time"):
        model.cross_validation(frame[::-1], 2)


def test_a_long_table_is_fitted_as_the_file_of_it_is(tmp_path: Path, as_words: AsWords) -> None:
    """Series below each other came from files alone; a shorter horizon is cut in each of them."""
    rng = np.random.default_rng(4)
    frame = pd.concat(
        [
            pd.DataFrame({"unique_id": name, "ds": pd.date_range(first, periods=rows, freq="h")})
            for name, first, rows in (("x", "2020-01-01", 300), ("y", "2020-01-03", 200))
        ],
        ignore_index=True,
    ).assign(y=rng.normal(size=500).cumsum())
    frame.to_csv(tmp_path / "long.csv", index=False)
    settings = {"model": "Ridge", "seq_len": 32, "pred_len": HORIZON, "patch_len": 16, "cpu": True}
    files = {
        "data": "custom",
        "root_path": tmp_path,
        "data_path": "long.csv",
        "checkpoints": tmp_path / "runs",
    }
    run = run_main.main(as_words({**settings, **files}))
    forget_accelerator()
    model = Forecaster(**settings).fit(pd.read_csv(tmp_path / "long.csv"))
    assert model.results["best"] == run.results["best"]
    wanted = Forecaster.load(run.run_dir, device="cpu").predict(frame)
    pd.testing.assert_frame_equal(model.predict(frame), wanted, check_exact=True)
    cut = model.predict(frame, 3)
    assert cut.groupby("unique_id").size().to_dict() == {"x": 3, "y": 3}
    pd.testing.assert_frame_equal(cut, wanted.groupby("unique_id").head(3).reset_index(drop=True))
    with pytest.raises(UserError, match="cross_validation: expected a table of one series"):
        Forecaster(**settings).cross_validation(frame)
