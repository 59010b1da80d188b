"""The best weights of a run get their prediction intervals, which their checkpoint then keeps."""

from __future__ import annotations

from logging import getLogger
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from utils.data_sets import SHORT_TERM
from utils.training import checkpoint as checkpoints
from utils.training.calibration import ErrorCollector, calibrated, still_valid
from utils.training.checkpoint import SaveError
from utils.training.context import Loaders, RunContext
from utils.training.trainer import Trainer

log = getLogger(__name__)
KEY = "calibration"
"""Of the best checkpoint's payload."""


def calibration_of_best(this: RunContext, trainer: Trainer, loaders: Loaders) -> dict[str, Any] | None:
    """The calibration of the best weights, which the model holds; None where none is asked for.

    A run that was cut off after its calibration takes the one that its checkpoint keeps.

    Raises:
        EvaluationStopped: a stop was asked for; everything saved is as it was.
        SaveError: the checkpoint cannot be written; what it held it holds.
    """
    settings = this.config.training
    path = this.folder / checkpoints.BEST
    if not settings.levels or trainer.progress.best_step == -1:
        return None
    if this.config.run.task_name == SHORT_TERM:
        log.info("intervals: none for the short-term task, which has one validation window a series")
        return None
    asked, levels = settings.interval_score, settings.levels
    kept = [checkpoints.load(path).get(KEY) if this.accelerator.is_main_process else None]
    stored: dict[str, Any] | None = broadcast_object_list(kept)[0]
    if stored is not None and still_valid(stored, asked=asked, levels=levels):
        log.info("intervals: those that %s keeps", path)
        return stored
    with this.phase(KEY):
        errors = ErrorCollector(this.data.validation, stride=this.config.data.eval_stride)
        trainer.evaluate(loaders.validation, name=KEY, watchers=[errors.add])
        state = calibrated(errors.gather(), asked=asked, levels=levels)
        _store(this, path, state)
    return state


def _store(this: RunContext, path: Path, state: dict[str, Any]) -> None:
    """Add a calibration to a checkpoint, on the main process; what goes wrong there is raised in all."""
    problem: list[str | None] = [None]
    if this.accelerator.is_main_process:
        try:
            checkpoints.save_again({**checkpoints.load(path), KEY: state}, path)
        except OSError as error:
            problem = [str(error)]
    found = broadcast_object_list(problem)[0]
    if found is not None:
        raise SaveError(found)
