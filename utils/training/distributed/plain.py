"""One process, or several that train data parallel: what every other way of sharing work begins from."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedDataParallelKwargs, parse_flag_from_env
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from utils.config import Config
from utils.training.distributed.launcher_options import check_taking_part, trains_on_cpu
from utils.training.run_state import RunContext


class Wing:
    """How the processes of a run share its work; here each has the whole model."""

    lockstep = False
    """Whether a pass of one process waits for the others', so that all must make the same number."""

    def __init__(self, config: Config, unread: list[str]) -> None:
        """``config`` says what the launcher asks for, too; ``unread`` what of the launcher's is not read."""
        self.config, self.unread = config, unread

    def processes(self) -> PartialState:
        """What accelerate knows before the precision is settled: this process among others, its device.

        Raises:
            ConfigError: each of several processes would train the whole run.
        """
        state = self._processes()
        check_taking_part(state.num_processes)
        return state

    def _processes(self) -> PartialState:
        return PartialState(cpu=trains_on_cpu(self.config) or parse_flag_from_env("ACCELERATE_USE_CPU"))

    def engine_options(self, config: Config) -> dict[str, Any]:
        """What `Accelerator` is made with, beside a run's other options."""
        kwargs = DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=False)
        return {
            "cpu": trains_on_cpu(config),
            "mixed_precision": config.training.mixed_precision,
            "kwargs_handlers": [kwargs],
        }

    def check(self, config: Config, accelerator: Accelerator) -> None:
        """Raise ConfigError for what does not go with this way."""

    def divide(self, ctx: RunContext) -> None:
        """Divide what is frozen, before the model goes to its device."""

    def wrapped(self, ctx: RunContext) -> nn.Module:
        """The run's model in its precision, on its device, wrapped for training on several processes."""
        if not any(p.requires_grad for p in ctx.plain.parameters()):  # DDP refuses a model without
            return ctx.plain
        # frozen weights are the same files' everywhere, or shares: sent to all, mapped files would be copied
        frozen = [name for name, weight in ctx.plain.named_parameters() if not weight.requires_grad]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(ctx.plain, frozen)
        return self._data_parallel(ctx)

    def _data_parallel(self, ctx: RunContext) -> nn.Module:
        return ctx.accelerator.prepare_model(ctx.plain, device_placement=False)

    def prepared(self, ctx: RunContext, optimizer: torch.optim.Optimizer, *, total_steps: int) -> Any:
        """The optimizer as the engine steps it."""
        return ctx.accelerator.prepare_optimizer(optimizer)
