"""Gradients and optimizer of what is trained divided among processes, by DeepSpeed's ZeRO-2.

Asked for by accelerate's file (scripts/accelerate/deepspeed_zero2.yaml); source: Rajbhandari et al.,
"ZeRO", SC 2020. Weights are whole in every process, and so are checkpoints: `DividedOptimizer` gathers
its state for them and divides it again, so that a run goes on with DeepSpeed or without, on any number
of processes that divides the global batch. DeepSpeed's own checkpoints are pickles, which may hold code.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from logging import getLogger
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import (
    DeepSpeedPlugin,
    InitProcessGroupKwargs,
    convert_outputs_to_fp32,
)
from torch import Tensor, nn

from utils.config import Config
from utils.training.distributed.plain import Wing
from utils.training.optim import trained_parameters
from utils.training.run_state import RunContext

log = getLogger(__name__)
BUCKET = 25_000_000
"""Gradients that wait to be added up between processes, 95 MiB; DeepSpeed's own number takes 2 GB."""
STEPS = "step"
"""What Adam's state holds once for all weights here."""


def locked_builds() -> list[Path]:
    """Files by which torch keeps others from what is being compiled; a killed process leaves its own."""
    from torch.utils.cpp_extension import get_default_build_root  # takes a tenth of a second

    home = os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root()
    return sorted(Path(home).glob("**/deepspeed*/lock"))


class DeepSpeed(Wing):
    """Gradients and optimizer are divided by DeepSpeed's engine, which makes the steps."""

    def _processes(self) -> PartialState:
        """As `engine_options` lets accelerate make it."""
        for lock in locked_builds():
            log.warning(
                "DeepSpeed compiles a part of itself where it first runs, and %s says that another process "
                "does so now: this run waits until it is gone. Where none does any more, delete that file",
                lock,
            )
        return PartialState(cpu=False, **({} if torch.cuda.is_available() else {"backend": "gloo"}))

    def engine_options(self, config: Config) -> dict[str, Any]:
        """What `Accelerator` is made with, beside or in place of a run's other options.

        The engine trains in fp32, weights and optimizer as without it; `wrapped` brings in bf16. Without a
        GPU accelerate knows DeepSpeed only where it is not told of the CPU, and then needs the backend.
        """
        clipping = config.training.max_grad_norm or 0.0
        plugin = DeepSpeedPlugin(
            zero_stage=2,
            gradient_clipping=clipping,
            gradient_accumulation_steps=config.training.gradient_accumulation_steps,
            offload_optimizer_device="none",
            offload_param_device="none",
        )
        plugin.deepspeed_config["gradient_clipping"] = clipping  # where 0 is left out, accelerate clips at 1
        plugin.deepspeed_config["zero_optimization"] |= {
            "reduce_bucket_size": BUCKET,
            "allgather_bucket_size": BUCKET,
        }
        backend = [] if torch.cuda.is_available() else [InitProcessGroupKwargs(backend="gloo")]
        return {
            "cpu": False,
            "mixed_precision": "no",
            "deepspeed_plugin": plugin,
            "kwargs_handlers": backend,
        }

    def wrapped(self, ctx: RunContext) -> nn.Module:
        """The model itself, which the engine takes together with its optimizer.

        It computes in bf16 where ``--mixed_precision`` asks for it, as accelerate would let it.
        """
        if ctx.config.training.mixed_precision == "bf16":
            inside = torch.autocast(ctx.accelerator.device.type, torch.bfloat16)
            ctx.plain.forward = convert_outputs_to_fp32(inside(ctx.plain.forward))
        return ctx.plain

    def prepared(self, ctx: RunContext, optimizer: torch.optim.Optimizer, *, total_steps: int) -> Any:
        """The optimizer divided, before it has a state, and the run's model in the engine."""
        if not total_steps:
            return super().prepared(ctx, optimizer, total_steps=total_steps)
        trained = trained_parameters(ctx.plain)
        plugin = ctx.accelerator.deepspeed_plugin
        plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = ctx.plan.size
        plugin.deepspeed_config["gradient_accumulation_steps"] = ctx.plan.passes
        with _not_sent(ctx.plain):
            ctx.model, wrapped = ctx.accelerator.prepare(ctx.plain, optimizer)
        processes = ctx.accelerator.num_processes
        log.info("DeepSpeed: gradients and optimizer are divided among %d process(es), ZeRO-2", processes)
        return DividedOptimizer(wrapped.optimizer, trained)


@contextmanager
def _not_sent(model: nn.Module) -> Iterator[None]:
    """Inside, DeepSpeed takes the weights for what it does not send to all processes when it begins.

    They are equal everywhere; sending them would copy the LLM, and fail for weights without a dimension.
    """
    for weight in model.parameters():
        weight.ds_optim_param = True  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for weight in model.parameters():
            del weight.ds_optim_param  # type: ignore[attr-defined]


class DividedOptimizer:
    """ZeRO's optimizer over one group of weights, its state whole where it is asked for and given.

    Its steps are made by the engine at the end of a backward pass (`Accelerator.backward`).
    """

    def __init__(self, zero: Any, trained: list[nn.Parameter]) -> None:
        """``zero`` is DeepSpeed's, ``trained`` the weights in the order in which it was given them."""
        self.zero, self.trained = zero, trained

    def step(self) -> None:
        """The engine has done so."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """The engine has done so."""

    def state_dict(self) -> dict[str, Any]:
        """The whole state, as the undivided optimizer would give it. Every process must call it."""
        from deepspeed.utils import safe_get_full_optimizer_state

        (group,), (part,) = self.zero.optimizer.param_groups, self.zero.single_partition_of_fp32_groups
        held = self.zero.optimizer.state.get(part, {})
        state: dict[int, dict[str, Tensor]] = {}
        if held:
            for i, weight in enumerate(self.trained):
                moments = {n: safe_get_full_optimizer_state(weight, n).cpu() for n in held if n != STEPS}
                state[i] = {STEPS: held[STEPS].cpu().clone(), **moments}
        numbers = list(range(len(self.trained)))
        return {"state": state, "param_groups": [{**group, "params": numbers}]}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Take this process's share of a whole state."""
        from deepspeed.utils import lazy_init_hp_params_optimizer_state, safe_set_full_optimizer_state

        (group,), (part,) = self.zero.optimizer.param_groups, self.zero.single_partition_of_fp32_groups
        group.update({k: v for k, v in saved["param_groups"][0].items() if k != "params"})
        if not saved["state"]:
            return
        first = saved["state"][0]
        own = {name: torch.zeros_like(part) for name in first if name != STEPS}
        own[STEPS] = first[STEPS].to(part.device, copy=True)
        self.zero.optimizer.state[part] = own
        lazy_init_hp_params_optimizer_state(self.trained, part, self.zero.optimizer.state)
        for i, weight in enumerate(self.trained):
            for name, value in saved["state"][i].items():
                if name != STEPS:
                    safe_set_full_optimizer_state(weight, value.to(part.device), name)
