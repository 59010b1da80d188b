"""What the original document lists as mended (4.1) and as common errors (8.1), row by row.

Left out: 8.1's row on GPU memory, whose remedies (8.2) are advice and not behaviour of these parts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import run_main
from layers.retrieval.keys import WindowKeys
from models import TimeLLM_Enhanced
from tests.models.test_timellm_enhanced import BOTH, SEASON, L, batch_of, config_of, shake, state_of
from tests.models.test_timellm_enhanced import model_of as fitted
from utils.training.objective import Objective
from utils.trend import direction_of, magnitude_of, trend_measure


def model_of(llm: Path, **settings: Any) -> Any:
    """A fitted enhanced model, its zero-initialised maps set to something."""
    model = fitted(llm, **{**BOTH, "llm_layers": 1, "memory_size": 60, **settings})
    shake(model, 0.1)
    return model


# 4.1, row 1, and 8.1 "Expected all tensors to be on the same device": tests/models/test_simulated_device.py.


# 4.1, row 2, and 8.1 "size mismatch for direction_logits".


def test_41_2_each_label_belongs_to_its_own_series(tiny_gpt2: Path) -> None:
    """Reshaped without the permutation, sizes fit and every label is another variable's."""
    model = model_of(tiny_gpt2, label_smoothing=0.0)
    batch = batch_of(0, 40, 80, 120, 150)
    state = state_of(model, batch)
    assert state.trend is not None
    trend = state.trend
    directions, magnitudes = [], []
    for window in range(len(batch.y)):
        for variable in range(2):
            row = window * 2 + variable
            measure = trend_measure(
                batch.y[window, :, variable][None],
                reference=trend.reference[row],
                scale=trend.scale[row],
                kind="level",
            )
            directions.append(direction_of(measure, trend.label_cuts))
            magnitudes.append(magnitude_of(measure, trend.label_cuts))
    assert len(set(torch.cat(directions).tolist())) > 1, "all alike would fit any order"
    knowing = trend._replace(
        direction_logits=20.0 * torch.nn.functional.one_hot(torch.cat(directions), 3),
        magnitude_logits=20.0 * torch.nn.functional.one_hot(torch.cat(magnitudes), 4),
    )
    terms = Objective(model.config)(state._replace(trend=knowing), batch, step=100).terms
    assert terms["direction"] < 1e-6 and terms["magnitude"] < 1e-6


# 4.1, row 3.


@pytest.mark.parametrize("kind", ["raw", "learned", "hybrid"])
def test_41_3_the_memory_tells_windows_of_equal_mean_apart(tiny_gpt2: Path, kind: str) -> None:
    """A window's mean is no key: after normalisation it is the same for all."""
    config = config_of(tiny_gpt2, retrieval_key=kind).gram
    torch.manual_seed(0)
    keys = WindowKeys(config, seq_len=L, patch_len=8, season=SEASON)
    time = torch.arange(L)
    unlike = torch.stack(
        [torch.zeros(L), torch.sin(2 * torch.pi * time / SEASON), torch.linspace(-1, 1, L), (-1.0) ** time]
    )
    assert unlike.mean(dim=1).abs().max() < 1e-6
    with torch.no_grad():
        found = keys(unlike)
    distance = torch.cdist(found, found) + torch.eye(len(unlike))
    assert distance.min() > 1e-2


# 4.1, row 4.


def test_41_4_the_modules_losses_weigh_what_the_document_says(tiny_gpt2: Path) -> None:
    """At a fifth of these weights the modules did not learn; the log showed 0.02."""
    model = model_of(tiny_gpt2, gate_loss="document")
    batch = batch_of(0, 60, 100)
    loss = Objective(model.config)(state_of(model, batch), batch, step=500)
    t = {name: value.item() for name, value in loss.terms.items()}
    tapr = 0.3 * t["direction"] + 0.3 * t["magnitude"] + 0.1 * t["consistency"] + 0.1 * t["ordinal"]
    tapr += model.config.tapr.lambda_path * t["path"]  # the document's level 3 has no loss
    gram = t["gate_consistency"] + t["gate_entropy"]
    assert loss.auxiliary.item() == pytest.approx(0.5 * tapr + 0.3 * gram, rel=1e-5)
    assert loss.total.item() == pytest.approx(loss.main.item() + loss.auxiliary.item(), rel=1e-5)
    assert loss.auxiliary > 0.1, "the document's sign that the weights are too small"


# 4.1, row 5.


def test_41_5_the_trend_changes_the_forecast_in_training_and_test(tiny_gpt2: Path) -> None:
    """Classified and thrown away, a trend is only a loss."""
    model = model_of(tiny_gpt2, use_gram=False)
    batch = batch_of(0, 60)
    for mode in (True, False):
        model.train(mode)
        with torch.no_grad():
            before = state_of(model, batch).prediction
            model.tapr.coarse_to_fine.magnitude_head[-1].bias += torch.tensor([4.0, 0.0, 0.0, -4.0])
            assert not torch.allclose(state_of(model, batch).prediction, before, atol=1e-4)


def test_41_5_the_forecasts_own_loss_reaches_the_classifiers(tiny_gpt2: Path) -> None:
    model = model_of(tiny_gpt2, use_gram=False)
    batch = batch_of(0, 60)
    (state_of(model, batch).prediction - batch.y).square().mean().backward()
    for head in (model.tapr.coarse_to_fine.direction_head, model.tapr.coarse_to_fine.magnitude_head[-1]):
        assert head.weight.grad.abs().max() > 0


# 4.1, row 6, and 8.1 "mat1 and mat2 shapes cannot be multiplied (Nx1 and 64x64)".


@pytest.mark.parametrize("fusion", ["feature", "both"])
@pytest.mark.parametrize("shape", ["[M, 1]", "[M, H - 3]", "[M, H, D]", "[M, 1, D]"])
def test_41_6_a_memory_of_any_layout_loads_and_forecasts(tiny_gpt2: Path, shape: str, fusion: str) -> None:
    """Through the model's own load_state_dict, as a user does it."""
    model = model_of(tiny_gpt2, retrieval_fusion=fusion)
    saved = model.state_dict()
    futures = saved["gram.retriever.memory_values"]  # [M, H]
    saved["gram.retriever.memory_values"] = {
        "[M, 1]": futures[:, :1],
        "[M, H - 3]": futures[:, 3:],
        "[M, H, D]": futures[..., None].expand(-1, -1, 8),
        "[M, 1, D]": futures[:, :1, None].expand(-1, -1, 8),
    }[shape]
    fresh = TimeLLM_Enhanced.Model(model.config)
    fresh.load_state_dict(saved)
    assert fresh.gram.retriever.memory_values.shape == futures.shape
    batch = batch_of(0, 60)
    fresh.eval()
    assert torch.isfinite(state_of(fresh, batch).prediction).all()
    if shape == "[M, H, D]":
        torch.testing.assert_close(state_of(fresh, batch), state_of(model.eval(), batch))


# 4.1, row 7, and 8.1 "validation loss keeps rising": by the ordinary commands.


@pytest.fixture
def series(tmp_path: Path) -> Iterator[list[str]]:
    """Flags for a series of noise, in which there is nothing to learn but the noise."""
    rows = 260
    table = pd.DataFrame({"OT": np.random.default_rng(0).normal(size=rows)})
    table.insert(0, "date", pd.date_range("2020-01-01", periods=rows, freq="h"))
    table.to_csv(tmp_path / "noise.csv", index=False)
    yield f"""--data custom --root_path {tmp_path} --data_path noise.csv --seq_len 32 --label_len 0
    --pred_len 8 --batch_size 8 --checkpoints {tmp_path / "runs"} --cpu --log_steps 1
    --save_steps 0""".split()


def records(run_dir: Path, event: str) -> list[dict[str, Any]]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["event"] == event]


def test_81_a_validation_loss_that_rises_ends_the_run_and_the_best_weights_are_kept(
    series: list[str],
) -> None:
    """Trained to the end on noise, the last weights score worse than those of the best validation."""
    words = "--model Linear --learning_rate 0.01 --lradj constant --train_epochs 40 --patience 2"
    run = run_main.main([*series, *words.split()])
    losses = [r["validation"]["mse"] for r in records(run.run_dir, "validation")]
    best = losses.index(min(losses))
    assert len(losses) == best + 3 < 40, "two validations without improvement, then the end"
    assert run.results["best"]["validation_mse"] == min(losses) < losses[-1]
    assert run.results["best"]["step"] < run.results["last"]["step"]
