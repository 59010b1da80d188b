"""What a test keeps window by window: exact, whichever batches and processes it came from."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data_provider.data_factory import build_data, evaluation_loader
from models.registry import MODELS
from utils.config import Config
from utils.training.forward import forecast_state
from utils.training.run_folder import DETAILS_FILE, read_json
from utils.training.window_errors import BINS, DetailSums, read_details

BOTH = {"use_tapr": True, "use_gram": True}


def test_errors_are_those_of_plain_formulas_for_each_window_and_step(start_run, tiny):
    """Against the best checkpoint's own forecasts of the test windows, all at once, in numpy."""
    result = start_run(**BOTH)
    config = Config.from_flat({**tiny, **BOTH})
    data = build_data(config)
    model = MODELS["TimeLLM_Enhanced"](config)
    saved = torch.load(result.run_dir / "checkpoint", weights_only=True)
    model.load_state_dict(saved["model"])
    model.eval()
    batch = next(iter(evaluation_loader(data.test, 17)))
    with torch.no_grad():
        state = forecast_state(model, batch)
    error = (state.prediction - batch.y).double().numpy()
    kept = read_details(result.run_dir / DETAILS_FILE)
    found = kept.get("best", kept["last"])
    assert found.squared.dtype == found.absolute.dtype == np.float32
    np.testing.assert_array_equal(found.start, batch.start)
    np.testing.assert_allclose(found.squared, (error**2).mean((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(found.absolute, abs(error).mean((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(found.horizon_squared, (error**2).mean((0, 2)), rtol=1e-5)
    np.testing.assert_allclose(found.horizon_absolute, abs(error).mean((0, 2)), rtol=1e-5)
    assert state.retrieval is not None
    wanted, _ = np.histogram(state.retrieval.gate, bins=BINS, range=(0, 1))
    assert abs(found.gate_counts - wanted).sum() <= 2 and found.gate_counts.sum() == wanted.sum()
    assert found.weight_counts.sum() == int((state.retrieval.rows >= 0).sum())


def test_their_means_are_the_scores(start_run):
    result = start_run(eval_batch_size=5)  # 17 test windows: the last batch is a remainder
    kept = read_details(result.run_dir / DETAILS_FILE)
    scores = read_json(result.run_dir / "results.json")
    for name, found in kept.items():
        assert len(found.squared) == scores[name]["test"]["windows"] == 17
        for mean in (found.squared.mean(dtype=np.float64), found.horizon_squared.mean()):
            assert mean == pytest.approx(scores[name]["test"]["mse"], rel=1e-6)
        assert found.horizon_absolute.mean() == pytest.approx(scores[name]["test"]["mae"], rel=1e-6)
        assert not found.gate_counts.any()


def test_weights_that_are_both_best_and_last_are_kept_once(start_run):
    result = start_run()
    kept = read_details(result.run_dir / DETAILS_FILE)
    scores = read_json(result.run_dir / "results.json")
    assert set(kept) == ({"last"} if scores["best"]["step"] == scores["last"]["step"] else {"last", "best"})
    both = start_run(eval_steps=1, learning_rate=0.05, lradj="constant", max_steps=7)
    scores = read_json(both.run_dir / "results.json")
    assert scores["best"]["step"] != scores["last"]["step"]  # so fast a rate overshoots
    kept = read_details(both.run_dir / DETAILS_FILE)
    assert kept["best"].squared.mean() == pytest.approx(scores["best"]["test"]["mse"], rel=1e-5)


def test_nothing_tested_is_an_error():
    with pytest.raises(ValueError, match="empty"):
        DetailSums().gather()
