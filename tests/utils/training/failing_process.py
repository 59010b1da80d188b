"""One of several processes of a run of which one fails as the variables say: PLANT=kind, AT=process.

Started by test_quiet_ranks.py with a launcher in front, and a run's flags behind.
"""

from __future__ import annotations

import os
from typing import Any

import run_main
from utils.errors import UserError
from utils.training.trainer import Trainer

ERRORS = {"user": UserError("planted: mend it"), "fault": KeyError("planted")}


def plant() -> None:
    """Let the second optimizer step fail in the process AT, or in all of them."""
    step = Trainer.train_step

    def failing(trainer: Trainer, batches: Any) -> Any:
        if os.environ["AT"] in ("all", os.environ["RANK"]) and trainer.progress.global_step == 1:
            raise ERRORS[os.environ["PLANT"]]
        return step(trainer, batches)

    Trainer.train_step = failing  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    if "PLANT" in os.environ:
        plant()
    run_main.main()
