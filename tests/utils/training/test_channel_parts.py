"""Many variables: some at a time give what all at once give, in less memory."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator, PartialState
from torch import Tensor, nn

import run_main
from data_provider.dataset import TrainingWindows
from data_provider.splits import Split
from models.registry import MODELS
from tests.models.test_timellm_enhanced import BOTH, SIZES, H, L
from utils.config import Config, ConfigError
from utils.log import MetricsFile
from utils.reporting.peak_memory import evaluation_memory, sizes_of, training_memory
from utils.training.forward import channel_parts, forecast_state, forecasts
from utils.training.metrics import ScoreSums
from utils.training.objective import Loss, Objective
from utils.training.optim import build_optimizer, build_schedule
from utils.training.trainer import Trainer
from utils.types import Batch, FitSource, unsolved

N, ROWS, SERIES = 7, 300, 5
EVERYTHING = BOTH | {"retrieval_fusion": "both", "memory_size": 400, "enc_in": N}
GENERATOR = torch.Generator().manual_seed(1)
VALUES = (torch.randn(ROWS, N, generator=GENERATOR).cumsum(0) * 0.2).sin() + torch.randn(
    ROWS, N, generator=GENERATOR
)
SOURCE = TrainingWindows(VALUES, Split(0, 220), seq_len=L, pred_len=H, series_id=SERIES)
STARTS = torch.tensor([0, 60, 119, 150])
BATCH = Batch(
    x=torch.stack([VALUES[s : s + L] for s in STARTS]),
    y=torch.stack([VALUES[s + L : s + L + H] for s in STARTS]),
    x_mark=torch.zeros(len(STARTS), L, 0),
    y_mark=torch.zeros(len(STARTS), H, 0),
    start=STARTS,
    series_id=torch.full_like(STARTS, SERIES),
    variable=torch.arange(N).repeat(len(STARTS), 1),
)
CASES = [
    ("TimeLLM", {}),
    ("TimeLLM", {"source_tokens": "prototypes"}),
    ("TimeLLM_Enhanced", EVERYTHING),
    ("TimeLLM_Enhanced", {**EVERYTHING, "token_order": "prompt_first", "retrieval_scope": "all"}),
    ("PatchTST", {"loss": "Huber", "loss_scale": "std"}),
    ("DLinear", {"loss": "MAE"}),
]


def built(model: str, folder: Path, settings: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    config = Config.from_flat({**SIZES, "llm_model_path": str(folder), **settings})
    found = MODELS[model](config)
    found.fit_statistics(FitSource(SOURCE, once=unsolved))
    return found


def learned(model: Any, batch: Batch, most: int | None) -> tuple[Loss, dict[str, Tensor]]:
    """Loss and every gradient, by the trainer's own pass."""
    config = model.config.replace(max_channels_per_step=most)
    trainer = trainer_of(model, config, Path("nowhere"))
    model.train()
    model.zero_grad(set_to_none=True)
    trainer.progress.global_step = 10  # the module losses have full weight
    still: Any = SimpleNamespace(step=lambda: None, zero_grad=lambda **_: None, get_last_lr=lambda: [0.0])
    trainer.optimizer = trainer.scheduler = still  # the gradients stay
    loss = trainer.train_step([batch])
    return loss, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def trainer_of(model: nn.Module, config: Config, folder: Path, *, device: str = "cpu") -> Trainer:
    """The product's loop over a model, by its own optimizer and schedule."""
    training = config.training
    precision, passes = training.mixed_precision, training.gradient_accumulation_steps
    accelerator = Accelerator(cpu=True, mixed_precision=precision, gradient_accumulation_steps=passes)
    for state in (PartialState(), accelerator.state):
        state.device = torch.device(device)
    optimizer = build_optimizer(model, training)
    trains = any(weight.requires_grad for weight in model.parameters())
    return Trainer(
        accelerator=accelerator,
        model=accelerator.prepare_model(model, device_placement=False) if trains else model,
        optimizer=accelerator.prepare_optimizer(optimizer),
        scheduler=build_schedule(optimizer, training, total_steps=9, steps_per_epoch=9),
        config=training,
        objective=Objective(config),
        trend_label=config.tapr.trend_label,
        metrics=MetricsFile(folder / "metrics.jsonl"),
        log_steps=10**9,
        save_steps=0,
        total_steps=9,
        stop=lambda: False,
    )


@pytest.mark.parametrize("most", [1, 3])
@pytest.mark.parametrize(("model", "settings"), CASES)
def test_forecast_loss_terms_and_every_gradient_are_the_wholes(model, settings, most, tiny_llama):
    """A loss over all variables of the batch, taken part by part, would be another."""
    whole, parts = (built(model, tiny_llama, settings) for _ in range(2))
    expected, wanted = learned(whole, BATCH, None)
    loss, found = learned(parts, BATCH, most)
    assert found.keys() == wanted.keys() == {n for n, p in whole.named_parameters() if p.requires_grad}
    for name, gradient in wanted.items():
        size = float(gradient.abs().max())
        torch.testing.assert_close(found[name], gradient, rtol=2e-3, atol=2e-5 * size + 1e-8, msg=name)
    assert loss.terms.keys() == expected.terms.keys()
    for name in ("total", "main", "auxiliary"):
        torch.testing.assert_close(getattr(loss, name), getattr(expected, name), rtol=1e-5, atol=1e-6)
    for name, term in expected.terms.items():
        torch.testing.assert_close(loss.terms[name], term, rtol=1e-5, atol=1e-6, msg=name)
    whole.eval()
    torch.testing.assert_close(
        forecasts(whole, BATCH, most), forecasts(whole, BATCH, None), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(("model", "settings"), [("DLinear", {}), ("TimeLLM", {})])
def test_in_float64_the_difference_is_rounding(model, settings, tiny_gpt2):
    """Differences must vanish with the precision, but for the steps that the models take in float32.

    TAPR and GRA-M decide in float32 always and are left out here.
    """
    whole, parts = (built(model, tiny_gpt2, settings).double() for _ in range(2))
    batch = BATCH._replace(x=BATCH.x.double(), y=BATCH.y.double())
    tolerance = 1e-12 if model == "DLinear" else 3e-6
    _, wanted = learned(whole, batch, None)
    _, found = learned(parts, batch, 2)
    for name, gradient in wanted.items():
        assert gradient.dtype == torch.float64
        size = float(gradient.abs().max())
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=tolerance * size + 1e-9, msg=name)


def test_scores_count_every_value_once_and_every_window_once(tiny_gpt2):
    model = built("TimeLLM_Enhanced", tiny_gpt2, EVERYTHING).eval()
    scores = []
    for most in (None, 3):
        sums = ScoreSums(torch.device("cpu"), trend_label="level")
        with torch.no_grad():
            for part in channel_parts(BATCH, most):
                sums.add(forecast_state(model, part.batch), part.batch, new_windows=part.first)
        scores.append(sums.reduce(lambda tensor: tensor))
    assert scores[0].keys() == scores[1].keys() and scores[1]["windows"] == len(STARTS)
    assert scores[1] == pytest.approx(scores[0], rel=1e-5, abs=1e-6)


def test_parts_are_the_batch_cut_by_variable():
    parts = list(channel_parts(BATCH, 3))
    assert [part.batch.x.shape[-1] for part in parts] == [3, 3, 1]
    assert [part.share for part in parts] == [3 / 7, 3 / 7, 1 / 7]
    assert [(part.first, part.last) for part in parts] == [(True, False), (False, False), (False, True)]
    for name in ("x", "y", "variable"):
        whole = torch.cat([getattr(part.batch, name) for part in parts], dim=-1)
        assert torch.equal(whole, getattr(BATCH, name))
    assert [part.batch for part in channel_parts(BATCH, None)] == [BATCH]


def test_the_vocabulary_is_mapped_once_a_step(tiny_gpt2, monkeypatch):
    """Mapping it in every part would cost more than the parts themselves."""
    model = built("TimeLLM", tiny_gpt2, {})
    calls: list[nn.Module] = []
    mapped = model._map_words

    def noted_map(mapping: nn.Module) -> Any:
        calls.append(mapping)
        return mapped(mapping)

    monkeypatch.setattr(model, "_map_words", noted_map)
    learned(model, BATCH, 3)
    assert len(calls) == 1


def test_a_whole_run_scores_what_it_scores_without(tiny, start_run):
    """Two variables: validation, test, kept forecasts and the estimate of time go in parts too."""
    settings = {**BOTH, "dropout": 0.0, "max_steps": 5}
    plain, parts = start_run(**settings), start_run(**settings, max_channels_per_step=1)
    found, wanted = (r.results["best"]["test"] for r in (parts, plain))
    assert found["windows"] == wanted["windows"]
    assert found["mse"] == pytest.approx(wanted["mse"], rel=1e-3)


def test_memory_of_a_pass_is_that_of_the_variables_it_takes(tiny_gpt2):
    model = built("TimeLLM", tiny_gpt2, {})
    config = model.config
    wide = sizes_of(model, config=config, forecast=862)
    bounded = sizes_of(model, config=config.replace(max_channels_per_step=N), forecast=862)
    narrow = sizes_of(model, config=config, forecast=N)
    for estimate, share in ((training_memory, 50), (evaluation_memory, 20)):  # the latter in blocks of series
        assert estimate(bounded).to_come == estimate(narrow).to_come < estimate(wide).to_come / share


@pytest.mark.parametrize("settings", [{"features": "MS"}, {"model": "Autoformer"}])
def test_models_that_read_all_variables_together_refuse_parts(settings):
    with pytest.raises(ConfigError, match="--max_channels_per_step: .* reads all variables at once"):
        Config.from_flat({**settings, "max_channels_per_step": 3}, models=MODELS)


def test_a_resumed_run_may_take_other_parts_and_says_so(start_run, caplog):
    trained = start_run(save_steps=5, max_steps=10)
    newest = str(trained.run_dir / "checkpoint_step_5")
    start_run(save_steps=5, max_steps=10, resume_from_checkpoint=newest, max_channels_per_step=1)
    assert "--max_channels_per_step None, this run has 1: other dropout" in caplog.text


def test_ridge_and_the_naive_forecasts_take_parts_too(tiny):
    config = Config.from_flat({**tiny, "model": "Ridge"})
    scores = [
        run_main.train(config.replace(max_channels_per_step=most), model="Ridge").results["best"]["test"]
        for most in (None, 1)
    ]
    assert scores[0]["mse"] == pytest.approx(scores[1]["mse"], rel=1e-9)
