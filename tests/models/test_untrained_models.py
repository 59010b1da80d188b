"""Ridge and the naive forecasts through the same entry point, run folder and test protocol."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import run_main
from data_provider.data_factory import build_data
from models.closed_form import evaluate_baselines, persistence, seasonal_naive
from models.registry import MODELS
from utils.config import Config, ConfigError
from utils.training.checkpoint import BEST, load
from utils.training.run_folder import RESULTS_FILE

NAMES = {"Persistence": "persistence", "SeasonalNaive": "seasonal_naive", "Ridge": "ridge"}
SYNTHETIC = {"data": "synthetic", "seq_len": 48, "pred_len": 30, "label_len": 0, "cpu": True}


def run_of(name: str, folder: Path, **settings: Any) -> Any:
    config = Config.from_flat({**SYNTHETIC, "model": name, "checkpoints": str(folder), **settings})
    return run_main.train(config, model=name)


def assert_same_scores(found: dict[str, float], expected: Any) -> None:
    """To the rounding of float64 sums."""
    assert (found["mse"], found["mae"]) == pytest.approx(tuple(expected), rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_has_the_scores_of_the_plain_formulas(name: str, tmp_path: Path) -> None:
    """Another split, another scaler, a dropped batch or float32 sums would show in the tenth digit."""
    run = run_of(name, tmp_path, eval_batch_size=100)
    bundle = build_data(Config.from_flat(SYNTHETIC))
    expected = evaluate_baselines(bundle)[NAMES[name]]
    for weights in ("best", "last"):
        assert run.results[weights]["step"] == 0
        assert_same_scores(run.results[weights]["test"], expected)
    assert run.results["best"]["test"]["windows"] == len(bundle.test)  # type: ignore[arg-type]
    assert json.loads((run.run_dir / RESULTS_FILE).read_text())["best"] == run.results["best"]
    lines = [json.loads(line) for line in (run.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["validation", "test", "test"]
    assert "train_loss" not in lines[0], "nothing was trained step by step"
    assert run.results["best"]["validation_mse"] == lines[0]["validation"]["mse"]


@pytest.mark.parametrize("name", [*NAMES, "RetrievalRidge"])
def test_its_checkpoint_is_tested_again_and_resumed_with_the_same_scores(name: str, tmp_path: Path) -> None:
    """Kept in float32, or not kept at all, the map would score otherwise."""
    few = {"percent": 3, "eval_batch_size": 500}
    first = run_of(name, tmp_path, **few)
    again = run_of(name, tmp_path, is_training=0, **few)
    assert again.results["checkpoint"]["test"] == first.results["best"]["test"]
    resumed = run_of(name, tmp_path, resume_from_checkpoint=str(first.run_dir / BEST), **few)
    assert resumed.results["best"]["test"] == first.results["best"]["test"]


def test_ridge_keeps_its_map_and_the_penalty_that_validation_chose(tmp_path: Path) -> None:
    saved = load(run_of("Ridge", tmp_path).run_dir / BEST)["model"]
    assert saved["coefficients"].dtype == torch.float64 and saved["coefficients"].shape == (48, 30)
    assert saved["coefficients"].any() and saved["alpha"] > 0


def test_an_unfitted_ridge_forecasts_the_mean() -> None:
    """Not zeros, and not NaN: a checkpoint that was forgotten is visible but harmless."""
    x = torch.randn(4, 48, 3)
    forecast = MODELS["Ridge"](Config.from_flat(SYNTHETIC))(x)
    expected = x.double().mean(dim=1, keepdim=True).expand(-1, 30, -1)
    torch.testing.assert_close(forecast, expected)


@pytest.mark.parametrize("season", [7, 24, 30])
def test_naive_forecasts_are_those_of_the_numpy_formulas(season: int) -> None:
    config = Config.from_flat({**SYNTHETIC, "season": season})
    x = np.random.default_rng(0).normal(size=(3, 48, 2))
    for name, expected in (
        ("Persistence", persistence(x, 30)),
        ("SeasonalNaive", seasonal_naive(x, 30, season)),
    ):
        found = MODELS[name](config)(torch.from_numpy(x))
        np.testing.assert_array_equal(found.numpy(), expected)


def test_a_season_longer_than_the_lookback_is_refused_with_a_way_out(tmp_path: Path) -> None:
    """Cut to the lookback in silence, it scored .181 where persistence has .014."""
    settings = {**SYNTHETIC, "season": 100}
    with pytest.raises(
        ConfigError, match="SeasonalNaive: expected.*100 rows.*--seq_len 48; use --seq_len 100"
    ):
        MODELS["SeasonalNaive"](Config.from_flat(settings))
    with pytest.raises(ConfigError, match="such as --season 48"):
        run_of("SeasonalNaive", tmp_path, season=100)
    run_of("SeasonalNaive", tmp_path, season=48)
    run_of("SeasonalNaive", tmp_path, season=100, seq_len=100)


def test_without_a_whole_season_the_table_has_no_seasonal_naive(caplog: pytest.LogCaptureFixture) -> None:
    bundle = build_data(Config.from_flat({**SYNTHETIC, "season": 100}))
    assert bundle.season == 100 and "longer than the lookback of 48" in bundle.notes["season"]
    assert set(evaluate_baselines(bundle)) == {"persistence", "ridge"}
    assert "no seasonal naive: a season of 100 rows" in caplog.text
