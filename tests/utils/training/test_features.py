"""--features M, S and MS through the whole loop: what is read, and what is forecast."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from data_provider.data_factory import build_data
from models.closed_form import evaluate_baselines
from models.registry import MODELS
from utils.config import Config
from utils.training.run_folder import FORECASTS_FILE

HORIZON = 8
MODULES = {"use_tapr": True, "use_gram": True, "retrieval_fusion": "both"}


@pytest.fixture(scope="module")
def led(tmp_path_factory):
    """1,000 rows of noise in 'lead', which 'OT' follows 8 rows later: the future of OT is known from lead."""
    lead = np.random.default_rng(0).normal(size=1000)
    frame = pd.DataFrame({"OT": np.roll(lead, HORIZON), "lead": lead, "other": lead[::-1]})
    frame.insert(0, "date", pd.date_range("2020-01-01", periods=len(lead), freq="h").astype(str))
    path = tmp_path_factory.mktemp("led") / "led.csv"
    frame.to_csv(path, index=False)
    return path


@pytest.fixture
def settings(tiny, led):
    return {**tiny, "root_path": str(led.parent), "data_path": led.name, "pred_len": HORIZON}


@pytest.mark.parametrize(("features", "read", "forecast"), [("M", 3, 3), ("S", 1, 1), ("MS", 3, 1)])
def test_what_is_read_and_what_is_forecast(settings, features, read, forecast):
    bundle = build_data(Config.from_flat({**settings, "features": features}))
    item = bundle.train[0]
    assert item.x.shape == (32, read) and item.y.shape == (HORIZON, forecast)
    assert len(bundle.columns) == len(bundle.standardisation.mean) == read
    assert list(bundle.targets) == list(bundle.columns[-forecast:])
    assert bundle.source.num_variables == forecast and item.variable.tolist() == list(range(forecast))
    if features != "M":
        assert bundle.targets == ("OT",)  # the first column of the file


def test_ms_scores_and_remembers_the_target_alone(settings):
    """The target's windows, memory rows and naive scores are those of --features S."""
    whole, alone = (build_data(Config.from_flat({**settings, "features": f})) for f in ("MS", "S"))
    rows = torch.tensor([0, 7, whole.source.num_rows - 1])
    for a, b in zip(whole.source.rows(rows)[:2], alone.source.rows(rows)[:2], strict=True):
        assert torch.equal(a, b)
    assert evaluate_baselines(whole) == evaluate_baselines(alone)


def trained(start_run, settings, **changes):
    steps = {"max_steps": 150, "train_epochs": 10, "batch_size": 16, "learning_rate": 0.01, "dropout": 0.0}
    return start_run(**{**settings, **steps, **changes})


@pytest.mark.slow
def test_ms_learns_from_the_other_variables_what_the_target_does_not_know(start_run, settings):
    """The family's MS trains M's model and reads one column: it would score like S here."""
    scores = {}
    for features in ("S", "MS"):
        result = trained(start_run, settings, features=features, **MODULES)
        scores[features] = result.results["last"]["test"]["mse"]
        with np.load(result.run_dir / FORECASTS_FILE) as saved:
            assert saved["x"].shape[2] == saved["prediction"].shape[2] == 1
            assert saved["columns"].tolist() == ["OT"]
    assert scores["MS"] < 0.7 * scores["S"]


def test_a_covariate_moves_the_forecast_of_the_target_and_no_other_window(settings):
    config = Config.from_flat({**settings, "features": "MS", "enc_in": 3, "dropout": 0.0})
    model = MODELS["TimeLLM"](config).eval()
    x = torch.randn(4, 32, 3, generator=torch.Generator().manual_seed(1))
    moved = x.clone()
    moved[1, :, 0] = torch.randn(32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        before, after = model(x), model(moved)
    assert before.shape == (4, HORIZON, 1)
    assert (after[1] - before[1]).abs().max() > 1e-4
    torch.testing.assert_close(after[[0, 2, 3]], before[[0, 2, 3]], rtol=1e-4, atol=1e-5)


def test_ms_without_or_with_another_number_of_variables_is_refused(settings):
    with pytest.raises(ValueError, match="--enc_in"):
        MODELS["TimeLLM"](Config.from_flat({**settings, "features": "MS"}))
    model = MODELS["TimeLLM"](Config.from_flat({**settings, "features": "MS", "enc_in": 3}))
    with pytest.raises(ValueError, match="expected 3 variables .* found 2"):
        model(torch.zeros(1, 32, 2))


def test_itr_trains_with_successive_seeds_and_tells_the_spread(tiny, caplog, capsys):
    import run_main

    words = [w for k, v in tiny.items() for w in ([f"--{k}"] if v is True else [f"--{k}", str(v)])]
    caplog.set_level("INFO")
    result = run_main.main([*words, "--model", "Linear", "--itr", "2", "--max_steps", "3"])
    folders = sorted(p.name for p in result.run_dir.parent.iterdir())
    assert len(folders) == 2 and "_s2021_" in folders[0] and "_s2022_" in folders[1]
    assert "test over 2 seeds" in caplog.text + capsys.readouterr().out
