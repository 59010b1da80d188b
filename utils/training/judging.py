"""The end of a run: its weights scored on every test window, and what it leaves in its folder."""

from __future__ import annotations

from functools import partial
from logging import getLogger
from typing import Any

import numpy as np
import torch

from utils.reporting.report import interval_table
from utils.training import checkpoint as checkpoints
from utils.training import run_folder as folders
from utils.training.by_variable import VariableSums, constant_lines
from utils.training.calibrating import calibration_of_best
from utils.training.calibration import IntervalSums
from utils.training.context import Loaders, RunContext
from utils.training.details import DetailSums, TestDetails, write_details
from utils.training.metrics import decisive, score_text
from utils.training.passes import forecasts, stacked
from utils.training.stopping import RunStopped, how_to_go_on
from utils.training.trainer import EvaluationStopped, Trainer
from utils.training.whole_files import whole_file

log = getLogger(__name__)
INTERVALS = "intervals"
"""Where the results say what the intervals covered."""
BY_VARIABLE = "by_variable"
"""Where the results have the test's errors of each variable."""
SHOWN_WINDOWS = 6
"""Test windows whose forecasts are kept for a plot."""


def judge(this: RunContext, trainer: Trainer, loaders: Loaders) -> dict[str, Any]:
    """Score the last and the best weights on every test window, and write the results.

    Raises:
        RunStopped: a stop was asked for; the training before it is saved.
    """
    training = bool(this.config.run.is_training)
    try:
        details: dict[str, TestDetails] = {}
        if training:
            tested = _trained_scores(this, trainer, loaders, details)
        else:
            tested = _scores(this, trainer, loaders)
        with this.phase("test"):
            kept = _keep_forecasts(this, _named(this, folders.FORECASTS_FILE))
    except EvaluationStopped:
        asked = this.stop.reason or "another process"
        raise RunStopped(f"stopped by {asked} in the test; {how_to_go_on(this.newest)}") from None
    for name, entry in tested.items():
        log.info(
            "test, %s weights (step %d): %s over %d windows",
            name,
            entry["step"],
            score_text(entry["test"]),
            entry["test"]["windows"],
        )
        for line in constant_lines(entry[BY_VARIABLE], this.data.constant):
            log.info("%s", line)
        if INTERVALS in entry:
            log.info("%s", interval_table(entry[INTERVALS]))
    results = {
        "run_dir": str(this.folder),
        "data": this.data.name,
        "tested_on": this.data.tested,
        "notes": dict(this.data.notes),
        "llm": this.llm,
        "precision": this.precision,
        **tested,
        "phases": this.phases,
        "saving": {"saves": len(this.saves), "seconds": sum(this.saves)},
        "forecasts": kept,
    }
    if this.accelerator.is_main_process:
        if training:
            write_details(this.folder / folders.DETAILS_FILE, details)
        _write(this, results, tested if training else {})
    this.accelerator.wait_for_everyone()
    return results


def _scores(this: RunContext, trainer: Trainer, loaders: Loaders) -> dict[str, dict[str, Any]]:
    """The scores of a checkpoint that is tested, and its intervals' where it keeps some."""
    entry, _ = _test(this, trainer, loaders, this.calibration)
    return {"checkpoint": {"step": trainer.progress.global_step, **entry}}


def _test(
    this: RunContext, trainer: Trainer, loaders: Loaders, calibration: dict[str, Any] | None
) -> tuple[dict[str, Any], TestDetails]:
    """The test scores of the weights that the model holds and of their intervals, and what else is kept."""
    levels = this.config.training.levels
    if calibration and levels and this.config.data.eval_data:
        log.info("intervals: not measured on %s, whose errors they were not calibrated on", this.data.tested)
        calibration = None
    sums = IntervalSums(calibration, levels) if calibration and levels else None
    details, own = DetailSums(), VariableSums(len(this.data.test_targets))
    watchers = [details.add, own.add] if sums is None else [details.add, own.add, sums.add]
    with this.phase("test"):
        entry: dict[str, Any] = {"test": trainer.evaluate(loaders.test, name="test", watchers=watchers)}
    reduced = partial(this.accelerator.reduce, reduction="sum")
    device = this.accelerator.device
    entry[BY_VARIABLE] = own.reduce(reduced, names=this.data.test_targets, device=device)
    if sums is not None:
        entry[INTERVALS] = sums.reduce(reduced, targets=this.data.targets, device=device)
    return entry, details.gather()


def _trained_scores(
    this: RunContext, trainer: Trainer, loaders: Loaders, details: dict[str, TestDetails]
) -> dict[str, dict[str, Any]]:
    """The scores of the last weights, and of the best ones, which stay in the model.

    ``details`` gets what is kept of both; where they are the same weights, of ``last`` alone.
    """
    progress = trainer.progress
    last: dict[str, Any] | None = None
    best = {"global_step": progress.global_step, "val_loss_min": progress.val_loss_min}
    if progress.best_step not in (progress.global_step, -1):
        last, details["last"] = _test(this, trainer, loaders, None)
        best = checkpoints.load(this.folder / checkpoints.BEST)
        this.plain.load_state_dict(best.pop("model"))  # a whole memory is not kept for the length of a test
    entry, details["best"] = _test(this, trainer, loaders, calibration_of_best(this, trainer, loaders))
    if last is None:
        details["last"] = details.pop("best")
    found = best["val_loss_min"]
    validation = found if np.isfinite(found) else None
    return {
        "last": {"step": progress.global_step, **(last or {n: entry[n] for n in ("test", BY_VARIABLE)})},
        "best": {
            "step": best["global_step"],
            **entry,
            f"validation_{decisive(entry['test'])[0]}": validation,
        },
    }


def _write(this: RunContext, results: dict[str, Any], tested: dict[str, dict[str, Any]]) -> None:
    """``results.json``, and the scores of a trained run in the metrics."""
    for name, entry in tested.items():
        told = {key: value for key, value in entry.items() if key not in (INTERVALS, BY_VARIABLE)}
        this.metrics.append(event="test", weights=name, **told)
    folders.write_json(this.folder / _named(this, folders.RESULTS_FILE), results)


def _named(this: RunContext, name: str) -> str:
    """The name of a file that a run leaves: a later test does not overwrite what the training left."""
    if this.config.run.is_training:
        return name
    return folders.test_only(name, this.config.data.eval_data and this.data.tested)


@torch.no_grad()
def _keep_forecasts(this: RunContext, name: str) -> str:
    """Forecasts of a few spread test windows, for a plot; the file's name inside the run's folder."""
    test: Any = this.data.test
    positions = np.linspace(0, len(test) - 1, min(SHOWN_WINDOWS, len(test))).astype(int)
    items = [test[int(i)] for i in positions]
    batch = stacked(items, this.accelerator.device)
    this.plain.eval()
    prediction = forecasts(this.plain, batch, this.config.training.max_channels_per_step)
    if this.accelerator.is_main_process:
        shown: dict[str, Any] = dict(
            x=batch.x[..., -batch.y.shape[-1] :].cpu().numpy(),
            y=batch.y.cpu().numpy(),
            prediction=prediction.float().cpu().numpy(),
            start=batch.start.cpu().numpy(),
            columns=np.array(list(this.data.test_targets)),
        )
        with whole_file(this.folder / name) as file:
            np.savez_compressed(file, **shown)
    return name
