"""The end of a run: its weights scored on every test window, and what it leaves in its folder."""

from __future__ import annotations

from logging import getLogger
from typing import Any

import numpy as np
import torch

from utils.training import checkpoint as checkpoints
from utils.training import run_folder as folders
from utils.training.context import Loaders, RunContext
from utils.training.details import DetailSums, TestDetails, write_details
from utils.training.passes import forecast_state, stacked
from utils.training.stopping import RunStopped, how_to_go_on
from utils.training.trainer import EvaluationStopped, Trainer

log = getLogger(__name__)
SHOWN_WINDOWS = 6
"""Test windows whose forecasts are kept for a plot."""


def judge(this: RunContext, trainer: Trainer, loaders: Loaders) -> dict[str, Any]:
    """Score the last and the best weights on every test window, and write the results.

    Raises:
        RunStopped: a stop was asked for; the training before it is saved.
    """
    training = bool(this.config.run.is_training)
    try:
        with this.phase("test"):
            details: dict[str, TestDetails] = {}
            if training:
                tested = _trained_scores(this, trainer, loaders, details)
            else:
                tested = _scores(trainer, loaders)
            kept = _keep_forecasts(
                this, folders.FORECASTS_FILE if training else folders.TEST_ONLY_FORECASTS_FILE
            )
    except EvaluationStopped:
        asked = this.stop.reason or "another process"
        raise RunStopped(f"stopped by {asked} in the test; {how_to_go_on(this.newest)}") from None
    for name, entry in tested.items():
        log.info(
            "test, %s weights (step %d): mse %.4f mae %.4f over %d windows",
            name,
            entry["step"],
            entry["test"]["mse"],
            entry["test"]["mae"],
            entry["test"]["windows"],
        )
    results = {
        "run_dir": str(this.folder),
        "data": this.data.name,
        "notes": dict(this.data.notes),
        "llm": this.llm,
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


def _scores(trainer: Trainer, loaders: Loaders) -> dict[str, dict[str, Any]]:
    """The scores of a checkpoint that is tested."""
    scores = trainer.evaluate(loaders.test, name="test")
    return {"checkpoint": {"step": trainer.progress.global_step, "test": scores}}


def _trained_scores(
    this: RunContext, trainer: Trainer, loaders: Loaders, details: dict[str, TestDetails]
) -> dict[str, dict[str, Any]]:
    """The scores of the last weights, and of the best ones, which stay in the model.

    ``details`` gets what is kept of both; where they are the same weights, of ``last`` alone.
    """
    progress = trainer.progress
    scores, details["last"] = _detailed(trainer, loaders)
    last = {"step": progress.global_step, "test": scores}
    best = {"global_step": progress.global_step, "val_loss_min": progress.val_loss_min}
    if progress.best_step not in (progress.global_step, -1):
        best = checkpoints.load(this.folder / checkpoints.BEST)
        this.plain.load_state_dict(best["model"])
        scores, details["best"] = _detailed(trainer, loaders)
    found = best["val_loss_min"]
    validation = found if np.isfinite(found) else None
    return {
        "last": last,
        "best": {"step": best["global_step"], "test": scores, "validation_mse": validation},
    }


def _detailed(trainer: Trainer, loaders: Loaders) -> tuple[dict[str, float], TestDetails]:
    """The scores on the test, and what is kept beside them."""
    sums = DetailSums()
    scores = trainer.evaluate(loaders.test, name="test", details=sums)
    return scores, sums.gather()


def _write(this: RunContext, results: dict[str, Any], tested: dict[str, dict[str, Any]]) -> None:
    """``results.json``, and the scores of a trained run in the metrics."""
    for name, entry in tested.items():
        this.metrics.append(event="test", weights=name, **entry)
    name = folders.RESULTS_FILE if tested else folders.TEST_ONLY_RESULTS_FILE
    folders.write_json(this.folder / name, results)


@torch.no_grad()
def _keep_forecasts(this: RunContext, name: str) -> str:
    """Forecasts of a few spread test windows, for a plot; the file's name inside the run's folder."""
    test: Any = this.data.test
    positions = np.linspace(0, len(test) - 1, min(SHOWN_WINDOWS, len(test))).astype(int)
    items = [test[int(i)] for i in positions]
    batch = stacked(items, this.accelerator.device)
    this.plain.eval()
    prediction = forecast_state(this.plain, batch).prediction
    if this.accelerator.is_main_process:
        np.savez_compressed(
            this.folder / name,
            x=batch.x[..., -batch.y.shape[-1] :].cpu().numpy(),
            y=batch.y.cpu().numpy(),
            prediction=prediction.float().cpu().numpy(),
            start=batch.start.cpu().numpy(),
            columns=np.array(list(this.data.targets)),
        )
    return name
