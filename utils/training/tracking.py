"""Trackers, by ``--report_to``: every record of ``metrics.jsonl`` goes to TensorBoard or W&B as well.

Both are accelerate's. Nothing here draws random numbers or changes what is trained.
"""

from __future__ import annotations

import importlib.util
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker

from utils.config import Config
from utils.errors import UserError
from utils.log import MetricsFile
from utils.training import run_folder as folders

PROJECT = "timellm-enhanced"
"""What W&B calls the project; its own WANDB_PROJECT is for runs that do not name one."""
TENSORBOARD_FOLDER = "tensorboard"
"""Inside the run's folder."""
TRACKING_FILE = "tracking.json"
"""Under which id W&B knows the run."""


def require_tracker(name: str) -> None:
    """Make sure that the tracker of this name can be used.

    Raises:
        ValueError: its package is not installed; the message says how to get it.
    """
    if name != "none" and importlib.util.find_spec(name) is None:
        raise UserError(f"--report_to {name}: the package {name} is not installed; pip install {name}")


class TrackedMetrics(MetricsFile):
    """`MetricsFile` whose records the accelerator's trackers get too, numbers alone."""

    def __init__(self, path: Path, accelerator: Accelerator) -> None:
        """The trackers are started already."""
        super().__init__(path)
        self._accelerator = accelerator
        self._step = 0

    def append(self, *, event: str, step: int, **values: Any) -> None:
        """Write one record; a test of earlier weights is tracked at the step it was made at."""
        super().append(event=event, step=step, **values)
        self._step = max(self._step, step)
        group = f"test_{values['weights']}" if event == "test" else event
        self._accelerator.log(dict(_numbers(values, group, event)), step=self._step)


def _numbers(values: Mapping[str, Any], group: str, event: str) -> Iterator[tuple[str, float]]:
    """``group/name`` of every number, those of nested records included."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, group if name == event else f"{group}/{name}", event)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{group}/{name}", value


def tracked_metrics(
    config: Config, accelerator: Accelerator, folder: Path, *, resumed_at: int | None
) -> MetricsFile:
    """The run's metrics, with the tracker that ``--report_to`` names, on the main process of a training.

    A run that resumes goes on in the same log: TensorBoard hides what lies after the step
    ``resumed_at``, W&B keeps it (the steps are taken again, with the same numbers).

    Raises:
        ValueError: W&B cannot start; the message is its own, with what to do without an account.
    """
    path, name = folder / folders.METRICS_FILE, config.run.report_to
    if name == "none" or not (config.run.is_training and accelerator.is_main_process):
        return MetricsFile(path)
    accelerator.log_with = [_tensorboard(folder, resumed_at) if name == "tensorboard" else _wandb(folder)]
    try:
        accelerator.init_trackers(PROJECT, config=config.flat() if name == "wandb" else None)
    except Exception as error:
        accelerator.trackers = []
        if name != "wandb" or not _is_wandb_error(error):
            raise
        raise UserError(
            f"--report_to wandb: {error}; without an account or a network, set WANDB_MODE=offline"
        ) from error
    if name == "tensorboard" and resumed_at is None:
        rows = "\n".join(f"| {flag} | {value} |" for flag, value in config.flat().items())
        accelerator.log({"configuration": f"| setting | value |\n|---|---|\n{rows}"}, step=0)
    return TrackedMetrics(path, accelerator)


def stop_tracking(accelerator: Accelerator) -> None:
    """Close the trackers; the process group stays."""
    for tracker in accelerator.trackers:
        tracker.finish()
    accelerator.trackers = []


def _tensorboard(folder: Path, resumed_at: int | None) -> GeneralTracker:
    hidden = None if resumed_at is None else resumed_at + 1
    return TensorBoardTracker(TENSORBOARD_FOLDER, str(folder), purge_step=hidden)


def _wandb(folder: Path) -> GeneralTracker:
    """W&B under the id that this run's folder remembers."""
    known = folder / TRACKING_FILE
    if not known.is_file():
        folders.write_json(known, {"wandb_id": uuid.uuid4().hex})
    run_id = folders.read_json(known)["wandb_id"]
    return WandBTracker(PROJECT, id=run_id, name=folder.name, dir=str(folder), resume="allow")


def _is_wandb_error(error: Exception) -> bool:
    import wandb

    return isinstance(error, wandb.Error)
