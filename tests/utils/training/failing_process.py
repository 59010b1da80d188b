"""One of several processes of a run of which one, AT=process, fails in its second optimizer step.

Started by test_quiet_ranks.py with a launcher in front, and a run's flags behind.
"""

from __future__ import annotations

import os
from typing import Any

import run_main
from utils.training.trainer import Trainer

STEP = Trainer.train_step


def failing(trainer: Trainer, batches: Any) -> Any:
    if os.environ["AT"] == os.environ["RANK"] and trainer.progress.global_step == 1:
        raise KeyError("planted")
    return STEP(trainer, batches)


if __name__ == "__main__":
    if "AT" in os.environ:
        Trainer.train_step = failing  # type: ignore[method-assign, assignment]
    run_main.main()
