"""Known time marks reach the model when asked, and help where the calendar decides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

import run_main
from data_provider.time_features import time_marks
from models.registry import MODELS
from tests.models.test_timellm_enhanced import BATCH, BOTH, SIZES, SOURCE, H, L, N
from utils.config import Config
from utils.training.forward import forecast_state
from utils.training.objective import Objective
from utils.training.optim import build_optimizer
from utils.types import Batch, FitSource, unsolved

DATES = pd.date_range("2020-01-01", periods=L + H, freq="h")
MARKS = torch.from_numpy(time_marks(pd.DatetimeIndex(DATES), "h")).expand(3, -1, -1)
MARKED = BATCH._replace(x_mark=MARKS[:, :L], y_mark=MARKS[:, L:])
CASES = [("TimeLLM", {}), ("TimeLLM_Enhanced", BOTH)]


def built(model: str, folder: Path, **settings: Any) -> Any:
    torch.manual_seed(0)
    found = MODELS[model](Config.from_flat({**SIZES, "llm_model_path": str(folder), "freq": "h", **settings}))
    found.fit_statistics(FitSource(SOURCE, once=unsolved))
    return found


def forecast(model: Any, batch: Batch) -> Tensor:
    model.eval()
    with torch.no_grad():
        return forecast_state(model, batch).prediction


@pytest.mark.parametrize(("model", "switches"), CASES)
def test_off_is_as_ever_and_on_begins_where_off_is(model, switches, tiny_gpt2):
    """The baseline's parameters are made first: the same numbers with the switch and without."""
    off, on = (built(model, tiny_gpt2, use_time_marks=use, **switches) for use in (False, True))
    weights, more = off.state_dict(), on.state_dict()
    assert not any("time_marks" in name for name in weights)
    shared = [name for name in weights if not name.startswith(("tapr", "gram", "trend", "retrieval"))]
    assert shared and all(torch.equal(weights[name], more[name]) for name in shared)
    assert off.reads_time_marks is False and on.reads_time_marks is True
    assert torch.equal(forecast(off, MARKED), forecast(off, BATCH))
    if model == "TimeLLM":
        assert torch.equal(forecast(on, MARKED), forecast(off, BATCH))


@pytest.mark.parametrize(("model", "switches"), CASES)
def test_marks_of_the_lookback_and_of_the_future_both_reach_the_forecast(model, switches, tiny_llama):
    one = built(model, tiny_llama, use_time_marks=True, **switches)
    optimizer = build_optimizer(one, one.config.training)
    one.train()
    for step in range(5):
        Objective(one.config)(forecast_state(one, MARKED), MARKED, step=step).total.backward()
        if step == 0:
            assert all(p.grad is not None for name, p in one.named_parameters() if "time_marks" in name)
        if step == 4:
            assert all(bool(p.grad.any()) for name, p in one.named_parameters() if "time_marks" in name)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    before = forecast(one, MARKED)
    for name in ("x_mark", "y_mark"):
        other = MARKED._replace(**{name: getattr(MARKED, name).flip(1)})
        assert not torch.allclose(forecast(one, other), before, atol=1e-5)
    longer = MARKED._replace(y_mark=torch.cat([MARKS[:, L - 9 : L], MARKED.y_mark], dim=1))
    assert torch.equal(forecast(one, longer), before)  # the family's decoder marks begin with known rows
    alone = [forecast(one, Batch(*(column[i : i + 1] for column in MARKED))) for i in range(3)]
    torch.testing.assert_close(torch.cat(alone), before, rtol=1e-4, atol=1e-5)


def test_marks_belong_to_their_window_and_are_the_same_for_its_variables(tiny_gpt2):
    part = built("TimeLLM", tiny_gpt2, use_time_marks=True).time_marks
    torch.nn.init.normal_(part.to_patches.weight)
    marks = torch.rand(3, L, 4) - 0.5
    added = part.of_patches(marks, N).unflatten(0, (3, N))
    assert torch.equal(added[:, 0], added[:, 1]) and not torch.allclose(added[0], added[1])


def test_what_is_missing_is_named(tiny_gpt2):
    one = built("TimeLLM", tiny_gpt2, use_time_marks=True)
    with pytest.raises(ValueError, match="x_mark_enc: --use_time_marks reads time marks, found none"):
        one(BATCH.x)
    with pytest.raises(ValueError, match="x_mark_dec: --use_time_marks"):
        one(BATCH.x, x_mark_enc=MARKED.x_mark)
    with pytest.raises(ValueError, match="--use_time_marks: expected rows that have marks, found YE"):
        built("TimeLLM", tiny_gpt2, use_time_marks=True, freq="YE")


def weekly_event(folder: Path) -> Path:
    """Noise, and on Tuesdays from 10 to 15 h something large: no lookback of two days can tell."""
    dates = pd.date_range("2021-03-01", periods=24 * 7 * 20, freq="h")
    values = np.random.default_rng(0).normal(0, 0.3, len(dates))
    values[(dates.day_of_week == 1) & (dates.hour >= 10) & (dates.hour < 16)] += 4.0
    frame = pd.DataFrame({"date": dates.astype(str), "OT": values})
    frame.to_csv(folder / "event.csv", index=False)
    return folder / "event.csv"


def test_a_known_weekly_event_is_forecast_with_marks_alone(tiny_gpt2, tmp_path):
    """Same data, seed and steps; what differs is whether the model knows the calendar."""
    path = weekly_event(tmp_path)
    scores = {}
    for use in (False, True):
        settings = {
            **SIZES, "llm_model_path": str(tiny_gpt2), "llm_layers": 1, "d_model": 32,
            "root_path": str(path.parent), "data_path": path.name, "season": 24, "batch_size": 32,
            "max_steps": 130, "train_epochs": 9, "learning_rate": 0.02, "eval_steps": 130, "save_steps": 0,
            "eval_batch_size": 64, "use_time_marks": use, "checkpoints": str(tmp_path), "cpu": True,
        }  # fmt: skip
        result = run_main.train(Config.from_flat(settings), model="TimeLLM")
        scores[use] = result.results["best"]["test"]["mse"]
    print(f"test mse {scores[False]:.3f} without time marks, {scores[True]:.3f} with")
    assert scores[False] > 0.8  # standardised: about the mean's own error
    assert scores[True] < 0.5 * scores[False], scores
