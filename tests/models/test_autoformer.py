"""Autoformer: what its forecast depends on, and that it runs in the same loop."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

import run_main
from models.Autoformer import Model
from models.registry import MODELS
from utils.config import Config, ConfigError

L, H, N, F = 48, 12, 3, 4
SIZES = {
    "model": "Autoformer",
    "seq_len": L,
    "label_len": 24,
    "pred_len": H,
    "enc_in": N,
    "d_model": 16,
    "d_ff": 32,
    "n_heads": 4,
}


def model_of(**settings: Any) -> Model:
    torch.manual_seed(0)
    return Model(Config.from_flat({**SIZES, **settings})).eval()


def inputs(count: int = 5, length: int = L, horizon: int = H) -> tuple[Tensor, Tensor, Tensor]:
    """Windows and their marks."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, length, N, generator=generator).cumsum(1) * 0.3
    marks = torch.rand(count, length + horizon, F, generator=generator) - 0.5
    return x, marks[:, :length], marks[:, length:]


def forecast(model: Model, x: Tensor, before: Tensor | None, after: Tensor | None) -> Tensor:
    found = model(x, before, None, after)
    assert isinstance(found, Tensor)
    return found


@pytest.mark.parametrize(
    ("settings", "horizon"),
    [({"label_len": c}, H) for c in (0, 1, 24, 48)]
    + [({"pred_len": 1}, 1), ({"pred_len": 100}, 100), ({"moving_avg": 4}, H), ({"moving_avg": 999}, H)]
    + [({"e_layers": 1, "d_layers": 2}, H), ({"factor": 3.0}, H), ({"features": "MS"}, H)],
)
def test_shapes_and_gradients_for_all_lengths_and_depths(settings: dict[str, Any], horizon: int) -> None:
    """A label_len of 0 once meant the whole lookback (a slice from -0)."""
    model = model_of(**settings).train()
    x, before, after = inputs(horizon=horizon)
    out = forecast(model, x, before, after)
    assert out.shape == (5, horizon, 1 if settings.get("features") == "MS" else N)
    out.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        # rightly none: a bias before a mean is taken out; an embedding of zeros, where label_len is 0
        all_zeros = settings.get("label_len") == 0 and name == "decoder_embedding.value_embedding.weight"
        if name.endswith("weight") and not all_zeros:
            assert parameter.grad.abs().max() > 0, name


def test_a_forecast_depends_on_its_own_window_and_marks_alone() -> None:
    """Neighbours in the batch, in training or not, are no part of it; everything given is."""
    model = model_of(dropout=0.0).train()
    x, before, after = inputs()
    together = forecast(model, x, before, after)
    alone = forecast(model, x[2:3], before[2:3], after[2:3])
    torch.testing.assert_close(alone, together[2:3], rtol=1e-4, atol=1e-5)
    for changed in (
        (x + torch.randn(x.shape), before, after),
        (x, before.flip(1), after),
        (x, before, -after),
    ):
        assert (forecast(model, *changed) - together).abs().max() > 1e-4


def test_variables_are_mixed() -> None:
    """Unlike the channel-independent baselines: each forecast reads every variable."""
    model, (x, before, after) = model_of(), inputs()
    other = x.clone()
    other[..., 2] += torch.randn(L)
    assert (forecast(model, other, before, after) - forecast(model, x, before, after))[
        ..., 0
    ].abs().max() > 1e-4


def test_marks_of_the_decoder_start_may_be_given_or_not() -> None:
    """The family's x_mark_dec begins label_len rows before the horizon; ours with it."""
    model, (x, before, after) = model_of(), inputs()
    family = torch.cat([before[:, -24:], after], dim=1)
    torch.testing.assert_close(forecast(model, x, before, family), forecast(model, x, before, after))


def test_a_model_that_adds_nothing_forecasts_the_lookbacks_mean() -> None:
    """The decoder's trend starts at the mean: with the learned parts at zero that is the forecast."""
    model, (x, before, after) = model_of(), inputs()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("projection") or "trend_projection" in name:
                parameter.zero_()
    expected = x.mean(dim=1, keepdim=True).expand(-1, H, -1)
    torch.testing.assert_close(forecast(model, x, before, after), expected)


def test_the_decoder_starts_from_the_last_rows_parts() -> None:
    model, (x, _, _) = model_of(), inputs()
    seasonal, trend = model._decoder_start(x)
    torch.testing.assert_close((seasonal + trend)[:, :24], x[:, -24:])
    assert not seasonal[:, 24:].any()
    torch.testing.assert_close(trend[:, -1], x.mean(dim=1))


def test_rows_without_marks_need_none() -> None:
    """Yearly rows have no position in a year."""
    model, (x, _, _) = model_of(freq="YE"), inputs()
    assert forecast(model, x, None, None).shape == (5, H, N)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x, b, a: (x[..., :2], b, a), r"x_enc: expected \[B, 48, 3\], found \[5, 48, 2\]"),
        (lambda x, b, a: (x[:, 1:], b, a), r"x_enc: expected \[B, 48, 3\]"),
        (lambda x, b, a: (x, None, a), "x_mark_enc: Autoformer reads time marks.* found none"),
        (lambda x, b, a: (x, b, a[:, 1:]), r"x_mark_dec: .*\[B, 12, 4\] \(h\), found \[5, 11, 4\]"),
        (lambda x, b, a: (x, b[..., :2], a), "x_mark_enc"),
    ],
)
def test_what_does_not_fit_is_named(change: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        forecast(model_of(), *change(*inputs()))


def test_settings_that_do_not_fit_are_refused_at_once() -> None:
    """As the flags are read where the models are known, otherwise as the model is built."""
    wrong = {**SIZES, "channel_sampling": "single", "d_model": 18}
    for build in (lambda: Config.from_flat(wrong, models=MODELS), lambda: Model(Config.from_flat(wrong))):
        with pytest.raises(ConfigError) as caught:
            build()
        assert {p.split(":")[0] for p in caught.value.problems} == {"--channel_sampling", "--d_model"}
    with pytest.raises(ValueError, match="--enc_in"):
        Model(Config.from_flat({**SIZES, "enc_in": None}))


def test_it_trains_in_the_same_loop_and_label_len_names_another_run(tmp_path: Path) -> None:
    """By the ordinary command, with the number of variables and the marks read from the data."""
    rows = 300
    time = np.arange(rows)
    table = pd.DataFrame({f"v{i}": np.sin(time * np.pi / 12 + i) + 0.1 * i for i in range(N)})
    table.insert(0, "date", pd.date_range("2020-01-01", periods=rows, freq="15min"))
    table.to_csv(tmp_path / "waves.csv", index=False)
    words = f"""--model Autoformer --data custom --root_path {tmp_path} --data_path waves.csv --cpu
    --seq_len 32 --label_len 16 --pred_len 8 --d_model 16 --d_ff 32 --n_heads 2 --batch_size 16 --dropout 0
    --checkpoints {tmp_path / "runs"} --learning_rate 0.005 --train_epochs 6 --save_steps 0"""
    run = run_main.main(words.split())
    best = run.results["best"]
    tested = run_main.main([*words.split(), "--is_training", "0"])
    assert tested.results["checkpoint"]["test"] == best["test"]
    naive = run_main.main([*words.split(), "--model", "Persistence"]).results["best"]["test"]["mse"]
    assert best["test"]["mse"] < 0.5 * naive
    other = run_main.main([*words.split(), "--label_len", "8", "--max_steps", "1"])
    assert other.run_dir.name.split("_")[-1] != run.run_dir.name.split("_")[-1]
