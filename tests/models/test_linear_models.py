"""Baselines in the same loop: DLinear, Linear, PatchTST."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import run_main
from models import MODELS
from utils.config import Config

L, H, N = 48, 12, 3
BASELINES = ("DLinear", "Linear", "PatchTST")


def model_of(name: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"seq_len": L, "label_len": 0, "pred_len": H, "d_model": 16, "d_ff": 32, "n_heads": 4}
    return MODELS[name](Config.from_flat({**sizes, **settings})).eval()


def windows(count: int = 5) -> Tensor:
    return torch.randn(count, L, N, generator=torch.Generator().manual_seed(1)).cumsum(1)


@pytest.mark.parametrize("name", BASELINES)
def test_batch_and_variables_do_not_change_a_forecast(name: str) -> None:
    """Channel independence: a variable's forecast depends on its own window alone."""
    model, x = model_of(name), windows()
    together = model(x)
    assert together.shape == (5, H, N)
    torch.testing.assert_close(model(x[2:3, :, 1:2]), together[2:3, :, 1:2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["Linear", "PatchTST"])
def test_instance_norm_makes_forecasts_follow_level_and_scale(name: str) -> None:
    """A forecast of 3x + 7 is 3 times the forecast of x, plus 7."""
    model, x = model_of(name), windows()
    torch.testing.assert_close(model(3 * x + 7), 3 * model(x) + 7, rtol=1e-3, atol=1e-3)


def test_dlinear_starts_as_the_mean_of_the_window_and_equals_its_formula() -> None:
    """Published: weights 1/L on the moving average and on the rest."""
    model, x = model_of("DLinear"), windows().double()
    model = model.double()
    padded = torch.cat([x[:, :1].repeat(1, 12, 1), x, x[:, -1:].repeat(1, 12, 1)], dim=1)
    trend = torch.stack([padded[:, i : i + 25].mean(1) for i in range(L)], dim=1)
    by_hand = (
        torch.einsum("hl,bln->bhn", model.trend.weight, trend)
        + torch.einsum("hl,bln->bhn", model.seasonal.weight, x - trend)
        + (model.trend.bias + model.seasonal.bias)[:, None]
    )
    torch.testing.assert_close(model(x), by_hand)
    without_bias = model(x) - (model.trend.bias + model.seasonal.bias)[:, None]
    torch.testing.assert_close(without_bias, x.mean(1, keepdim=True).expand(-1, H, -1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings", "mse", "mae"),
    [
        # Zeng et al., AAAI 2023, Table 2, lookback 336
        ("DLinear", {"seq_len": 336, "learning_rate": 0.005, "lradj": "COS"}, 0.375, 0.399),
        # closed-form ridge with mean removal on the same windows
        ("Linear", {"seq_len": 512, "learning_rate": 0.001, "lradj": "COS"}, 0.367, 0.391),
    ],
)
def test_scores_on_etth1_are_within_two_percent_of_the_known(
    name: str, settings: dict[str, Any], mse: float, mae: float, etth1_root: Path, tmp_path: Path
) -> None:
    """A loop that trains nothing well would show here."""
    config = Config.from_flat(
        {
            "root_path": str(etth1_root),
            "model": name,
            "checkpoints": str(tmp_path),
            "train_epochs": 10,
            "patience": 3,
            "cpu": True,
            "save_steps": 0,
            "eval_batch_size": 256,
            **settings,
        }
    )
    scores = run_main.train(config, model=name).results["best"]["test"]
    print(f"\n{name}: mse {scores['mse']:.4f} ({mse}), mae {scores['mae']:.4f} ({mae})")
    assert scores["mse"] <= 1.02 * mse and scores["mae"] <= 1.02 * mae
