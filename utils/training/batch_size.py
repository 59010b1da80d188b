"""Batches that fit into memory, with the same windows in every optimizer step; and what to do without.

``--auto_batch_size`` lowers the batch size and raises the passes: on a GPU by trying (accelerate's
finder), on a CPU by the estimate, since there the system ends a process that takes too much. Where even a
single window is too much by the estimate, a trial of it decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from logging import getLogger
from typing import Any

import torch
from accelerate.utils import find_executable_batch_size, gather_object
from accelerate.utils.memory import should_reduce_batch_size
from torch.utils.data import Dataset

from utils.config import Config
from utils.errors import UserError
from utils.process_memory import available_bytes, mib
from utils.reporting.out_of_memory import out_of_memory_text
from utils.reporting.peak_memory import MemorySizes, sizes_of, taken_by_cpu, training_memory
from utils.training.checkpoint import CheckpointError
from utils.training.forward import channel_parts, forecast_state
from utils.training.objective import Objective
from utils.training.optim import trained_parameters
from utils.training.run_state import BatchPlan, RunContext
from utils.training.time_estimate import first_items
from utils.types import Batch

log = getLogger(__name__)
USABLE = 0.9
"""Share of the memory available on a CPU that is counted on."""


class MemoryShortError(UserError, MemoryError):
    """A step takes more memory than there is; the message says what would take less."""


def choose_batch_size(ctx: RunContext) -> None:
    """Split the windows of an optimizer step so that a pass fits, where ``--auto_batch_size`` asks for it.

    The plan, the configuration and the accelerator follow; a run that resumes has its plan already.

    Raises:
        MemoryShortError: not even a single window fits.
    """
    if not ctx.plain.is_trainable:
        return
    sizes = possible_sizes(ctx.plan)
    if tries(ctx):
        size = largest_by_trial(ctx, sizes)
    else:
        found = memory_sizes(ctx)
        there = available_bytes()
        fitting = largest_by_estimate(found, sizes, passes=ctx.plan.passes, available=there)
        if fitting is None:
            log.warning("--auto_batch_size: %s", nothing_fits_text(found, sizes, available=there))
        size = fitting or largest_by_trial(ctx, sizes[-1:])
    size = min(gather_object([size]))
    asked, ctx.plan = (
        ctx.plan,
        BatchPlan(size, ctx.plan.size * ctx.plan.passes // size, ctx.plan.processes),
    )
    ctx.config = ctx.plan.apply(ctx.config)
    ctx.accelerator.gradient_accumulation_steps = ctx.plan.passes
    if ctx.accelerator.is_main_process:
        ctx.metrics.append(event="batch", step=0, asked=asked.state(), chosen=ctx.plan.state())
    log.info("--auto_batch_size: %s", ctx.plan if ctx.plan != asked else f"{asked}, as asked for")


def tries(ctx: RunContext) -> bool:
    """Whether too large a batch raises an error, after which a smaller one can be tried."""
    return ctx.accelerator.device.type != "cpu"


def possible_sizes(plan: BatchPlan) -> list[int]:
    """Batch sizes that split a process's share of a step evenly, from the one asked for down to 1."""
    share = plan.size * plan.passes
    return [size for size in range(plan.size, 0, -1) if share % size == 0]


def largest_by_estimate(found: MemorySizes, sizes: list[int], *, passes: int, available: int) -> int | None:
    """The largest batch size whose training step fits by the estimate, or None.

    Of a model without an LLM, the first.

    Args:
        found: the run's sizes.
        sizes: possible batch sizes, falling; the first is the one asked for.
        passes: forward passes of an optimizer step with that one.
        available: bytes.
    """
    if found.llm is None:
        return sizes[0]
    for size in sizes:
        # With more than one pass a step's gradients are there while the next pass makes its own.
        extra = 0.0 if size == sizes[0] and passes == 1 else found.trained
        needed = taken_by_cpu(training_memory(found.replace(batch_size=size))) + extra
        if needed <= USABLE * available:
            return size
    return None


def nothing_fits_text(found: MemorySizes, sizes: list[int], *, available: int) -> str:
    """What to say where no size fits by the estimate, which stops no run."""
    needed = taken_by_cpu(training_memory(found.replace(batch_size=sizes[-1])))
    return (
        f"by the estimate a pass of {sizes[-1]} window(s) takes {mib(needed)}, and {mib(available)} are "
        "available; trying it decides"
    )


def largest_by_trial(ctx: RunContext, sizes: list[int]) -> int:
    """The largest batch size with which two passes and an optimizer's state fit.

    Raises:
        MemoryShortError: not even the smallest does.
    """
    turns = iter(sizes[1:])

    def reduce() -> int:
        return next(turns, 0)  # 0 ends the search

    @find_executable_batch_size(starting_batch_size=sizes[0], reduce_batch_size_fn=reduce)
    def trial(batch_size: int) -> int:
        try_passes(ctx, ctx.data.train, batch_size)
        return batch_size

    try:
        return int(trial())
    except RuntimeError as error:
        if "No executable batch size" not in str(error):
            raise
        raise MemoryShortError(
            out_of_memory_text(memory_sizes(ctx), "not even one window fits", passes=ctx.plan.passes)
        ) from error


def try_passes(ctx: RunContext, dataset: Dataset[Batch], size: int) -> None:
    """Two forward and backward passes over ``size`` items beside an optimizer's state; nothing is changed."""
    device = ctx.accelerator.device
    trained = trained_parameters(ctx.plain)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        moments = [torch.empty_like(p) for p in trained for _ in range(2)]
        ctx.plain.train()
        batch = first_items(dataset, size, device)
        objective = Objective(ctx.config)
        try:
            for _ in range(2):
                for part in channel_parts(batch, ctx.config.training.max_channels_per_step):
                    state = forecast_state(ctx.plain, part.batch)
                    objective(state, part.batch, step=0).total.backward()
        finally:
            ctx.plain.zero_grad(set_to_none=True)
            del moments


def memory_sizes(ctx: RunContext) -> MemorySizes:
    """What the estimate needs of a run."""
    on_gpu = ctx.accelerator.device.type != "cpu"
    return sizes_of(ctx.plain, config=ctx.config, forecast=len(ctx.data.targets), on_gpu=on_gpu)


@contextmanager
def out_of_memory_explained(ctx: RunContext) -> Iterator[None]:
    """Where the memory does not suffice inside, the error says what would take less.

    Raises:
        MemoryShortError: in place of the allocator's own error.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, MemoryShortError) or not is_out_of_memory(error):
            raise
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise MemoryShortError(
            out_of_memory_text(memory_sizes(ctx), cause, passes=ctx.plan.passes)
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is an allocator's, of a GPU or of the CPU."""
    known = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, known) or (isinstance(error, Exception) and should_reduce_batch_size(error))


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
