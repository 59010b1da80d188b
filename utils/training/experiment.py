"""One run from configuration to results: the only place that makes an Accelerator.

The entry points hand in how to build the data and the model; this module knows neither.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from logging import getLogger
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DataLoaderConfiguration,
    DistributedDataParallelKwargs,
    broadcast_object_list,
    gather_object,
    set_seed,
)
from torch.utils.data import DataLoader, Dataset

from utils.config import Config
from utils.log import MetricsFile, RunLogFile, setup_logging
from utils.reporting.preflight import environment, opening_lines
from utils.training import checkpoint as checkpoints
from utils.training import judging, resuming
from utils.training import payload as payloads
from utils.training import run_folder as folders
from utils.training.batch_plan import BatchPlan, plan_batches
from utils.training.checkpoint import CheckpointError, SaveError
from utils.training.context import Loaders, RunContext
from utils.training.objective import Objective
from utils.training.optim import build_optimizer, build_schedule
from utils.training.precision import matmul_precision
from utils.training.progress import Hooks
from utils.training.stopping import RunStopped, StopRequest, how_to_go_on
from utils.training.trainer import Trainer
from utils.types import Batch, DataBundle

log = getLogger(__name__)


@dataclass(frozen=True)
class Builders:
    """What the entry points hand in."""

    model_name: str
    model: Callable[[Config], Any]
    """Configuration to model; what it must offer, `models.forecaster.Forecaster` shows."""
    data: Callable[[Config], DataBundle]
    training_loader: Callable[..., DataLoader[Batch]]
    """(bundle, config, num_processes=) to the training loader."""
    evaluation_loader: Callable[..., DataLoader[Batch]]
    """(dataset, batch_size, num_workers) to a loader in order."""


@dataclass(frozen=True)
class RunResult:
    """Where a run lies and what came out."""

    run_dir: Path
    results: dict[str, Any]
    """What ``results.json`` holds."""


def run(config: Config, builders: Builders) -> RunResult:
    """Train and test, or with ``--is_training 0`` test a checkpoint.

    Raises:
        ValueError: for settings, data or a checkpoint that do not fit; the message says which.
        OSError: where a file or the LLM cannot be had, or a checkpoint cannot be saved.
        RunStopped: a signal or ``--max_minutes`` asked for it; the message says how to go on.
    """
    with ExitStack() as closing, StopRequest(config.run.max_minutes) as stop:
        try:
            this, payload = _set_up(config, builders, stop, closing)
            _prepare_model(this, payload)
            trainer, loaders = _trainer(this, builders, payload)
            stop.can_wait = True
            if config.run.is_training:
                with this.phase("training"):
                    _train(this, trainer, loaders, payload)
            return RunResult(this.folder, judging.judge(this, trainer, loaders))
        except RunStopped as stopped:
            log.info("%s", stopped.message)
            raise


def _set_up(
    config: Config, builders: Builders, stop: StopRequest, closing: ExitStack
) -> tuple[RunContext, dict[str, Any] | None]:
    """Data, model and folder of a run, and the payload that it goes on from or tests."""
    began = time.perf_counter()
    accelerator = _accelerator(config)
    closing.callback(accelerator.free_memory)
    setup_logging(main_process=accelerator.is_main_process)
    closing.enter_context(matmul_precision(config.training.matmul_precision, accelerator.device))
    with accelerator.main_process_first():  # one process downloads and converts, the others find it done
        data = builders.data(config)
    asked, config = config, resolve(config, data)
    data_seconds = time.perf_counter() - began
    model = _model(config, builders, accelerator)
    llm = asdict(model.llm_identity) if model.llm_identity else {}
    name = asked.run_name(model=builders.model_name, llm_name=llm.get("name", "none"))
    resume = resuming.checkpoint_to_resume(
        config, asked, name=name, model_name=builders.model_name, llm_hash=llm.get("content_hash")
    )
    payload, plan = None, plan_batches(config, accelerator.num_processes, None)
    if resume is not None:
        payload, plan = _payload_for(config, accelerator, llm=llm, data=data, path=resume)
    folder = resuming.choose_folder(config, accelerator, name=name, resume=resume, payload=payload)
    if accelerator.is_main_process:
        facts = environment() | {"llm": llm, "data_hash": data.content_hash}
        folders.describe_run(folder, config, facts, resumed=resume is not None)
        closing.callback(RunLogFile(folder / folders.LOG_FILE).close)
    log.info("run folder: %s", folder)
    accelerator.gradient_accumulation_steps = plan.passes
    this = RunContext(
        config=plan.apply(config),
        accelerator=accelerator,
        data=data,
        model=model,
        plain=model,
        folder=folder,
        metrics=MetricsFile(folder / folders.METRICS_FILE),
        llm=llm,
        plan=plan,
        flags=_flags_as_begun(config, payload),
        stop=stop,
        newest=resume if config.run.is_training else None,
    )
    this.phases.update(data=data_seconds, model=time.perf_counter() - began - data_seconds)
    return this, payload


def resolve(config: Config, data: DataBundle) -> Config:
    """The configuration with what the data decide: season, number of variables, frequency."""
    return config.replace(season=data.season, enc_in=len(data.columns), freq=data.frequency)


def _model(config: Config, builders: Builders, accelerator: Accelerator) -> Any:
    """The model under the run's seed."""
    set_seed(config.training.seed)
    if config.training.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs for it
    torch.use_deterministic_algorithms(config.training.deterministic)
    with accelerator.main_process_first():
        return builders.model(config)


def _payload_for(
    config: Config, accelerator: Accelerator, *, llm: dict[str, Any], data: DataBundle, path: Path
) -> tuple[dict[str, Any], BatchPlan]:
    """The payload at ``path``, after making sure that it is this run's, and the split of its batch."""
    training = bool(config.run.is_training)
    payload = checkpoints.load(path) if training else checkpoints.load_weights(path)
    if "config" in payload:
        payloads.refuse_other_run(payload, config.flat(), llm=llm, data=data, path=path)
    else:
        log.warning(
            "%s holds weights alone: that they belong to these settings and data is not checked", path
        )
    return payload, plan_batches(config, accelerator.num_processes, payload if training else None)


def _flags_as_begun(config: Config, payload: dict[str, Any] | None) -> dict[str, Any]:
    """Every setting, with the batch size and passes that the run was begun with."""
    begun = payload["config"] if payload is not None and "config" in payload else {}
    kept = {name: begun[name] for name in payloads.SPLIT_OTHERWISE if name in begun}
    return {**config.flat(), **kept}


def _accelerator(config: Config) -> Accelerator:
    """The engine of a run. Evaluation counts each window once, so batches are never evened out."""
    t = config.training
    return Accelerator(
        cpu=t.cpu,
        mixed_precision=t.mixed_precision,
        gradient_accumulation_steps=t.gradient_accumulation_steps,
        step_scheduler_with_optimizer=False,
        dataloader_config=DataLoaderConfiguration(even_batches=False),
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=False)
        ],
    )


def _prepare_model(this: RunContext, payload: dict[str, Any] | None) -> None:
    """Fill in what is counted on the training windows, or restore it; then wrap."""
    run_settings = this.config.run
    with this.phase("memory"):
        if payload is not None:
            _take_weights(this, payload, source="--resume_from_checkpoint")
        else:
            this.plain.to(this.accelerator.device)
            if run_settings.init_from:
                path = checkpoints.locate(run_settings.init_from, flag="--init_from")
                _take_weights(this, checkpoints.load_weights(path), source=f"--init_from {path}")
                this.plain.recalibrate(this.data.source)
                if this.config.gram.build_memory:
                    this.plain.rebuild_memory(this.data.source)
            else:
                this.plain.fit_statistics(this.data.source)
                this.plain.fit_closed_form(this.data.source, this.data.validation)
        if payload is None or not this.config.run.is_training:
            # A resumed run goes on with the keys it had; a test wants those of the weights tested.
            this.plain.refresh(this.data.source)
    _check_same_everywhere(this)
    if this.accelerator.process_index:  # equal weights so far; from here on each drops out its own units
        torch.manual_seed(this.config.training.seed + this.accelerator.process_index)
    if any(p.requires_grad for p in this.plain.parameters()):  # DDP refuses a model without
        this.model = this.accelerator.prepare_model(this.plain)


def _take_weights(this: RunContext, payload: dict[str, Any], *, source: str) -> None:
    """The weights of a checkpoint of the same architecture."""
    try:
        this.plain.load_state_dict(payload["model"])
    except RuntimeError as error:  # torch's, for missing keys and other shapes
        raise CheckpointError(f"{source}: its weights do not fit this model: {error}") from error


def _check_same_everywhere(this: RunContext) -> None:
    """Every process must start from the same weights and the same memory."""
    if this.accelerator.num_processes == 1:
        return
    digest = hashlib.sha256()
    for name, tensor in sorted(this.plain.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    found = gather_object([digest.hexdigest()])
    if len(set(found)) > 1:
        raise RuntimeError(f"processes start from different weights or memories: {found}")


def _trainer(this: RunContext, builders: Builders, payload: dict[str, Any] | None) -> tuple[Trainer, Loaders]:
    """Loaders, optimizer, schedule and the loop over them, restored where the run resumes."""
    config, accelerator = this.config, this.accelerator
    t = config.training
    workers = config.data.num_workers

    def evaluation(dataset: Dataset[Batch]) -> DataLoader[Batch]:
        loader = builders.evaluation_loader(dataset, t.eval_batch_size or t.batch_size, workers)
        return accelerator.prepare_data_loader(loader)

    train = None
    steps_per_epoch = 0
    if config.run.is_training:
        train = accelerator.prepare_data_loader(
            builders.training_loader(this.data, config, num_processes=accelerator.num_processes)
        )
        steps_per_epoch = len(train) // t.gradient_accumulation_steps
    total = min(t.max_steps or 10**12, t.train_epochs * steps_per_epoch) if this.plain.takes_steps else 0
    optimizer = build_optimizer(this.plain, t)
    scheduler = build_schedule(optimizer, t, total_steps=total, steps_per_epoch=steps_per_epoch)
    prepared = accelerator.prepare_optimizer(optimizer)
    trainer = Trainer(
        accelerator=accelerator,
        model=this.model,
        optimizer=prepared,
        scheduler=scheduler,
        config=t,
        objective=Objective(config),
        trend_label=config.tapr.trend_label,
        metrics=this.metrics,
        log_steps=config.run.log_steps,
        save_steps=steps_per_epoch if config.run.save_steps is None else config.run.save_steps,
        total_steps=total,
        stop=this.stop.asked,
    )
    if payload is not None and config.run.is_training:
        payloads.restore(this, trainer, payload)
    elif payload is not None:
        trainer.progress.global_step = payload.get("global_step", 0)
    for line in opening_lines(
        config,
        this.data,
        this.plain,
        llm=_llm_text(this.llm),
        steps_per_epoch=steps_per_epoch,
        total_steps=total,
        processes=accelerator.num_processes,
        device=str(accelerator.device),
    ):
        log.info("%s", line)
    return trainer, Loaders(train, evaluation(this.data.validation), evaluation(this.data.test))


def _train(this: RunContext, trainer: Trainer, loaders: Loaders, payload: dict[str, Any] | None) -> None:
    """Fit; the best weights by validation and the step checkpoints land in the run's folder."""
    assert loaders.train is not None
    if payload is not None:
        _go_on(this, trainer, payload)
    elif this.config.run.resume_from_checkpoint == "auto":
        log.info(
            "nothing to resume: no whole checkpoint of this run with this length; starting afresh "
            "(to go on with a run of another length, name its checkpoint)"
        )

    def stopped() -> NoReturn:
        _save_step(this, trainer)
        asked = this.stop.reason or "another process"
        step = trainer.progress.global_step
        raise RunStopped(f"stopped by {asked} after optimizer step {step}; {how_to_go_on(this.newest)}")

    trainer.fit(
        loaders.train,
        loaders.validation,
        Hooks(
            refresh=lambda: this.plain.refresh(this.data.source),
            save_best=lambda: _save_best(this, trainer),
            save_step=lambda: _save_step(this, trainer),
            test=lambda: trainer.evaluate(loaders.test, name="test"),
            stopped=stopped,
        ),
    )


def _go_on(this: RunContext, trainer: Trainer, payload: dict[str, Any]) -> None:
    """Put back what a resumed run needs beside the weights, and say what is not as it was."""
    progress = trainer.progress
    payloads.restore_random_state(this, payload)
    if this.accelerator.is_main_process:
        this.metrics.cut_back(progress.global_step, validated=not progress.validation_due)
    log.info("resumed at optimizer step %d", progress.global_step)
    # Killed between the two, a run goes on from its best weights and still owes the step's checkpoint.
    trainer.step_is_saved = checkpoints.is_whole(checkpoints.step_path(this.folder, progress.global_step))
    payloads.announce_changes(this, payload)
    if progress.best_step != -1 and not checkpoints.is_whole(this.folder / checkpoints.BEST):
        log.warning("the best weights so far are not beside this checkpoint: starting that search anew")
        progress.best_step, progress.val_loss_min = -1, float("inf")


def _save_best(this: RunContext, trainer: Trainer) -> None:
    """Save the best weights so far, as a checkpoint that can be gone on from."""
    path = this.folder / checkpoints.BEST
    _save(this, trainer, lambda content: checkpoints.save(content, path))
    this.newest = path


def _save_step(this: RunContext, trainer: Trainer) -> None:
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
        this.metrics.flush_to_disk()
        try:
            write(content)
        except SaveError as error:
            problem = [str(error)]
    found = broadcast_object_list(problem)[0]
    this.saves.append(time.perf_counter() - began)
    if found is not None:
        raise SaveError(found)


def _llm_text(llm: dict[str, Any]) -> str:
    if not llm:
        return "none"
    note = f" ({llm['note']})" if llm["note"] else ""
    size = f"{llm['layers']} layers, hidden size {llm['hidden_size']}"
    return f"{llm['name']}, {llm['architecture']}, {size}{note}"
