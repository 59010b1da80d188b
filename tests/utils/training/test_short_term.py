"""M4 through the one training loop, and its scores against a reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import run_main
import run_main_enhanced
from layers.normalization import InstanceNorm
from models.registry import MODELS
from scripts import m4_summary
from tests.utils.test_m4_scores import naive2_by_hand
from utils.config import Config
from utils.data_sets import M4_PATTERNS
from utils.training.objective import forecast_loss
from utils.types import Batch

PATTERN = "Quarterly"
HORIZON = M4_PATTERNS[PATTERN].horizon
ENHANCED = {"use_tapr": True, "use_gram": True, "retrieval_key": "raw"}


def write_group(folder: Path, pattern: str = PATTERN, *, series: int = 24, seed: int = 0) -> list[np.ndarray]:
    """Seasonal series with a trend in the competition's form; what was written, test values included."""
    rng = np.random.default_rng(seed)
    horizon, season = M4_PATTERNS[pattern].horizon, max(4, M4_PATTERNS[pattern].season)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for _ in range(series):
        rows = int(rng.integers(2 * horizon + 2, 6 * horizon)) + horizon
        level = rng.uniform(100, 9000)
        shape = 1 + 0.2 * np.sin(2 * np.pi * (np.arange(rows) + rng.integers(season)) / season)
        values = level * shape * (1 + 0.004 * np.arange(rows)) * np.exp(rng.normal(0, 0.01, rows))
        written.append(values.round(2))
    for part in ("train", "test"):
        lines = ["id,values"]
        for number, values in enumerate(written):
            own = values[:-horizon] if part == "train" else values[-horizon:]
            lines.append(f"{pattern[0]}{number + 1}," + ",".join(f"{v:.2f}" for v in own) + ",,")
        (folder / f"{pattern}-{part}.csv").write_text("\n".join(lines) + "\n")
    return written


def settings_of(folder: Path, tiny: dict[str, Any]) -> dict[str, Any]:
    """Those of a short run on a group that is written to the folder."""
    write_group(folder)
    series = ("data", "data_path", "seq_len", "label_len", "pred_len")
    kept = {name: value for name, value in tiny.items() if name not in series}
    own = {"data": "M4", "root_path": str(folder), "seasonal_patterns": PATTERN, "max_steps": 6}
    return {**kept, **own}


@pytest.fixture
def m4(tmp_path: Path, tiny: dict[str, Any]) -> dict[str, Any]:
    return settings_of(tmp_path / "m4", tiny)


@pytest.mark.parametrize("model", [name for name in MODELS if name != "TimeLLM_Enhanced"])
def test_every_model_runs_from_the_command_line(m4, model, as_words):
    result = run_main.main(as_words({**m4, "model": model}))
    scores = result.results["best"]["test"]
    assert scores["windows"] == 24 and {"smape", "mase", "owa", "naive2_smape", "naive2_mase"} <= set(scores)
    assert all(np.isfinite(value) for value in scores.values())
    assert result.results["data"] == "M4 Quarterly"


def test_the_enhanced_model_finds_neighbours_in_other_series(m4, as_words):
    result = run_main_enhanced.main(as_words({**m4, **ENHANCED}))
    scores = result.results["best"]["test"]
    assert scores["matched_share"] == 1.0 and 0 < scores["direction_accuracy"] <= 1
    assert np.isfinite(result.results["best"]["validation_smape"])
    tested = run_main_enhanced.main(as_words({**m4, **ENHANCED, "is_training": 0}))
    assert tested.results["checkpoint"]["test"] == scores


def test_the_scores_are_the_competitions_formulas(tmp_path, tiny, m4, as_words):
    """Persistence over every series, measured with plain sums from the written values."""
    written = write_group(tmp_path / "m4")
    found = run_main.main(as_words({**m4, "model": "Persistence"})).results["best"]["test"]
    scores: tuple[list[float], ...] = ([], [], [], [])
    smape, mase, smape2, mase2 = scores
    for values in written:
        known, asked = values[:-HORIZON].tolist(), values[-HORIZON:].tolist()
        scale = sum(abs(known[t] - known[t - 4]) for t in range(4, len(known))) / (len(known) - 4)
        pairs = ((known[-1:] * HORIZON, smape, mase), (naive2_by_hand(known, HORIZON, 4), smape2, mase2))
        for forecast, relative, scaled in pairs:
            errors = [abs(f - y) for f, y in zip(forecast, asked, strict=True)]
            sizes = [abs(f) + abs(y) for f, y in zip(forecast, asked, strict=True)]
            relative.append(sum(200 * e / s for e, s in zip(errors, sizes, strict=True)) / HORIZON)
            scaled.append(sum(errors) / HORIZON / scale)
    wanted = {"smape": smape, "mase": mase, "naive2_smape": smape2, "naive2_mase": mase2}
    for name, each in wanted.items():
        assert found[name] == pytest.approx(float(np.mean(each)), rel=2e-4)
    ratio = np.mean(smape) / np.mean(smape2) + np.mean(mase) / np.mean(mase2)
    assert found["owa"] == pytest.approx(float(ratio) / 2, rel=2e-4)
    assert found["naive2_smape"] < found["smape"]  # the series are seasonal


def test_training_lowers_smape_and_the_best_weights_are_those_of_the_least(m4):
    changes = {"max_steps": 150, "train_epochs": 8, "learning_rate": 0.01, "eval_steps": 4}
    config = Config.from_flat({**m4, "model": "DLinear", **changes})
    result = run_main.train(config, model="DLinear")
    lines = [json.loads(line) for line in (result.run_dir / "metrics.jsonl").read_text().splitlines()]
    validations = [line["validation"]["smape"] for line in lines if line["event"] == "validation"]
    assert min(validations) == pytest.approx(result.results["best"]["validation_smape"])
    assert min(validations) < 0.5 * validations[0]


def test_a_resumed_run_ends_alike(m4):
    changes = {**m4, "model": "PatchTST", "save_steps": 3, "dropout": 0.1}
    whole = run_main.train(Config.from_flat(changes), model="PatchTST")
    again = Config.from_flat({**changes, "resume_from_checkpoint": str(whole.run_dir / "checkpoint_step_3")})
    resumed = run_main.train(again, model="PatchTST")
    assert resumed.results["last"]["test"] == whole.results["last"]["test"]


def test_rows_that_do_not_exist_count_in_no_statistic():
    """The family's zeros before a short series would decide its mean and deviation."""
    torch.manual_seed(0)
    short = torch.randn(3, 5, 1, dtype=torch.float64) * 4 + 50
    for filler in (0.0, 1e6):
        padded = torch.cat([torch.full((3, 11, 1), filler, dtype=torch.float64), short], dim=1)
        observed = torch.cat([torch.zeros(3, 11, 1), torch.ones(3, 5, 1)], dim=1)
        normalised, statistics = InstanceNorm()(padded, observed)
        alone, expected = InstanceNorm()(short)
        torch.testing.assert_close(normalised[:, 11:], alone)
        assert not normalised[:, :11].any()
        torch.testing.assert_close(statistics.mean, expected.mean)
        torch.testing.assert_close(statistics.std, expected.std)


@pytest.mark.parametrize("model", ["TimeLLM", "TimeLLM_Enhanced", "PatchTST", "Linear"])
def test_what_stands_before_a_series_begins_changes_no_forecast(model, m4):
    config = Config.from_flat({**m4, "enc_in": 1, "freq": None})
    torch.manual_seed(0)
    built = MODELS[model](config).eval()
    x = torch.randn(2, 2 * HORIZON, 1).cumsum(1)
    mask = torch.ones_like(x)
    mask[:, :7] = 0
    forecasts = []
    for filler in (0.0, 30.0):
        filled = torch.where(mask.bool(), x, torch.tensor(filler))
        with torch.no_grad():
            forecasts.append(built(filled, x_mark_enc=mask))
    torch.testing.assert_close(forecasts[0], forecasts[1], rtol=1e-4, atol=1e-4)


def test_the_loss_is_the_familys_smape_and_its_gradient_leaves_the_denominator_alone():
    prediction = torch.tensor([[[2.0], [5.0]]], requires_grad=True)
    y = torch.tensor([[[1.0], [5.0]]])
    nothing = torch.zeros(1)
    batch = Batch(y, y, nothing, nothing, nothing, nothing, nothing)
    config = Config.from_flat({"data": "M4"}).training
    loss = forecast_loss(prediction, batch, config)
    assert loss.item() == pytest.approx(200 * (1 / 3 + 0) / 2)
    loss.backward()
    assert prediction.grad is not None and prediction.grad[0, 0, 0] == pytest.approx(200 / 3 / 2)


def test_the_groups_are_summed_up_as_the_competition_does(tmp_path, tiny, m4, capsys, as_words):
    """The overall average is that of the means over all series, not of the groups' averages."""
    folders = []
    for pattern, series in (("Quarterly", 24), ("Yearly", 6)):
        write_group(tmp_path / "m4", pattern, series=series, seed=series)
        changes = {**m4, "seasonal_patterns": pattern, "model": "Persistence"}
        folders.append(run_main.main(as_words(changes)))
    assert m4_summary.main([str(found.run_dir) for found in folders]) == 0
    said = capsys.readouterr().out
    scores = [found.results["best"]["test"] for found in folders]
    means = {
        name: (24 * scores[0][name] + 6 * scores[1][name]) / 30
        for name in ("smape", "mase", "naive2_smape", "naive2_mase")
    }
    owa = (means["smape"] / means["naive2_smape"] + means["mase"] / means["naive2_mase"]) / 2
    assert f"all 30 {means['smape']:.3f} {means['mase']:.3f} {owa:.3f} " in " ".join(said.split())
    assert "4 of 6 groups are missing: Monthly" in said
    assert m4_summary.main([str(tmp_path)]) == 2
    assert m4_summary.main([str(folders[0].run_dir)] * 2) == 2
