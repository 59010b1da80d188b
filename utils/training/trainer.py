"""The training loop: fit, one step, evaluate, early stopping. It knows no particular model."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from logging import getLogger
from typing import Any

import torch
from accelerate import Accelerator, skip_first_batches
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from tqdm import tqdm

from utils.config import TrainingConfig
from utils.log import MetricsFile
from utils.training.metrics import ScoreSums, module_text
from utils.training.objective import Loss, Objective
from utils.trend import TrendLabel
from utils.types import Batch, ForecastState

log = getLogger(__name__)
TIMED_STEPS = 3
"""Optimizer steps timed for the first estimate, after a first one that warms up."""


SILENCE = 30
"""Seconds of evaluation after which a line says how far it is, where no bar does."""
LONG_RUN = 1800
"""Seconds from which on a run is told how to be shorter."""


class NonFiniteLossError(RuntimeError):
    """The loss is inf or NaN; nothing was updated."""


@dataclass
class Progress:
    """How far a run has come; all of it is in every checkpoint."""

    epoch: int = 0
    """Epochs finished."""
    batches: int = 0
    """Batches taken from the current epoch, per process."""
    global_step: int = 0
    """Optimizer steps taken."""
    val_loss_min: float = math.inf
    counter: int = 0
    """Validations without improvement."""
    best_step: int = -1
    loss_sums: dict[str, Tensor | float] = field(default_factory=dict)
    """Sums of the losses since the last validation, for its line in the log."""

    def state(self) -> dict[str, Any]:
        """As plain values."""
        return {**vars(self), "loss_sums": {name: float(v) for name, v in self.loss_sums.items()}}


@dataclass(frozen=True)
class Hooks:
    """What the trainer asks its owner to do."""

    refresh: Callable[[], None]
    """Recompute what validation needs to be up to date."""
    save_best: Callable[[], None]
    save_step: Callable[[], None]
    test: Callable[[], dict[str, float]]


class Trainer:
    """Trains a prepared model on prepared loaders, and scores it."""

    def __init__(
        self,
        *,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: LRScheduler,
        config: TrainingConfig,
        objective: Objective,
        trend_label: TrendLabel,
        metrics: MetricsFile,
        log_steps: int,
        save_steps: int,
        total_steps: int,
    ) -> None:
        """``model`` is the wrapped one; ``save_steps`` 0 writes no step checkpoints."""
        self.accelerator = accelerator
        self.model = model
        self.plain_model: Any = accelerator.unwrap_model(model)
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.config = config
        self.objective = objective
        self.trend_label = trend_label
        self.metrics = metrics
        self.log_steps = log_steps
        self.save_steps = save_steps
        self.total_steps = total_steps
        self.progress = Progress()
        self.rate = math.nan
        """Learning rate of the last optimizer step."""

    def fit(
        self, train_loader: DataLoader[Batch], validation_loader: DataLoader[Batch], hooks: Hooks
    ) -> None:
        """Train to the last step or until patience runs out, from wherever `progress` stands."""
        bar = tqdm(
            total=self.total_steps,
            initial=self.progress.global_step,
            desc="training",
            unit="step",
            disable=None if self.accelerator.is_main_process else True,
        )
        clock = _Clock(self.progress.global_step)
        with bar:
            for loss in self._steps(train_loader):
                bar.update()
                self._report(loss, clock)
                with clock.paused():
                    if self._validation_due():
                        self._validate(validation_loader, hooks)
                    if self.save_steps and self.progress.global_step % self.save_steps == 0:
                        hooks.save_step()
                if self._out_of_patience():
                    log.info("Early stopping: no improvement in %d validations", self.config.patience)
                    break

    def _steps(self, loader: DataLoader[Batch]) -> Iterator[Loss]:
        """One item per optimizer step: the loss of its last pass; epoch after epoch."""
        progress = self.progress
        while progress.global_step < self.total_steps and not self._out_of_patience():
            # reaches the sampler that decides the order; through the rest of a sharded loader it would not
            loader.set_epoch(progress.epoch)  # type: ignore[attr-defined]
            rest = skip_first_batches(loader, progress.batches) if progress.batches else loader
            gathered: list[Tensor] = []
            for batch in rest:
                loss, statistics = self.train_step(batch)
                progress.batches += 1
                if statistics is not None:
                    gathered.append(statistics)
                if not self.accelerator.sync_gradients:
                    continue
                progress.global_step += 1
                if gathered:
                    mean = torch.stack(gathered).mean()
                    self.plain_model.absorb_statistics(self.accelerator.reduce(mean, "mean"))
                    gathered = []
                at_end = progress.batches == len(loader)
                if at_end:
                    progress.epoch, progress.batches = progress.epoch + 1, 0
                yield loss
                if progress.global_step >= self.total_steps:
                    return

    def train_step(self, batch: Batch) -> tuple[Loss, Tensor | None]:
        """Forward, backward, and where accumulation is complete the optimizer's step."""
        self.model.train()
        with self.accelerator.accumulate(self.model):
            state = self._forward(self.model, batch)
            loss = self.objective(state, batch, step=self.progress.global_step)
            self._refuse_non_finite(loss.total, batch)
            self.accelerator.backward(loss.total)
            if self.accelerator.sync_gradients and self.config.max_grad_norm:
                self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
            self.optimizer.step()
            if self.accelerator.sync_gradients and not self.accelerator.optimizer_step_was_skipped:
                self.rate = float(self.scheduler.get_last_lr()[0])
                self.scheduler.step()
            self.optimizer.zero_grad(set_to_none=True)
        self._count(loss)
        return loss, self.plain_model.batch_statistics(state)

    @torch.no_grad()
    def evaluate(self, loader: DataLoader[Batch], *, name: str) -> dict[str, float]:
        """Scores over every window of ``loader``, each counted once, over all processes."""
        was_training = self.model.training
        self.model.eval()
        sums = ScoreSums(self.accelerator.device, trend_label=self.trend_label)
        hidden = None if self.accelerator.is_main_process else True
        log.info("%s: %d windows in %d batches", name, len(loader.dataset), len(loader))  # type: ignore[arg-type]
        began = told = time.perf_counter()
        bar = tqdm(loader, desc=name, unit="batch", leave=False, disable=hidden)
        for done, batch in enumerate(bar, start=1):
            sums.add(self._forward(self.plain_model, batch), batch)
            now = time.perf_counter()
            if now - told > SILENCE and not sys.stderr.isatty():
                told = now
                left = clock_text((now - began) / done * (len(loader) - done))
                log.info("%s: %d of %d batches, %s left", name, done, len(loader), left)
        self.model.train(was_training)
        return sums.reduce(lambda tensor: self.accelerator.reduce(tensor, "sum"))

    @staticmethod
    def _forward(model: nn.Module, batch: Batch) -> ForecastState:
        return model(
            batch.x,
            start=batch.start,
            series_id=batch.series_id,
            variable=batch.variable,
            target=batch.y,
            return_state=True,
        )

    def _validate(self, loader: DataLoader[Batch], hooks: Hooks) -> None:
        """Score on the validation windows; keep the weights if they are the best so far."""
        progress = self.progress
        began = time.perf_counter()
        self._average_losses()
        hooks.refresh()
        scores = self.evaluate(loader, name="validation")
        loss = scores["mse"]
        improved = loss < progress.val_loss_min
        if improved:
            progress.val_loss_min, progress.counter, progress.best_step = loss, 0, progress.global_step
        else:
            progress.counter += 1
        test = hooks.test() if self.config.eval_test_each_epoch else None
        self._log_validation(scores, test)
        record = {"train_loss": self._mean("main"), "aux_loss": self._mean("auxiliary"), "validation": scores}
        if test:
            record["test"] = test
        progress.loss_sums = {}
        if self.accelerator.is_main_process:
            self.metrics.append(
                event="validation",
                step=progress.global_step,
                epoch=progress.epoch,
                counter=progress.counter,
                seconds=time.perf_counter() - began,
                **record,
            )
        if improved:
            hooks.save_best()

    def _log_validation(self, scores: dict[str, float], test: dict[str, float] | None) -> None:
        """The line that closes an epoch, or a part of one."""
        progress = self.progress
        place = f"Epoch: {progress.epoch}"
        if progress.batches:
            place = f"Epoch: {progress.epoch + 1} (step {progress.global_step})"
        tested = f" | Test Loss: {test['mse']:.4f}" if test else ""
        log.info(
            "%s | Train Loss: %.4f | Aux Loss: %.4f | Vali Loss: %.4f%s%s",
            place,
            self._mean("main"),
            self._mean("auxiliary"),
            scores["mse"],
            tested,
            module_text(scores),
        )
        if progress.counter:
            log.info("EarlyStopping counter: %d out of %d", progress.counter, self.config.patience)

    def _validation_due(self) -> bool:
        """At the given steps, or at the epoch's end; always at the last step."""
        step = self.progress.global_step
        if step >= self.total_steps:
            return True
        if self.config.eval_steps:
            return step % self.config.eval_steps == 0
        return self.progress.batches == 0

    def _out_of_patience(self) -> bool:
        return self.progress.counter >= self.config.patience

    def _refuse_non_finite(self, loss: Tensor, batch: Batch) -> None:
        """Stop before the optimizer sees an inf or a NaN."""
        if not torch.isfinite(loss):
            raise NonFiniteLossError(
                f"the loss is {loss.item()} at optimizer step {self.progress.global_step + 1}, nothing was "
                f"updated; windows that start at rows {batch.start.tolist()}. Lower --learning_rate, set "
                "--max_grad_norm, or look for extreme values in these windows"
            )

    def _count(self, loss: Loss) -> None:
        """Add to the sums behind the next validation's line."""
        sums = self.progress.loss_sums
        for name, value in {"main": loss.main, "auxiliary": loss.auxiliary, **loss.terms}.items():
            sums[name] = sums.get(name, 0.0) + value.double()  # read on the host only where logged
        sums["passes"] = sums.get("passes", 0.0) + 1

    def _average_losses(self) -> None:
        """Make the sums since the last validation those of the mean process."""
        sums = self.progress.loss_sums
        if self.accelerator.num_processes > 1 and sums:
            values = torch.stack([torch.as_tensor(v, dtype=torch.float64) for v in sums.values()])
            mean = self.accelerator.reduce(values.to(self.accelerator.device), "mean")
            self.progress.loss_sums = dict(zip(sums, mean.tolist(), strict=True))

    def _mean(self, name: str) -> float:
        sums = self.progress.loss_sums
        return float(sums.get(name, 0.0)) / max(1.0, float(sums.get("passes", 0.0)))

    def _announce(self, left: float, seconds_per_step: float) -> None:
        """How long this will take, from the first timed steps, and what would take less."""
        log.info(
            "estimated time: %s at %.2f s a step, validation and test not counted",
            clock_text(left),
            seconds_per_step,
        )
        if left > LONG_RUN:
            shorter = "--max_steps N"
            if self.accelerator.device.type == "cpu":
                shorter += ", or the preset for two CPU cores, --preset cpu"
            log.info("this is long: shorter runs by %s", shorter)

    def _report(self, loss: Loss, clock: _Clock) -> None:
        """The first estimate of the time, then a line and a record every ``log_steps``."""
        step = self.progress.global_step
        seconds = clock.seconds_per_step(step)
        if step - clock.first_step == TIMED_STEPS + 1:
            self._announce((self.total_steps - step) * seconds, seconds)
        if step % self.log_steps or not self.accelerator.is_main_process:
            return
        terms = {name: value.item() for name, value in loss.terms.items()}
        log.info(
            "step %d/%d | loss %.4f | aux %.4f x %.2f | lr %.2e | %.2f s/step | left %s",
            step,
            self.total_steps,
            loss.main.item(),
            loss.auxiliary.item(),
            loss.warmup,
            self.rate,
            seconds,
            clock_text((self.total_steps - step) * seconds),
        )
        self.metrics.append(
            event="train",
            step=step,
            loss=loss.main.item(),
            auxiliary=loss.auxiliary.item(),
            warmup=loss.warmup,
            learning_rate=self.rate,
            seconds_per_step=None if math.isnan(seconds) else seconds,
            **terms,
        )


class _Clock:
    """Seconds per optimizer step, the first one (which also warms up) and all pauses left out."""

    def __init__(self, first_step: int) -> None:
        self.first_step = first_step
        self._began = math.nan

    def seconds_per_step(self, step: int) -> float:
        """Mean since the end of the first step; NaN before there is one to count."""
        now = time.perf_counter()
        if step <= self.first_step + 1:
            self._began = now
            return math.nan
        return (now - self._began) / (step - self.first_step - 1)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside is not counted."""
        paused_at = time.perf_counter()
        yield
        self._began += time.perf_counter() - paused_at


def clock_text(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    if math.isnan(seconds):
        return "?"
    whole = max(0, round(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
