"""The training loop: fit, one step, evaluate, early stopping. It knows no particular model."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from logging import getLogger
from typing import Any, NoReturn

import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from utils.config import TrainingConfig
from utils.errors import UserError
from utils.log import MetricsFile
from utils.process_memory import held_bytes
from utils.training.forward import channel_parts, forecast_state, forecasts, joined
from utils.training.metrics import ScoreSums, module_text, selection_metric
from utils.training.objective import Loss, Objective
from utils.training.run_state import Hooks, Progress
from utils.training.time_estimate import Clock, announce, clock_text, first_items, fitting_preset
from utils.trend import TrendLabel
from utils.types import Batch, ForecastState, PassOfStep

log = getLogger(__name__)
TIMED_STEPS = 3
"""Optimizer steps timed for the first estimate, after a first one that warms up."""


SILENCE = 30
"""Seconds of evaluation after which a line says how far it is, where no bar does."""
ROUNDS_BETWEEN_LOOKS = 8
"""Batches of an evaluation on several processes between two agreements on stopping."""


class NonFiniteLossError(UserError):
    """The loss is inf or NaN; nothing was updated."""


class EvaluationStopped(Exception):
    """A stop was asked for between the batches of an evaluation; its sums are lost, nothing else."""


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
        stop: Callable[[], bool],
        validates_start: bool = False,
        lockstep: bool = False,
        evaluation_seconds: Callable[[], float] = lambda: math.nan,
    ) -> None:
        """``model`` is the wrapped one; ``save_steps`` 0 writes no step checkpoints.

        ``stop`` tells whether this process has been asked to stop; ``validates_start`` whether the weights
        before the first step count as any others; ``lockstep`` whether all processes
        must make the same number of passes; ``evaluation_seconds`` how long the validations and tests
        to come will take.
        """
        self.accelerator = accelerator
        self.model = model
        self.plain_model: Any = accelerator.unwrap_model(model)
        self.optimizer, self.scheduler = optimizer, scheduler
        self.config = config
        self.objective = objective
        self.trend_label = trend_label
        self.metrics = metrics
        self.log_steps, self.save_steps, self.total_steps = log_steps, save_steps, total_steps
        self.progress = Progress()
        self.rate = math.nan
        """Learning rate of the last optimizer step."""
        self.stop, self.evaluation_seconds = stop, evaluation_seconds
        self.validates_start, self.lockstep = validates_start, lockstep
        self.step_is_saved = True
        """Whether there is nothing to save at the step that `fit` begins at."""
        self._stop_agreed = False
        self._passes: list[tuple[Tensor, Tensor]] = []
        """Loss and starts of the windows, of each forward pass of the optimizer step under way."""

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
        clock = Clock(self.progress.global_step)
        if self.validates_start and self.progress.global_step == 0 and self.progress.best_step == -1:
            self.progress.validation_due = True
        unfinished = self.progress.validation_due or not self.step_is_saved
        saved = -1 if unfinished else self.progress.global_step
        with bar:
            if unfinished or not self.total_steps:  # a closed form is judged as well
                saved = self._close_step(validation_loader, hooks) or saved
            for loss in self._steps(train_loader):
                bar.update()
                self._report(loss, clock)
                self.progress.validation_due = self._is_validation_step()
                if self._stop_agreed:
                    hooks.stopped()
                with clock.paused():
                    saved = self._close_step(validation_loader, hooks) or saved
                if self._out_of_patience():
                    log.info("Early stopping: no improvement in %d validations", self.config.patience)
                    break
        if self.save_steps and saved != self.progress.global_step:
            hooks.save_step()  # the tests that follow may take long

    def _close_step(self, validation_loader: DataLoader[Batch], hooks: Hooks) -> int | None:
        """Validate, then save, where they are due after this step; the step, if it was saved.

        In this order: the checkpoint of a step holds what its validation found.
        """
        if self.progress.validation_due or not self.total_steps:
            self._validate(validation_loader, hooks)
        step = self.progress.global_step
        if not self.save_steps or not self.total_steps or not step or step % self.save_steps:
            return None  # of step 0, what validation saved is whole
        hooks.save_step()
        return self.progress.global_step

    def _steps(self, loader: DataLoader[Batch]) -> Iterator[Loss]:
        """One item per optimizer step: the loss of its last pass; epoch after epoch."""
        progress = self.progress
        passes = self.config.gradient_accumulation_steps
        steps, rest_of_epoch = divmod(len(loader), passes)
        assert not rest_of_epoch, f"an epoch of {len(loader)} passes is no whole number of {passes}"
        while progress.global_step < self.total_steps and not self._out_of_patience():
            # reaches the sampler that decides the order; through the rest of a sharded loader it would not
            loader.set_epoch(progress.epoch)  # type: ignore[attr-defined]
            done = progress.epoch_steps * passes
            for batch in skip_first_batches(loader, done) if done else loader:
                loss = self.train_step(batch)
                if not self.accelerator.sync_gradients:
                    continue
                progress.global_step += 1
                progress.epoch_steps += 1
                if progress.epoch_steps == steps:
                    progress.epoch, progress.epoch_steps = progress.epoch + 1, 0
                yield loss
                if progress.global_step >= self.total_steps:
                    return

    def train_step(self, batch: Batch) -> Loss:
        """Forward, backward, and where accumulation is complete the optimizer's step."""
        self.model.train()
        with self.accelerator.accumulate(self.model):
            loss = self._backward(batch)
            if self.accelerator.sync_gradients and self.config.max_grad_norm:
                self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
            self.optimizer.step()
            if self.accelerator.sync_gradients and not self.accelerator.optimizer_step_was_skipped:
                self.rate = float(self.scheduler.get_last_lr()[0])
                self.scheduler.step()
            self.optimizer.zero_grad(set_to_none=True)
        self._count(loss)
        return loss

    def _backward(self, batch: Batch) -> Loss:
        """The gradients of a batch, some variables at a time, and its loss."""
        completes = self.accelerator.sync_gradients
        losses, shares = [], []
        whole: Loss | None = None
        for part in channel_parts(batch, self.config.max_channels_per_step):
            with nullcontext() if part.last else self._gradients_kept():
                first = not self._passes and part.first
                self.plain_model.begin_pass(PassOfStep(first=first, last=completes and part.last))
                state = forecast_state(self.model, part.batch)
                loss = self.objective(state, part.batch, step=self.progress.global_step)
                losses.append(loss)
                shares.append(part.share)
                if part.last:
                    whole = Loss.mean_of(losses, shares)
                    self._passes.append((whole.total, batch.start))
                    if completes:
                        self._agree()
                self.accelerator.backward(part.share * loss.total)
        assert whole is not None, "a batch has a last part"
        return whole

    @contextmanager
    def _gradients_kept(self) -> Iterator[None]:
        """Inside, a backward pass adds to this process's gradients, and is not the last of its step."""
        complete = self.accelerator.sync_gradients
        with self.accelerator.no_sync(self.model):
            self.accelerator.sync_gradients = False
            yield
        self.accelerator.sync_gradients = complete

    def _agree(self) -> None:
        """Refuse a loss that is not finite, and note a stop, in any process.

        One reduction and one look at a tensor per optimizer step, before its last backward pass, at whose
        end DeepSpeed moves the weights.
        """
        losses = torch.stack([loss for loss, _ in self._passes])
        wrong = (~torch.isfinite(losses)).sum()
        flags = torch.stack([wrong, torch.full_like(wrong, int(self.stop()))])
        found, stops = self.accelerator.reduce(flags, "sum").tolist()
        passes, self._passes = self._passes, []
        self._stop_agreed = bool(stops)
        if found:
            self._refuse_non_finite(passes)

    def _refuse_non_finite(self, passes: list[tuple[Tensor, Tensor]]) -> NoReturn:
        """Name the windows behind each loss of this step that is inf or NaN, in all processes."""
        own = [(loss.item(), start.tolist()) for loss, start in passes if not torch.isfinite(loss)]
        every = gather_object(own)
        windows = "; ".join(f"rows {starts}" for _, starts in every)
        raise NonFiniteLossError(
            f"the loss is {every[0][0]} at optimizer step {self.progress.global_step + 1}, nothing was "
            f"updated and the checkpoints saved before are good; windows that start at {windows}. Lower "
            "--learning_rate, set --max_grad_norm, or look for extreme values in these windows"
        )

    @torch.no_grad()
    def evaluate(
        self,
        loader: DataLoader[Batch],
        *,
        name: str,
        watchers: Sequence[Callable[[ForecastState, Batch], None]] = (),
    ) -> dict[str, float]:
        """Scores over every window of ``loader``, each counted once, over all processes.

        ``watchers`` see each batch of this process too.
        """
        was_training = self.model.training
        self.model.eval()
        reference = getattr(loader.dataset, "reference", None)
        sums = ScoreSums(self.accelerator.device, trend_label=self.trend_label, reference=reference)
        hidden = None if self.accelerator.is_main_process else True
        log.info("%s: %d windows in %d batches", name, len(loader.dataset), len(loader))  # type: ignore[arg-type]
        began = told = time.perf_counter()
        batches = self._until_stop(loader)
        bar = tqdm(batches, desc=name, unit="batch", leave=False, disable=hidden, total=len(loader))
        for done, batch in enumerate(bar, start=1):
            states = []
            for part in channel_parts(batch, self.config.max_channels_per_step):
                states.append(forecast_state(self.plain_model, part.batch))
                sums.add(states[-1], part.batch, new_windows=part.first)
            for watch in watchers:
                watch(joined(states), batch)
            now = time.perf_counter()
            if now - told > SILENCE and not sys.stderr.isatty():
                told = now
                left = clock_text((now - began) / done * (len(loader) - done))
                log.info("%s: %d of %d batches, %s left", name, done, len(loader), left)
        self.model.train(was_training)
        return sums.reduce(lambda tensor: self.accelerator.reduce(tensor, "sum"))

    def _until_stop(self, loader: DataLoader[Batch]) -> Iterator[Batch]:
        """The batches, with a look now and then at whether any process was asked to stop.

        Processes may have one batch more or less; all of them look equally often.

        Raises:
            EvaluationStopped: in all processes alike.
        """
        alone = self.accelerator.num_processes == 1
        every = 1 if alone else ROUNDS_BETWEEN_LOOKS
        rounds = len(loader) if alone else max(gather_object([len(loader)]))
        batches = iter(loader)
        for turn in range(rounds):
            if turn % every == 0:
                asked = self.stop()
                if asked if alone else any(gather_object([asked])):
                    raise EvaluationStopped
            batch = next(batches, None)
            if batch is not None:
                yield batch
            elif self.lockstep:
                self._keep_up(loader.dataset)
        assert next(batches, None) is None  # lets the loader see its end

    def _keep_up(self, dataset: Dataset[Batch]) -> None:
        """The passes over a batch that this process lacks and others have; what comes out counts nowhere."""
        batch = first_items(dataset, 1, self.accelerator.device)
        forecasts(self.plain_model, batch, self.config.max_channels_per_step)

    def _validate(self, loader: DataLoader[Batch], hooks: Hooks) -> None:
        """Score on the validation windows; keep the weights if they are the best so far."""
        progress = self.progress
        began = time.perf_counter()
        hooks.refresh()
        try:
            scores = self.evaluate(loader, name="validation")
            test = hooks.test() if self.config.eval_test_each_epoch else None
        except EvaluationStopped:
            hooks.stopped()
        losses = self._mean_losses()
        loss = selection_metric(scores)[1]
        improved = loss < progress.val_loss_min
        if improved:
            progress.val_loss_min, progress.counter, progress.best_step = loss, 0, progress.global_step
        else:
            progress.counter += 1
        self._log_validation(losses, scores, test)
        record: dict[str, Any] = {"validation": scores}
        if losses:
            record |= {"train_loss": losses["main"], "aux_loss": losses["auxiliary"]}
        if test:
            record["test"] = test
        progress.loss_sums, progress.validation_due = {}, False
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

    def _log_validation(
        self, losses: dict[str, float], scores: dict[str, float], test: dict[str, float] | None
    ) -> None:
        """The line that closes an epoch, or a part of one."""
        progress = self.progress
        place = f"Epoch: {progress.epoch}"
        if progress.epoch_steps:
            place = f"Epoch: {progress.epoch + 1} (step {progress.global_step})"
        trained = ""
        if losses:
            trained = f" | Train Loss: {losses['main']:.4f} | Aux Loss: {losses['auxiliary']:.4f}"
        tested = f" | Test Loss: {selection_metric(test)[1]:.4f}" if test else ""
        log.info(
            "%s%s | Vali Loss: %.4f%s%s",
            place,
            trained,
            selection_metric(scores)[1],
            tested,
            module_text(scores),
        )
        if progress.counter:
            log.info("EarlyStopping counter: %d out of %d", progress.counter, self.config.patience)

    def _is_validation_step(self) -> bool:
        """At the given steps, or at the epoch's end; always at the last step."""
        step = self.progress.global_step
        if step >= self.total_steps:
            return True
        if self.config.eval_steps:
            return step % self.config.eval_steps == 0
        return self.progress.epoch_steps == 0

    def _out_of_patience(self) -> bool:
        return self.progress.counter >= self.config.patience

    def _count(self, loss: Loss) -> None:
        """Add to the sums behind the next validation's line."""
        sums = self.progress.loss_sums
        for name, value in {"main": loss.main, "auxiliary": loss.auxiliary, **loss.terms}.items():
            sums[name] = sums.get(name, 0.0) + value.double()  # read on the host only where logged
        sums["passes"] = sums.get("passes", 0.0) + 1

    def _mean_losses(self) -> dict[str, float]:
        """The mean losses per pass since the last validation, over all processes; none without a pass."""
        sums = self.progress.loss_sums
        if not sums:
            return {}
        values = torch.stack([torch.as_tensor(v, dtype=torch.float64, device="cpu") for v in sums.values()])
        total = self.accelerator.reduce(values.to(self.accelerator.device), "sum").tolist()
        means = dict(zip(sums, total, strict=True))
        return {name: value / means["passes"] for name, value in means.items()}

    def _report(self, loss: Loss, clock: Clock) -> None:
        """The first estimate of the time, then a line and a record every ``log_steps``."""
        step = self.progress.global_step
        seconds = clock.seconds_per_step(step)
        if step - clock.first_step == TIMED_STEPS + 1:
            with clock.paused():
                announce(
                    steps=self.total_steps - step,
                    seconds_per_step=seconds,
                    evaluation=self.evaluation_seconds(),
                    preset=fitting_preset(self.accelerator.device),
                )
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
            samples_per_second=None if math.isnan(seconds) else self._samples_per_step() / seconds,
            memory_bytes=held_bytes(self.accelerator.device),
            **terms,
            **{name: value.item() for name, value in loss.decisions.items()},
        )

    def _samples_per_step(self) -> int:
        """Training samples in one optimizer step, over all passes and processes."""
        t = self.config
        return t.batch_size * t.gradient_accumulation_steps * self.accelerator.num_processes
