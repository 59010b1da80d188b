"""What the phases of one run share: how far it has come, its parts, and how its batches are split."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader

from utils.config import Config
from utils.log import MetricsFile
from utils.training.stopping import StopRequest
from utils.types import Batch, DataBundle


@dataclass
class Progress:
    """How far a run has come; all of it is in every checkpoint."""

    epoch: int = 0
    """Epochs finished."""
    epoch_steps: int = 0
    """Optimizer steps taken in the current epoch."""
    global_step: int = 0
    """Optimizer steps taken."""
    val_loss_min: float = math.inf
    counter: int = 0
    """Validations without improvement."""
    best_step: int = -1
    validation_due: bool = False
    """The run stopped between this step and its validation."""
    loss_sums: dict[str, Tensor | float] = field(default_factory=dict)
    """This process's sums of the losses since the last validation, for its line in the log."""

    def state(self) -> dict[str, Any]:
        """As plain values, without the sums: those differ from process to process."""
        return {name: value for name, value in vars(self).items() if name != "loss_sums"}

    def own_sums(self) -> dict[str, float]:
        """The sums of this process, as plain values."""
        return {name: float(value) for name, value in self.loss_sums.items()}


@dataclass(frozen=True)
class Hooks:
    """What the trainer asks its owner to do."""

    refresh: Callable[[], None]
    """Recompute what validation needs to be up to date."""
    save_best: Callable[[], None]
    save_step: Callable[[], None]
    test: Callable[[], dict[str, float]]
    stopped: Callable[[], NoReturn]
    """Save what is needed to go on, and end the run."""


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
    wing: Any
    """How the processes share the work: `utils.training.distributed`."""
    precision: dict[str, Any]
    """What was asked, timed and taken; see `utils.training.precision_choice`."""
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
