"""How the global batch of an optimizer step is split over processes and passes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from utils.config import Config
from utils.training.checkpoint import CheckpointError


@dataclass(frozen=True)
class BatchPlan:
    """``size`` windows per process and forward pass."""

    size: int
    passes: int
    """Forward passes per optimizer step."""
    processes: int

    @property
    def windows(self) -> int:
        """The global batch: training windows per optimizer step, over all processes."""
        return self.size * self.passes * self.processes

    def __str__(self) -> str:
        """In words."""
        split = f"{self.size} x {self.passes} pass(es) x {self.processes} process(es)"
        return f"{self.windows} windows a step ({split})"

    def state(self) -> dict[str, int]:
        """As plain values, with the global batch."""
        return {**asdict(self), "windows": self.windows}

    def apply(self, config: Config) -> Config:
        """The configuration with this plan's batch size and passes."""
        return config.replace(batch_size=self.size, gradient_accumulation_steps=self.passes)


def plan_batches(config: Config, processes: int, payload: Mapping[str, Any] | None) -> BatchPlan:
    """The plan of a run, or of one that goes on from ``payload`` with the same global batch.

    A run that goes on with the flags it had keeps its global batch on any number of processes: as
    few passes as the batch size allows, a smaller batch size where it has to be. Flags that give the
    same global batch another way are taken as given, but for ``--auto_batch_size``, which keeps the
    split that was chosen.

    Raises:
        CheckpointError: the flags ask for another global batch, or it cannot be split.
    """
    t = config.training
    asked = BatchPlan(t.batch_size, t.gradient_accumulation_steps, processes)
    if payload is None:
        return asked
    had = BatchPlan(**{name: payload["batch"][name] for name in ("size", "passes", "processes")})
    flags = (payload["config"]["batch_size"], payload["config"]["gradient_accumulation_steps"])
    if asked.windows == had.windows:
        chosen_before = t.auto_batch_size and asked.processes == had.processes
        return had if chosen_before else asked
    if (asked.size, asked.passes) != flags:
        raise CheckpointError(
            f"--batch_size, --gradient_accumulation_steps: expected the checkpoint's {had}, found {asked}"
        )
    if had.windows % processes:
        raise CheckpointError(
            f"processes: expected a number that divides the checkpoint's {had}, found {processes}"
        )
    share = had.windows // processes
    size = next(size for size in range(min(asked.size, share), 0, -1) if share % size == 0)
    return BatchPlan(size, share // size, processes)
