"""A checkpoint's content: gathered from a run, saved, compared with another, given back to it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import fields
from logging import getLogger
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object

from utils.config import AUTO, free_on_resume, settings_where
from utils.training import checkpoint as checkpoints
from utils.training.checkpoint import SaveError
from utils.training.run_state import BatchPlan, Progress, RunContext
from utils.training.trainer import Trainer
from utils.types import DataBundle

log = getLogger(__name__)


def gather(ctx: RunContext, trainer: Trainer) -> dict[str, Any]:
    """All that a run needs to go on, or to forecast, as tensors and plain values.

    Every process must call it: what differs from process to process is inside for each.
    """
    progress = trainer.progress
    scaler = ctx.accelerator.scaler
    return {
        "format_version": checkpoints.FORMAT_VERSION,
        "model": {name: tensor.detach().cpu() for name, tensor in ctx.plain.state_dict().items()},
        "optimizer": trainer.optimizer.state_dict(),
        "scheduler": _plain_schedule(trainer.scheduler.state_dict()),
        "epoch": progress.epoch,
        "global_step": progress.global_step,
        "best_score": -progress.val_loss_min,
        "val_loss_min": progress.val_loss_min,
        "counter": progress.counter,
        "progress": progress.state(),
        "loss_sums": gather_object([progress.own_sums()]),
        "rng_state": gather_object([checkpoints.random_state()]),
        "sampler_state": {
            "epoch": progress.epoch,
            "batches": progress.epoch_steps * ctx.plan.passes,
            "seed": ctx.config.training.seed,
        },
        "scaler": scaler.state_dict() if scaler is not None else None,
        "num_processes": ctx.accelerator.num_processes,
        "batch": ctx.plan.state(),
        "numerics": numerics(ctx.accelerator.device),
        "model_name": ctx.plain.name,
        "config": ctx.flags,
        "llm": ctx.llm,
        "data": {
            **data_identity(ctx.data),
            "columns": list(ctx.data.columns),
            "frequency": ctx.data.frequency,
            "date_format": ctx.data.date_format,
            "time_zone": ctx.data.time_zone,
            "mean": ctx.data.standardisation.mean,
            "std": ctx.data.standardisation.std,
            **ctx.data.identity._asdict(),
            "panel": None if ctx.data.panel is None else ctx.data.panel._asdict(),
            **({"covariates": ctx.data.covariates} if ctx.data.covariates else {}),
        },
    }


def _plain_schedule(state: dict[str, Any]) -> dict[str, Any]:
    """A scheduler's state without the functions, which are built from the configuration."""
    return {
        k: v for k, v in state.items() if isinstance(v, int | float | bool | list) and k != "lr_lambdas"
    } | {"lr_lambdas": [None]}


def numerics(device: torch.device) -> dict[str, Any]:
    """What the last bits of a result depend on, beside the settings."""
    return {
        "threads": torch.get_num_threads(),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "device": device.type,
        "torch": str(torch.__version__),
    }


def data_identity(data: DataBundle) -> dict[str, Any]:
    """What tells data, and their division into parts, from others."""
    found = {"name": data.name, "content_hash": data.content_hash, "windows": list(data.windows)}
    return found | {"texts": data.text_hash}


def other_than(
    payload: Mapping[str, Any],
    flags: Mapping[str, Any],
    *,
    asked: Mapping[str, Any],
    llm: Mapping[str, Any],
    data: DataBundle,
) -> list[str]:
    """A line for each difference between a checkpoint and the run that would go on from it, or test it.

    Compared are the settings, the LLM, the data and their split; of what ``asked`` leaves to the machine,
    what the checkpoint has is kept (`recorded_precision`).
    """
    free = free_on_resume(asked, payload["config"]) | settings_where("on_resume", "batch")
    found = checkpoints.differences(payload["config"], flags, free=free)
    found += [
        f"LLM {name}: the checkpoint has {payload['llm'].get(name)!r}, this run {llm.get(name)!r}"
        for name in ("architecture", "layers", "hidden_size", "content_hash", "prompt")
        if payload["llm"].get(name, llm.get(name)) != llm.get(name)
    ]
    return found + [
        f"data {name}: the checkpoint saw {payload['data'][name]!r}, this run {value!r}"
        for name, value in data_identity(data).items()
        if name != "name" and payload["data"].get(name, None if name == "texts" else value) != value
    ]


def recorded_precision(payload: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The precision that a checkpoint's run computed in; None without one that says."""
    if payload is None or "config" not in payload:
        return None
    found = {name: payload["config"].get(name, AUTO) for name in settings_where("on_resume", "machine")}
    # before it was recorded there, what auto came to stood beside the settings alone
    found |= {name: payload.get("numerics", {}).get(name, AUTO) for name in found if found[name] == AUTO}
    return found


def restore(ctx: RunContext, trainer: Trainer, payload: Mapping[str, Any]) -> None:
    """Optimizer, schedule, scaler and progress as they were; ``--resume_counter`` overrides the counter."""
    trainer.optimizer.load_state_dict(payload["optimizer"])
    trainer.scheduler.load_state_dict(payload["scheduler"])
    scaler = ctx.accelerator.scaler
    if scaler is not None and payload["scaler"] is not None:
        scaler.load_state_dict(payload["scaler"])
    names = {f.name for f in fields(Progress)}
    trainer.progress = Progress(**{k: v for k, v in payload["progress"].items() if k in names})
    trainer.progress.loss_sums = {**_own_share(payload["loss_sums"], ctx)}
    if ctx.config.run.resume_counter is not None:
        trainer.progress.counter = ctx.config.run.resume_counter


def _own_share(saved: list[dict[str, float]], ctx: RunContext) -> dict[str, float]:
    """The sums of this process: those it had, or on another number of processes an equal part of all."""
    processes = ctx.accelerator.num_processes
    if len(saved) == processes:
        return saved[ctx.accelerator.process_index]
    return {name: sum(sums[name] for sums in saved) / processes for name in saved[0]}


def restore_random_state(ctx: RunContext, payload: Mapping[str, Any]) -> None:
    """The random generators of this process as they were; a process that was not there keeps its seed."""
    states = payload["rng_state"]
    if ctx.accelerator.process_index < len(states):
        checkpoints.restore_random_state(states[ctx.accelerator.process_index])


def announce_changes(ctx: RunContext, payload: Mapping[str, Any]) -> None:
    """Say what is not as it was, and makes the end of a resumed run differ in the last bits."""
    had, has = payload["numerics"], numerics(ctx.accelerator.device)
    for name in (name for name in has if had.get(name) != has[name]):
        log.warning(
            "resume: the checkpoint was made with %s %s, this run has %s: results will differ slightly",
            name,
            had.get(name),
            has[name],
        )
    most = "max_channels_per_step"
    if payload["config"].get(most) != ctx.flags[most]:
        log.warning(
            "resume: the checkpoint was made with --%s %s, this run has %s: other dropout, and results that "
            "differ slightly", most, payload["config"].get(most), ctx.flags[most],
        )  # fmt: skip
    plan = BatchPlan(**{name: payload["batch"][name] for name in ("size", "passes", "processes")})
    if plan != ctx.plan:
        log.warning(
            "resume: the checkpoint took %s, this run takes %s: the same windows in each step, other "
            "dropout, and results that differ slightly",
            plan,
            ctx.plan,
        )


def save_best(ctx: RunContext, trainer: Trainer) -> None:
    """Save the best weights so far, as a checkpoint that can be gone on from."""
    path = ctx.folder / checkpoints.BEST
    _save(ctx, trainer, lambda content: checkpoints.save(content, path))
    ctx.newest = path


def save_step(ctx: RunContext, trainer: Trainer) -> None:
    """Save a checkpoint of this optimizer step, and prune older ones."""
    step, keep = trainer.progress.global_step, ctx.config.run.save_total_limit
    path = checkpoints.step_path(ctx.folder, step)
    _save(ctx, trainer, lambda content: checkpoints.save_step(content, ctx.folder, step=step, keep=keep))
    ctx.newest = path
    log.info("saved %s", path)


def _save(ctx: RunContext, trainer: Trainer, write: Callable[[dict[str, Any]], object]) -> None:
    """Gather from all processes and write on the main one; what goes wrong there is raised in all."""
    began = time.perf_counter()
    content = gather(ctx, trainer)
    problem: list[str | None] = [None]
    if ctx.accelerator.is_main_process:
        try:
            ctx.metrics.flush_to_disk()
            write(content)
        except OSError as error:
            problem = [str(error)]
    found = broadcast_object_list(problem)[0]
    ctx.saves.append(time.perf_counter() - began)
    if found is not None:
        raise SaveError(found)
