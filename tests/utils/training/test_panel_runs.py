"""A panel through the one training loop: its scores against plain loops, and what retrieval may see."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import run_main
import run_main_enhanced
from data_provider.data_factory import build_data
from layers.retrieval.search import Rows
from models.loading import load_run
from utils.config import Config
from utils.conformal import calibrate
from utils.training.by_series import SeriesSums, series_lines
from utils.types import Batch, ForecastState, PanelTable, Standardisation

L, H = 16, 4
LENGTHS = {"a/../b": 70, "flat": 50, "c": 44, "short": 5, "e": 60}
ENHANCED = {"use_tapr": True, "use_gram": True}


def write_panel(path: Path, *, seed: int = 0, lengths: dict[str, int] = LENGTHS) -> dict[str, np.ndarray]:
    """Days with a weekly cycle, each series at its own level; what was written."""
    rng = np.random.default_rng(seed)
    days = pd.date_range("2020-01-01", periods=400, freq="D")
    series, parts = {}, []
    for place, (name, rows) in enumerate(lengths.items()):
        level = 10.0 ** (place - 1)
        own = level * (5 + np.sin(2 * np.pi * np.arange(rows) / 7) + rng.normal(0, 0.2, rows))
        if name == "flat":
            own[: rows - 10] = 3.0
        series[name] = own.round(6)
        parts.append(pd.DataFrame({"unique_id": name, "ds": days[5 * place :][:rows], "y": series[name]}))
    pd.concat(parts).sample(frac=1, random_state=seed).to_csv(path, index=False)
    return series


@pytest.fixture
def panel(tmp_path: Path, tiny: dict[str, Any]) -> dict[str, Any]:
    """Settings of a short run on a panel."""
    write_panel(tmp_path / "panel.csv")
    own = {
        "data": "custom",
        "root_path": str(tmp_path),
        "data_path": "panel.csv",
        "seq_len": L,
        "pred_len": H,
    }
    return {**tiny, **own, "patch_len": 8, "stride": 4, "max_steps": 3}


def test_scores_by_series_and_in_all_are_those_of_a_plain_loop(tmp_path, panel):
    """Persistence over every test window, measured in the units of the file."""
    written = write_panel(tmp_path / "panel.csv")
    result = run_main.train(Config.from_flat({**panel, "levels": ()}), model="Persistence")
    table = pd.read_csv(result.run_dir / "series_scores.csv").set_index("series")
    whole = result.results["best"]["by_series"]
    errors = {}
    for name, values in written.items():
        train, test = int(0.7 * len(values)), int(0.2 * len(values))
        end = len(values) - max(H, test)
        history = values[:end]
        cuts = range(max(end, L), len(values) - H + 1)
        if not len(cuts):
            assert name == "short" and name not in table.index
            continue
        errors[name] = error = np.stack([values[cut - 1] - values[cut : cut + H] for cut in cuts])
        size = sum(np.abs(values[cut : cut + H]).sum() for cut in cuts)
        own = table.loc[name]
        assert own["values"] == error.size
        assert own["mse"] == pytest.approx((error**2).mean(), rel=1e-4)
        assert own["mae"] == pytest.approx(np.abs(error).mean(), rel=1e-4)
        assert own["rmse"] == pytest.approx((error**2).mean() ** 0.5, rel=1e-4)
        assert own["wql"] == pytest.approx(np.abs(error).sum() / size, rel=1e-4)
        changes = history[7:] - history[:-7]
        if name == "flat":
            assert np.isnan(own["mase"]) and np.isnan(own["rmsse"]) and not changes.any()
            continue
        std = values[:train].std()
        assert own["mae_standardised"] == pytest.approx(np.abs(error).mean() / std, rel=1e-4)
        assert own["mase"] == pytest.approx(np.abs(error).mean() / np.abs(changes).mean(), rel=1e-4)
        assert own["rmsse"] == pytest.approx(np.sqrt((error**2).mean() / (changes**2).mean()), rel=1e-4)
    everything = np.concatenate([error.ravel() for error in errors.values()])
    assert whole["mse"] == pytest.approx((everything**2).mean(), rel=1e-4)
    assert whole["rmse"] == pytest.approx((everything**2).mean() ** 0.5, rel=1e-4)
    assert whole["mae_standardised"] == pytest.approx(result.results["best"]["test"]["mae"], rel=1e-9)
    assert whole["mase"] == pytest.approx(table["mase"].mean(), rel=1e-6)  # of those that have one
    assert (whole["flat"], whole["flat_series"]) == (1, ["flat"]) and "short" not in whole


def test_the_quantile_loss_is_the_pinball_loss_of_the_intervals_bounds():
    """Twice the pinball loss over the sum of absolute values: utilsforecast's mqloss lacks the 2."""
    rng = np.random.default_rng(0)
    fitted = np.abs(rng.normal(0, 1, (99, H, 1))).astype(np.float32)
    state = calibrate(fitted, np.ones((99, 1), np.float32), score="absolute").state()
    numbers, std, mean = (
        torch.tensor([70, 30]),
        torch.tensor([2.0, 5.0]).double(),
        torch.tensor([1.0, 0.0]).double(),
    )
    nothing = torch.zeros(2, dtype=torch.int64)
    table = PanelTable(("one", "two"), ("id",), "ds", numbers, nothing, nothing, nothing, std, std)
    x, y, forecast = (torch.from_numpy(rng.normal(0, 1, (4, rows, 1))) for rows in (L, H, H))
    which = torch.tensor([30, 70, 30, 30])
    sums = SeriesSums(table, Standardisation(mean, std), state)
    sums.add(ForecastState(forecast, None, None), Batch(x, y, nothing, nothing, nothing, which, nothing))
    table_of, whole = sums.reduce(lambda tensor: tensor, device=torch.device("cpu"))
    pinball, size = np.zeros(2), np.zeros(2)
    for window, number in enumerate(which.tolist()):
        row = [70, 30].index(number)
        for step in range(H):
            truth = float(y[window, step, 0] * std[row] + mean[row])
            size[row] += abs(truth)
            for quantile in np.arange(1, 10) / 10:
                scores = np.sort(fitted[:, step, 0])
                half = 0.0 if quantile == 0.5 else scores[round(100 * abs(2 * quantile - 1)) - 1]
                bound = (
                    float(forecast[window, step, 0] + np.sign(quantile - 0.5) * half) * std[row] + mean[row]
                )
                above = truth - float(bound)
                pinball[row] += 2 * max(quantile * above, (quantile - 1) * above) / 9
    np.testing.assert_allclose(table_of["wql"], pinball / size, rtol=1e-6)
    assert whole["wql"] == pytest.approx(pinball.sum() / size.sum(), rel=1e-6)
    assert whole["quantiles"] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]


def test_series_without_a_scale_are_named_in_the_log():
    lines = list(
        series_lines(
            {"series": 3, "mse": 1.0, "flat": 1, "flat_series": ["x"], "short": 2, "short_series": ["y", "z"]}
        )
    )
    assert lines[1] == "  1 series do not change before the test, and are left out of mase and rmsse: 'x'"
    assert "2 series have no more rows before the test than a season" in lines[2] and "'y', 'z'" in lines[2]


@pytest.mark.parametrize("model", ["TimeLLM", "RetrievalRidge", "Autoformer", "SeasonalNaive"])
def test_every_kind_of_model_runs_on_a_panel(panel, model, as_words):
    result = run_main.main(as_words({**panel, "model": model}))
    assert np.isfinite(result.results["best"]["by_series"]["mase"])
    assert result.results["best"]["intervals"]["levels"]


@pytest.mark.parametrize(
    "changes",
    [
        {"start": "auto", "retrieval_scope": "variable", "sampling": "series"},
        {"start": "none", "retrieval_scope": "series", "retrieval_mask": "series", "panel_scaler": "global"},
        {"start": "solved", "retrieval_scope": "all", "retrieval_key": "hybrid"},
    ],
)
def test_the_enhanced_model_trains_tests_and_resumes_on_a_panel(panel, changes, as_words):
    settings = {**panel, **ENHANCED, **changes, "save_steps": 2}
    result = run_main_enhanced.main(as_words(settings))
    scores = result.results["best"]["test"]
    assert 0 < scores["matched_share"] <= 1 and 0 < scores["direction_accuracy"] <= 1
    tested = run_main_enhanced.main(as_words({**settings, "is_training": 0}))
    assert tested.results["checkpoint"]["test"] == scores
    assert tested.results["checkpoint"]["by_series"] == result.results["best"]["by_series"]
    if changes["start"] != "solved":
        return
    step = str(result.run_dir / "checkpoint_step_2")
    resumed = run_main_enhanced.main(as_words({**settings, "resume_from_checkpoint": step}))
    assert resumed.results["last"]["test"] == result.results["last"]["test"]


@pytest.mark.parametrize("mask", ["time", "series"])
def test_no_training_window_finds_what_happened_at_its_own_time(panel, mask, as_words):
    """Shocks are shared: a neighbour of the same days held the answer that a test's cannot."""
    result = run_main.main(as_words({**panel, "model": "RetrievalRidge", "retrieval_mask": mask}))
    run = load_run(result.run_dir, device=torch.device("cpu"))
    model: Any = run.model
    source, memory = build_data(run.config).source, model.start.retrieved
    rows = source.rows(torch.arange(source.num_rows))
    found = memory.search(rows.lookback, Rows(rows.series_id, rows.variable, rows.start))[:, 0]
    there = found >= 0
    apart = (memory.start[found.clamp(min=0)] - rows.start[:, None]).abs()
    own = memory.series[found.clamp(min=0)] == rows.series_id[:, None]
    assert bool(there.any()) and not bool((there & own & (apart < L + H)).any())
    assert bool((there & ~own & (apart < H)).any()) == (mask == "series")


def test_ids_name_no_file(panel, tmp_path, as_words):
    """An id is data: '../' in one is no way out of the run's folder."""
    result = run_main.main(as_words({**panel, "model": "Persistence"}))
    assert not list(tmp_path.glob("**/*short*")) and not list(tmp_path.glob("**/b*.csv"))
    assert "a/../b" in set(pd.read_csv(result.run_dir / "series_scores.csv")["series"])
    assert json.loads((result.run_dir / "config.json").read_text())["id_column"] == ["unique_id"]
