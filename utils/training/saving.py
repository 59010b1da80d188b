"""A run's checkpoints: gathered from all processes, written by the main one, refused by all alike."""

from __future__ import annotations

import time
from collections.abc import Callable
from logging import getLogger
from typing import Any

from accelerate.utils import broadcast_object_list

from utils.training import checkpoint as checkpoints
from utils.training import payload as payloads
from utils.training.checkpoint import SaveError
from utils.training.context import RunContext
from utils.training.trainer import Trainer

log = getLogger(__name__)


def save_best(this: RunContext, trainer: Trainer) -> None:
    """Save the best weights so far, as a checkpoint that can be gone on from."""
    path = this.folder / checkpoints.BEST
    _save(this, trainer, lambda content: checkpoints.save(content, path))
    this.newest = path


def save_step(this: RunContext, trainer: Trainer) -> None:
    """Save a checkpoint of this optimizer step, and prune older ones."""
    step, keep = trainer.progress.global_step, this.config.run.save_total_limit
    path = checkpoints.step_path(this.folder, step)
    _save(this, trainer, lambda content: checkpoints.save_step(content, this.folder, step=step, keep=keep))
    this.newest = path
    log.info("saved %s", path)


def _save(this: RunContext, trainer: Trainer, write: Callable[[dict[str, Any]], object]) -> None:
    """Gather from all processes and write on the main one; what goes wrong there is raised in all."""
    began = time.perf_counter()
    content = payloads.gather(this, trainer)
    problem: list[str | None] = [None]
    if this.accelerator.is_main_process:
        try:
            this.metrics.flush_to_disk()
            write(content)
        except OSError as error:
            problem = [str(error)]
    found = broadcast_object_list(problem)[0]
    this.saves.append(time.perf_counter() - began)
    if found is not None:
        raise SaveError(found)
