"""The end of a run: its weights scored on every test window, and what it leaves in its folder."""

from __future__ import annotations

from functools import partial
from logging import getLogger
from typing import Any

import numpy as np
import torch

from utils.atomic_files import whole_file
from utils.reporting.text_tables import interval_table
from utils.training import checkpoint as checkpoints
from utils.training import run_folder as folders
from utils.training.by_part import PartSums, part_line
from utils.training.by_series import SeriesSums, series_lines
from utils.training.by_variable import VariableSums, constant_lines
from utils.training.forward import forecasts, stacked
from utils.training.intervals import IntervalSums, calibration_of_best
from utils.training.metrics import score_text, selection_metric
from utils.training.run_state import Loaders, RunContext
from utils.training.stopping import RunStopped, how_to_go_on
from utils.training.trainer import EvaluationStopped, Trainer
from utils.training.window_errors import DetailSums, TestDetails, write_details

log = getLogger(__name__)
INTERVALS = "intervals"
"""Where the results say what the intervals covered."""
BY_VARIABLE = "by_variable"
"""Where the results have the test's errors of each variable."""
BY_PART = "by_part"
"""Where the results have the test's errors as the forecast grows, where it begins at a solved start."""
BY_SERIES = "by_series"
"""Where the results have a panel's scores in all; those of each series are in a table of their own."""
KEPT_OF_LAST = ("test", BY_VARIABLE, BY_PART, BY_SERIES)
"""What the results have of the last weights too."""
SHOWN_WINDOWS = 6
"""Test windows whose forecasts are kept for a plot."""


def evaluate(ctx: RunContext, trainer: Trainer, loaders: Loaders) -> dict[str, Any]:
    """Score the last and the best weights on every test window, and write the results.

    Raises:
        RunStopped: a stop was asked for; the training before it is saved.
    """
    training = bool(ctx.config.run.is_training)
    try:
        details: dict[str, TestDetails] = {}
        if training:
            tested = _trained_scores(ctx, trainer, loaders, details)
        else:
            tested = _scores(ctx, trainer, loaders)
        with ctx.phase("test"):
            kept = _keep_forecasts(ctx, _named(ctx, folders.FORECASTS_FILE))
    except EvaluationStopped:
        asked = ctx.stop.reason or "another process"
        raise RunStopped(f"stopped by {asked} in the test; {how_to_go_on(ctx.newest)}") from None
    for name, entry in tested.items():
        log.info(
            "test, %s weights (step %d): %s over %d windows",
            name,
            entry["step"],
            score_text(entry["test"]),
            entry["test"]["windows"],
        )
        for line in constant_lines(entry[BY_VARIABLE], ctx.data.constant):
            log.info("%s", line)
        for line in series_lines(entry[BY_SERIES]) if BY_SERIES in entry else ():
            log.info("%s", line)
        if BY_PART in entry:
            log.info("%s", part_line(entry[BY_PART]))
        if INTERVALS in entry:
            log.info("%s", interval_table(entry[INTERVALS]))
    if training and ctx.plain.begins_solved:
        log.info("%s", _what_training_added(trainer))
    results = {
        "run_dir": str(ctx.folder),
        "data": ctx.data.name,
        "tested_on": ctx.data.tested,
        "notes": dict(ctx.data.notes),
        "llm": ctx.llm,
        "precision": ctx.precision,
        "start": ctx.plain.closed_form_facts,
        **tested,
        "phases": ctx.phases,
        "saving": {"saves": len(ctx.saves), "seconds": sum(ctx.saves)},
        "forecasts": kept,
    }
    if ctx.accelerator.is_main_process:
        if training:
            write_details(ctx.folder / folders.DETAILS_FILE, details)
        _write(ctx, results, tested if training else {})
    ctx.accelerator.wait_for_everyone()
    return results


def _what_training_added(trainer: Trainer) -> str:
    """Whether validation found any step better than the solved start, in words."""
    progress = trainer.progress
    if progress.best_step:
        return f"training helped: validation is best after step {progress.best_step}, not at the solved start"
    return (
        f"training added nothing: of {progress.global_step} steps none was better on validation than the "
        "solved start that they began at (step 0), whose weights are the best"
    )


def _scores(ctx: RunContext, trainer: Trainer, loaders: Loaders) -> dict[str, dict[str, Any]]:
    """The scores of a checkpoint that is tested, and its intervals' where it keeps some."""
    entry, _ = _test(ctx, trainer, loaders, ctx.calibration)
    return {"checkpoint": {"step": trainer.progress.global_step, **entry}}


def _test(
    ctx: RunContext, trainer: Trainer, loaders: Loaders, calibration: dict[str, Any] | None
) -> tuple[dict[str, Any], TestDetails]:
    """The test scores of the weights that the model holds and of their intervals, and what else is kept."""
    levels = ctx.config.training.levels
    if calibration and levels and ctx.config.data.eval_data:
        log.info("intervals: not measured on %s, whose errors they were not calibrated on", ctx.data.tested)
        calibration = None
    sums = IntervalSums(calibration, levels) if calibration and levels else None
    details, own, parts = DetailSums(), VariableSums(len(ctx.data.test_targets)), PartSums()
    panel = ctx.data.panel
    series = None if panel is None else SeriesSums(panel, ctx.data.standardisation, calibration)
    watchers = [one.add for one in (details, own, parts, sums, series) if one is not None]
    with ctx.phase("test"):
        entry: dict[str, Any] = {"test": trainer.evaluate(loaders.test, name="test", watchers=watchers)}
    reduced = partial(ctx.accelerator.reduce, reduction="sum")
    device = ctx.accelerator.device
    entry[BY_VARIABLE] = own.reduce(reduced, names=ctx.data.test_targets, device=device)
    if ctx.plain.begins_solved:
        entry[BY_PART] = parts.reduce(reduced, device=device)
    if series is not None:
        table, entry[BY_SERIES] = series.reduce(reduced, device=device)
        if ctx.accelerator.is_main_process:  # of the best weights, which are tested last
            with whole_file(ctx.folder / _named(ctx, folders.SERIES_FILE)) as file:
                file.write(table.to_csv(index=False, float_format="%.9g").encode())
    if sums is not None:
        entry[INTERVALS] = sums.reduce(reduced, targets=ctx.data.targets, device=device)
    return entry, details.gather()


def _trained_scores(
    ctx: RunContext, trainer: Trainer, loaders: Loaders, details: dict[str, TestDetails]
) -> dict[str, dict[str, Any]]:
    """The scores of the last weights, and of the best ones, which stay in the model.

    ``details`` gets what is kept of both; where they are the same weights, of ``last`` alone.
    """
    progress = trainer.progress
    last: dict[str, Any] | None = None
    best = {"global_step": progress.global_step, "val_loss_min": progress.val_loss_min}
    if progress.best_step not in (progress.global_step, -1):
        last, details["last"] = _test(ctx, trainer, loaders, None)
        best = checkpoints.load(ctx.folder / checkpoints.BEST)
        ctx.plain.load_state_dict(best.pop("model"))  # a whole memory is not kept for the length of a test
    entry, details["best"] = _test(ctx, trainer, loaders, calibration_of_best(ctx, trainer, loaders))
    if last is None:
        details["last"] = details.pop("best")
    found = best["val_loss_min"]
    validation = found if np.isfinite(found) else None
    return {
        "last": {
            "step": progress.global_step,
            **(last or {name: entry[name] for name in KEPT_OF_LAST if name in entry}),
        },
        "best": {
            "step": best["global_step"],
            **entry,
            f"validation_{selection_metric(entry['test'])[0]}": validation,
        },
    }


def _write(ctx: RunContext, results: dict[str, Any], tested: dict[str, dict[str, Any]]) -> None:
    """``results.json``, and the scores of a trained run in the metrics."""
    for name, entry in tested.items():
        told = {key: value for key, value in entry.items() if key not in (INTERVALS, *KEPT_OF_LAST[1:])}
        ctx.metrics.append(event="test", weights=name, **told)
    folders.write_json(ctx.folder / _named(ctx, folders.RESULTS_FILE), results)


def _named(ctx: RunContext, name: str) -> str:
    """The name of a file that a run leaves: a later test does not overwrite what the training left."""
    if ctx.config.run.is_training:
        return name
    return folders.test_only(name, ctx.config.data.eval_data and ctx.data.tested)


@torch.no_grad()
def _keep_forecasts(ctx: RunContext, name: str) -> str:
    """Forecasts of a few spread test windows, for a plot; the file's name inside the run's folder."""
    test: Any = ctx.data.test
    positions = np.linspace(0, len(test) - 1, min(SHOWN_WINDOWS, len(test))).astype(int)
    items = [test[int(i)] for i in positions]
    batch = stacked(items, ctx.accelerator.device)
    ctx.plain.eval()
    prediction = forecasts(ctx.plain, batch, ctx.config.training.max_channels_per_step)
    if ctx.accelerator.is_main_process:
        shown: dict[str, Any] = dict(
            x=batch.x[..., -batch.y.shape[-1] :].cpu().numpy(),
            y=batch.y.cpu().numpy(),
            prediction=prediction.float().cpu().numpy(),
            start=batch.start.cpu().numpy(),
            columns=np.array(list(ctx.data.test_targets)),
        )
        with whole_file(ctx.folder / name) as file:
            np.savez_compressed(file, **shown)
    return name
