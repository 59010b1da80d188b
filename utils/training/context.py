"""What the phases of one run share."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch.utils.data import DataLoader

from utils.config import Config
from utils.log import MetricsFile
from utils.training.batch_plan import BatchPlan
from utils.training.stopping import StopRequest
from utils.types import Batch, DataBundle


@dataclass
class RunContext:
    """What the phases of one run share."""

    config: Config
    accelerator: Accelerator
    data: DataBundle
    model: Any
    """The wrapped model."""
    plain: Any
    """The model itself."""
    folder: Path
    metrics: MetricsFile
    llm: dict[str, Any]
    plan: BatchPlan
    """How the global batch is split; `config` says the same."""
    flags: dict[str, Any]
    """Every setting as the run was begun: `config`, but for the plan of a run that resumed."""
    stop: StopRequest
    precision: dict[str, Any]
    """What was asked, timed and taken; see `utils.training.precision_choice`."""
    sharded: bool = False
    """Whether the LLM's layers are divided among the processes, which then make the same passes."""
    newest: Path | None = None
    """The checkpoint that was saved last, or resumed from."""
    calibration: dict[str, Any] | None = None
    """Of the checkpoint that is tested, where nothing is trained; None where it has none."""
    phases: dict[str, float] = field(default_factory=dict)
    saves: list[float] = field(default_factory=list)
    """Seconds of each save of a checkpoint, in which training waited."""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the seconds spent inside to the phase ``name``."""
        began = time.perf_counter()
        yield
        self.phases[name] = self.phases.get(name, 0.0) + time.perf_counter() - began


@dataclass(frozen=True)
class Loaders:
    """The prepared loaders of a run."""

    train: DataLoader[Batch] | None
    """None where nothing is trained."""
    validation: DataLoader[Batch]
    test: DataLoader[Batch]
