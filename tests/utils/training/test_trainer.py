from __future__ import annotations

import math
from typing import Any, NoReturn

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from utils.config import Config
from utils.log import MetricsFile
from utils.training.agreement import NonFiniteLossError
from utils.training.objective import Objective
from utils.training.optim import build_optimizer, build_schedule
from utils.training.run_state import Hooks
from utils.training.stopping import RunStopped
from utils.training.time_estimate import clock_text
from utils.training.trainer import Trainer
from utils.types import Batch

LOOKBACK, HORIZON = 4, 2


class Linear(nn.Module):
    """The smallest forecaster: one linear map for all variables."""

    def __init__(self, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.map = nn.Linear(LOOKBACK, HORIZON)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_enc: Tensor, **_: Any) -> Any:
        return self.map(self.dropout(x_enc).transpose(1, 2)).transpose(1, 2)


def windows(count: int = 10, *, seed: int = 0) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    mark = torch.zeros(1)
    return [
        Batch(
            torch.randn(LOOKBACK, 3, generator=generator),
            torch.randn(HORIZON, 3, generator=generator),
            mark,
            mark,
            torch.tensor(i),
            torch.tensor(0),
            torch.arange(3),
        )
        for i in range(count)
    ]


class Parts:
    """A trainer over these windows, and what its hooks were asked for."""

    def __init__(self, tmp_path: Any, *, data: list[Batch], total: int, save_steps: int = 0, **changes: Any):
        values = {"batch_size": 2, "learning_rate": 0.01, "log_steps": 1, "dropout": 0.0, **changes}
        self.config = Config.from_flat(values)
        t = self.config.training
        torch.manual_seed(0)
        self.model = Linear(dropout=self.config.backbone.dropout)
        self.initial = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.accelerator = Accelerator(cpu=True, gradient_accumulation_steps=t.gradient_accumulation_steps)
        optimizer = build_optimizer(self.model, t)
        self.metrics = MetricsFile(tmp_path / "metrics.jsonl")
        self.calls: list[tuple[str, int]] = []
        windows: Any = data  # a list is a data set of its items
        loader: DataLoader[Batch] = DataLoader(windows, batch_size=2, generator=torch.Generator())
        self.loader = self.accelerator.prepare_data_loader(loader)
        self.trainer = Trainer(
            accelerator=self.accelerator,
            model=self.accelerator.prepare_model(self.model),
            optimizer=self.accelerator.prepare_optimizer(optimizer),
            scheduler=build_schedule(optimizer, t, total_steps=total, steps_per_epoch=total),
            config=t,
            objective=Objective(self.config),
            trend_label="level",
            metrics=self.metrics,
            log_steps=1,
            save_steps=save_steps,
            total_steps=total,
            stop=lambda: self.stop_at is not None and self.trainer.progress.global_step + 1 >= self.stop_at,
        )
        self.stop_at: int | None = None
        self.scores: list[float] | None = None

    def fit(self, *, scores: list[float] | None = None) -> Trainer:
        """Train; ``scores`` are what the validations find, in place of the real ones."""
        if scores is not None:
            found = iter(scores)
            self.trainer.evaluate = lambda *_, **__: {"mse": next(found)}  # type: ignore[method-assign]

        def note(name: str) -> Any:
            return lambda: self.calls.append((name, self.trainer.progress.global_step))

        self.trainer.fit(
            self.loader,
            self.loader,
            Hooks(note("refresh"), note("best"), note("step"), lambda: {"mse": 1.0}, self.stopped),
        )
        return self.trainer

    def stopped(self) -> NoReturn:
        self.calls.append(("stopped", self.trainer.progress.global_step))
        raise RunStopped("asked to")

    def called(self, name: str) -> list[int]:
        return [step for called, step in self.calls if called == name]


def test_the_rate_in_the_log_is_the_one_that_was_used(tmp_path):
    """Read after the schedule's step it is the next one's: the first shown is too low, the last zero."""
    parts = Parts(tmp_path, data=windows(), total=5, learning_rate=0.01)
    parts.fit()
    rates = [r["learning_rate"] for r in parts.metrics.read() if r["event"] == "train"]
    assert rates == pytest.approx([0.005 * (1 + math.cos(math.pi * step / 5)) for step in range(5)])


def test_metrics_are_strict_json(tmp_path):
    """NaN is no JSON: other languages' readers stop at it. The first step has no time per step."""
    parts = Parts(tmp_path, data=windows(), total=2)
    parts.fit()
    assert "NaN" not in parts.metrics.path.read_text()
    assert parts.metrics.read()[0]["seconds_per_step"] is None


def reference_weights(data: list[Batch], groups: list[list[int]], *, rate: float = 0.01) -> Tensor:
    """Plain Adam over these groups of windows, one step each, the mean over all of a group."""
    torch.manual_seed(0)
    model = Linear()
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for group in groups:
        optimizer.zero_grad()
        x, y = (torch.stack([data[i][field] for i in group]) for field in (0, 1))
        (model(x) - y).square().mean().backward()
        optimizer.step()
    return model.map.weight.detach()


def test_training_equals_a_plain_loop(tmp_path):
    data = windows(6)
    parts = Parts(tmp_path, data=data, total=6, lradj="constant")
    parts.fit()
    expected = reference_weights(data, [[0, 1], [2, 3], [4, 5]] * 2)
    torch.testing.assert_close(parts.model.map.weight, expected, rtol=1e-5, atol=1e-7)


def test_accumulated_passes_equal_one_large_batch(tmp_path):
    """Two passes of two windows are one step of four."""
    data = windows(8)
    parts = Parts(tmp_path, data=data, total=4, gradient_accumulation_steps=2, lradj="constant")
    trainer = parts.fit()
    expected = reference_weights(data, [[0, 1, 2, 3], [4, 5, 6, 7]] * 2)
    torch.testing.assert_close(parts.model.map.weight, expected, rtol=1e-5, atol=1e-7)
    assert trainer.progress.global_step == 4


def test_an_epoch_of_a_broken_number_of_steps_is_a_fault_of_ours(tmp_path):
    """A last group of fewer passes, divided by the full number, would be a step too small; the loader
    of a run takes whole steps only."""
    parts = Parts(tmp_path, data=windows(10), total=6, gradient_accumulation_steps=2)
    with pytest.raises(AssertionError, match="5 passes"):
        parts.fit()


def test_a_stop_waits_for_the_steps_end_and_comes_before_its_validation(tmp_path):
    """A cluster that sends SIGTERM waits for seconds, not for a validation."""
    parts = Parts(tmp_path, data=windows(10), total=20)
    parts.stop_at = 5
    with pytest.raises(RunStopped):
        parts.fit()
    assert parts.calls == [("stopped", 5)]
    assert parts.trainer.progress.validation_due and parts.trainer.progress.state()["epoch"] == 1


def test_a_validation_that_was_due_is_made_first_after_a_stop(tmp_path):
    parts = Parts(tmp_path, data=windows(10), total=10, save_steps=5)
    parts.stop_at = 5
    with pytest.raises(RunStopped):
        parts.fit()
    parts.calls.clear()
    parts.stop_at = None
    trainer = parts.fit(scores=[1.0, 2.0])
    assert parts.calls == [("refresh", 5), ("best", 5), ("step", 5), ("refresh", 10), ("step", 10)]
    assert trainer.progress.counter == 1 and not trainer.progress.validation_due


def test_the_last_state_is_saved_before_the_tests(tmp_path):
    """A run killed in its test, hours after its last regular checkpoint, would train them again."""
    parts = Parts(tmp_path, data=windows(), total=5, save_steps=2, eval_steps=10)
    parts.fit()
    assert parts.called("step") == [2, 4, 5]


def test_validation_is_due_each_epoch_and_at_the_last_step(tmp_path):
    parts = Parts(tmp_path, data=windows(10), total=12)
    parts.fit()
    assert parts.called("refresh") == [5, 10, 12]


def test_validation_is_due_at_the_given_steps_and_at_the_last(tmp_path):
    parts = Parts(tmp_path, data=windows(10), total=11, eval_steps=3)
    parts.fit()
    assert parts.called("refresh") == [3, 6, 9, 11]


def test_the_best_is_saved_on_improvement_alone(tmp_path):
    """Equal is not better: a tie must not move the best."""
    parts = Parts(tmp_path, data=windows(), total=5, eval_steps=1)
    trainer = parts.fit(scores=[3.0, 2.0, 2.0, 2.5, 1.0])
    assert parts.called("best") == [1, 2, 5]
    assert (trainer.progress.best_step, trainer.progress.val_loss_min) == (5, 1.0)
    assert [r["counter"] for r in parts.metrics.read() if r["event"] == "validation"] == [0, 0, 1, 2, 0]


def test_patience_counts_validations_without_improvement(tmp_path, caplog):
    caplog.set_level("INFO", logger="utils")
    parts = Parts(tmp_path, data=windows(), total=50, eval_steps=1, patience=3)
    trainer = parts.fit(scores=[1.0, 2.0, 0.5, 0.6, 0.7, 0.8])
    assert trainer.progress.global_step == 6
    assert "EarlyStopping counter: 2 out of 3" in caplog.text and "Early stopping" in caplog.text


def test_a_run_that_patience_ended_does_not_go_on_when_resumed(tmp_path):
    """One step more than the run that was never interrupted would be another run."""
    parts = Parts(tmp_path, data=windows(), total=50, eval_steps=1, patience=2)
    parts.trainer.progress.counter = 2
    trainer = parts.fit(scores=[1.0] * 50)
    assert trainer.progress.global_step == 0 and not parts.calls


def test_a_validation_that_is_nan_is_no_improvement(tmp_path):
    parts = Parts(tmp_path, data=windows(), total=2, eval_steps=1)
    trainer = parts.fit(scores=[math.nan, math.nan])
    assert trainer.progress.counter == 2 and not parts.called("best")


def test_step_checkpoints_are_due_every_save_steps_after_the_validation(tmp_path):
    """The other order would lose the validation of a run that is cut off between the two."""
    parts = Parts(tmp_path, data=windows(), total=5, save_steps=2, eval_steps=2)
    parts.fit()
    assert parts.called("step") == [2, 4, 5]
    order = [name for name, step in parts.calls if step == 2]
    assert order.index("refresh") < order.index("step")


@pytest.mark.parametrize(("maximum", "clipped"), [(0.0, False), (0.01, True)])
def test_clipping_bounds_the_gradient_of_a_step(tmp_path, monkeypatch, maximum, clipped):
    parts = Parts(tmp_path, data=windows(), total=3, max_grad_norm=maximum)
    norms: list[float] = []
    step = parts.trainer.optimizer.step

    def spy(*args: Any, **kwargs: Any) -> Any:
        norms.append(
            math.sqrt(
                sum(float(p.grad.square().sum()) for p in parts.model.parameters() if p.grad is not None)
            )
        )
        return step(*args, **kwargs)

    monkeypatch.setattr(parts.trainer.optimizer, "step", spy)
    parts.fit()
    assert all((norm <= 0.01 * 1.001) == clipped for norm in norms) and len(norms) == 3


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_the_optimizer(tmp_path, value):
    """After one NaN step every weight is NaN, and the next checkpoint holds them."""
    data = windows(10)
    data[5].x[1, 1] = value
    parts = Parts(tmp_path, data=data, total=50, lradj="constant")
    with pytest.raises(NonFiniteLossError, match=r"step 3.*rows \[4, 5\].*--learning_rate"):
        parts.fit()
    expected = reference_weights(data, [[0, 1], [2, 3]])
    torch.testing.assert_close(parts.model.map.weight.detach(), expected, rtol=1e-5, atol=1e-7)


def test_scores_are_exact_sums_over_batches_of_any_size(tmp_path):
    """A mean of batch means counts the windows of a short last batch too much.

    The sums are those of the forecasts that were made: another batch size rounds forecasts otherwise.
    """
    data = windows(9)
    parts = Parts(tmp_path, data=data, total=1)
    seen: list[tuple[Tensor, Tensor]] = []
    scores = parts.trainer.evaluate(
        parts.loader, name="test", watchers=[lambda state, batch: seen.append((state.prediction, batch.y))]
    )
    forecast, future = (torch.cat(column) for column in zip(*seen, strict=True))
    assert torch.equal(future, torch.stack([w.y for w in data])) and len({len(y) for _, y in seen}) == 2
    with torch.no_grad():
        one_by_one = torch.cat([parts.model(w.x[None]) for w in data])
    torch.testing.assert_close(forecast, one_by_one)
    errors = forecast.double() - future.double()
    assert scores["mse"] == pytest.approx(errors.square().mean().item(), rel=1e-12)
    assert scores["mae"] == pytest.approx(errors.abs().mean().item(), rel=1e-12)
    assert scores["windows"] == 9


def test_evaluation_gives_the_mode_back_and_draws_nothing(tmp_path):
    """Dropout left off after the first validation is a classic."""
    parts = Parts(tmp_path, data=windows(), total=1, dropout=0.5)
    for mode in (True, False):
        parts.model.train(mode)
        state = torch.get_rng_state()
        parts.trainer.evaluate(parts.loader, name="test")
        assert parts.model.training == mode and parts.model.dropout.training == mode
        assert torch.equal(torch.get_rng_state(), state)


def test_seconds_are_shown_as_hours_minutes_seconds():
    assert [clock_text(s) for s in (0, 59.6, 3661, math.nan, -3)] == [
        "0:00:00",
        "0:01:00",
        "1:01:01",
        "?",
        "0:00:00",
    ]
