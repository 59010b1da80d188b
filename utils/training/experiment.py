"""One run from configuration to results: the only place that makes an Accelerator.

The entry points hand in how to build the data and the model; this module knows neither.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
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

from utils.config import MAY_CHANGE_ON_RESUME, Config
from utils.log import MetricsFile, RunLogFile, setup_logging
from utils.reporting.preflight import environment, opening_lines
from utils.training import checkpoint as checkpoints
from utils.training import run_folder as folders
from utils.training.checkpoint import CheckpointError
from utils.training.objective import Objective
from utils.training.optim import build_optimizer, build_schedule
from utils.training.trainer import Hooks, Progress, Trainer
from utils.types import Batch, DataBundle

log = getLogger(__name__)
SHOWN_WINDOWS = 6
"""Test windows whose forecasts are kept for a plot."""


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


@dataclass
class _Run:
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
    phases: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the seconds spent inside to the phase ``name``."""
        began = time.perf_counter()
        yield
        self.phases[name] = self.phases.get(name, 0.0) + time.perf_counter() - began


def run(config: Config, builders: Builders) -> RunResult:
    """Train and test, or with ``--is_training 0`` test a checkpoint.

    Raises:
        ValueError: for settings, data or a checkpoint that do not fit; the message says which.
        OSError: where a file or the LLM cannot be had.
    """
    accelerator = _accelerator(config)
    setup_logging(main_process=accelerator.is_main_process)
    began = time.perf_counter()
    with accelerator.main_process_first():  # one process downloads and converts, the others find it done
        data = builders.data(config)
    asked, config = config, config.replace(season=data.season)
    data_seconds = time.perf_counter() - began
    set_seed(config.training.seed)
    if config.training.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs for it
    torch.use_deterministic_algorithms(config.training.deterministic)
    with accelerator.main_process_first():
        model = builders.model(config)
    identity = model.llm_identity
    name = asked.run_name(model=builders.model_name, llm_name=identity.name if identity else "none")
    resume = _checkpoint_to_resume(config, name)
    payload = checkpoints.load(resume) if resume else None
    llm = asdict(identity) if identity else {}
    if payload is not None:
        _refuse_other_run(payload, config, llm, data, resume, processes=accelerator.num_processes)
    folder = _folder(config, name, resume, payload, accelerator)
    if accelerator.is_main_process:
        facts = environment() | {"llm": llm, "data_hash": data.content_hash}
        folders.describe_run(folder, config, facts, resumed=resume is not None)
    this = _Run(
        config, accelerator, data, model, model, folder, MetricsFile(folder / folders.METRICS_FILE), llm
    )
    this.phases["data"] = data_seconds
    log_file = RunLogFile(folder / folders.LOG_FILE) if accelerator.is_main_process else None
    try:
        log.info("run folder: %s", folder)
        this.phases["model"] = time.perf_counter() - began - data_seconds
        _prepare_model(this, payload)
        trainer, loaders = _trainer(this, builders, payload)
        if config.run.is_training:
            with this.phase("training"):
                _train(this, trainer, loaders, payload)
        results = _test(this, trainer, loaders)
        return RunResult(folder, results)
    finally:
        if log_file is not None:
            log_file.close()
        accelerator.free_memory()


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


def _prepare_model(this: _Run, payload: dict[str, Any] | None) -> None:
    """Fill in what is counted on the training windows, or restore it; then wrap."""
    run_settings = this.config.run
    with this.phase("memory"):
        if payload is not None:
            this.plain.load_state_dict(payload["model"])
        else:
            this.plain.to(this.accelerator.device)
            if run_settings.init_from:
                _start_from(this, checkpoints.locate(run_settings.init_from, flag="--init_from"))
                this.plain.recalibrate(this.data.source)
                if this.config.gram.build_memory:
                    this.plain.rebuild_memory(this.data.source)
            else:
                this.plain.fit_statistics(this.data.source)
        if payload is None or not this.config.run.is_training:
            # A resumed run goes on with the keys it had; a test wants those of the weights tested.
            this.plain.refresh(this.data.source)
    _check_same_everywhere(this)
    if this.accelerator.process_index:  # equal weights so far; from here on each drops out its own units
        torch.manual_seed(this.config.training.seed + this.accelerator.process_index)
    this.model = this.accelerator.prepare_model(this.plain)


def _start_from(this: _Run, path: Path) -> None:
    """Take over the weights, and nothing else, of a checkpoint of the same architecture."""
    try:
        this.plain.load_state_dict(checkpoints.load(path)["model"])
    except RuntimeError as error:  # torch's, for missing keys and other shapes
        raise CheckpointError(f"--init_from {path}: its weights do not fit this model: {error}") from error


def _check_same_everywhere(this: _Run) -> None:
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


@dataclass(frozen=True)
class _Loaders:
    train: DataLoader[Batch] | None
    validation: DataLoader[Batch]
    test: DataLoader[Batch]


def _trainer(this: _Run, builders: Builders, payload: dict[str, Any] | None) -> tuple[Trainer, _Loaders]:
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
        steps_per_epoch = -(-len(train) // t.gradient_accumulation_steps)
    total = min(t.max_steps or 10**12, t.train_epochs * steps_per_epoch)
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
    )
    if payload is not None:
        prepared.load_state_dict(payload["optimizer"])
        scheduler.load_state_dict(payload["scheduler"])
        if accelerator.scaler is not None and payload["scaler"] is not None:
            accelerator.scaler.load_state_dict(payload["scaler"])
        trainer.progress = _progress_from(payload, config)
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
    return trainer, _Loaders(train, evaluation(this.data.validation), evaluation(this.data.test))


def _train(this: _Run, trainer: Trainer, loaders: _Loaders, payload: dict[str, Any] | None) -> None:
    """Fit; the best weights by validation and the step checkpoints land in the run's folder."""
    assert loaders.train is not None
    run_settings = this.config.run
    if payload is None and run_settings.resume_from_checkpoint == "auto":
        log.info(
            "nothing to resume: no whole checkpoint of this run with this length; starting afresh "
            "(to go on with a run of another length, name its checkpoint)"
        )
    if payload is not None:
        states = payload["rng_state"]
        checkpoints.restore_random_state(states[this.accelerator.process_index])
        if this.accelerator.is_main_process:
            this.metrics.cut_back(trainer.progress.global_step)
        log.info("resumed at optimizer step %d", trainer.progress.global_step)
        if trainer.progress.best_step != -1 and not (this.folder / checkpoints.BEST).is_file():
            log.warning("the best weights so far are not beside this checkpoint: starting that search anew")
            trainer.progress.best_step, trainer.progress.val_loss_min = -1, float("inf")

    def save_best() -> None:
        content = _payload(this, trainer)
        if this.accelerator.is_main_process:
            checkpoints.save(content, this.folder / checkpoints.BEST)

    def save_step() -> None:
        content = _payload(this, trainer)
        if this.accelerator.is_main_process:
            step, keep = trainer.progress.global_step, run_settings.save_total_limit
            path = checkpoints.save_step(content, this.folder, step=step, keep=keep)
            log.info("saved %s", path)

    trainer.fit(
        loaders.train,
        loaders.validation,
        Hooks(
            refresh=lambda: this.plain.refresh(this.data.source),
            save_best=save_best,
            save_step=save_step,
            test=lambda: trainer.evaluate(loaders.test, name="test"),
        ),
    )


def _test(this: _Run, trainer: Trainer, loaders: _Loaders) -> dict[str, Any]:
    """Score the last and the best weights on every test window, and write the results."""
    progress = trainer.progress
    tested: dict[str, dict[str, Any]] = {}
    with this.phase("test"):
        if this.config.run.is_training:
            scores = trainer.evaluate(loaders.test, name="test")
            tested["last"] = {"step": progress.global_step, "test": scores}
            best = {"global_step": progress.global_step, "val_loss_min": progress.val_loss_min}
            if progress.best_step not in (progress.global_step, -1):
                best = checkpoints.load(this.folder / checkpoints.BEST)
                this.plain.load_state_dict(best["model"])
                scores = trainer.evaluate(loaders.test, name="test")
            tested["best"] = {
                "step": best["global_step"],
                "test": scores,
                "validation_mse": best["val_loss_min"] if np.isfinite(best["val_loss_min"]) else None,
            }
        else:
            tested["checkpoint"] = {
                "step": progress.global_step,
                "test": trainer.evaluate(loaders.test, name="test"),
            }
        training = bool(this.config.run.is_training)
        kept = _keep_forecasts(this, folders.FORECASTS_FILE if training else folders.TEST_ONLY_FORECASTS_FILE)
    for name, entry in tested.items():
        log.info(
            "test, %s weights (step %d): mse %.4f mae %.4f over %d windows",
            name,
            entry["step"],
            entry["test"]["mse"],
            entry["test"]["mae"],
            entry["test"]["windows"],
        )
    results = {
        "run_dir": str(this.folder),
        "data": this.data.name,
        "notes": dict(this.data.notes),
        "llm": this.llm,
        **tested,
        "phases": this.phases,
        "forecasts": kept,
    }
    if this.accelerator.is_main_process:
        if training:
            for name, entry in tested.items():
                this.metrics.append(event="test", weights=name, **entry)
        results_file = folders.RESULTS_FILE if training else folders.TEST_ONLY_RESULTS_FILE
        folders.write_json(this.folder / results_file, results)
    this.accelerator.wait_for_everyone()
    return results


@torch.no_grad()
def _keep_forecasts(this: _Run, name: str) -> str:
    """Forecasts of a few spread test windows, for a plot; the file's name inside the run's folder."""
    test: Any = this.data.test
    positions = np.linspace(0, len(test) - 1, min(SHOWN_WINDOWS, len(test))).astype(int)
    items = [test[int(i)] for i in positions]
    batch = Batch(*(torch.stack(column).to(this.accelerator.device) for column in zip(*items, strict=True)))
    this.plain.eval()
    prediction = this.plain(
        batch.x, start=batch.start, series_id=batch.series_id, variable=batch.variable, target=batch.y
    )
    if this.accelerator.is_main_process:
        np.savez_compressed(
            this.folder / name,
            x=batch.x.cpu().numpy(),
            y=batch.y.cpu().numpy(),
            prediction=prediction.float().cpu().numpy(),
            start=batch.start.cpu().numpy(),
            columns=np.array(list(this.data.columns)),
        )
    return name


def _payload(this: _Run, trainer: Trainer) -> dict[str, Any]:
    """All that a run needs to go on, or to forecast, as tensors and plain values.

    Every process must call it: the random state of each is inside.
    """
    progress = trainer.progress
    scaler = this.accelerator.scaler
    return {
        "format_version": checkpoints.FORMAT_VERSION,
        "model": {name: tensor.detach().cpu() for name, tensor in this.plain.state_dict().items()},
        "optimizer": trainer.optimizer.state_dict(),
        "scheduler": _plain_schedule(trainer.scheduler.state_dict()),
        "epoch": progress.epoch,
        "global_step": progress.global_step,
        "best_score": -progress.val_loss_min,
        "val_loss_min": progress.val_loss_min,
        "counter": progress.counter,
        "progress": progress.state(),
        "rng_state": gather_object([checkpoints.random_state()]),
        "sampler_state": {
            "epoch": progress.epoch,
            "batches": progress.batches,
            "seed": this.config.training.seed,
        },
        "scaler": scaler.state_dict() if scaler is not None else None,
        "num_processes": this.accelerator.num_processes,
        "config": this.config.flat(),
        "llm": this.llm,
        "data": {
            "name": this.data.name,
            "columns": list(this.data.columns),
            "frequency": this.data.frequency,
            "content_hash": this.data.content_hash,
            "mean": this.data.standardisation.mean,
            "std": this.data.standardisation.std,
        },
    }


def _plain_schedule(state: dict[str, Any]) -> dict[str, Any]:
    """A scheduler's state without the functions, which are built from the configuration."""
    return {
        k: v for k, v in state.items() if isinstance(v, int | float | bool | list) and k != "lr_lambdas"
    } | {"lr_lambdas": [None]}


def _progress_from(payload: dict[str, Any], config: Config) -> Progress:
    """Where the checkpoint stood; ``--resume_counter`` overrides the early-stopping counter."""
    names = {f.name for f in fields(Progress)}
    progress = Progress(**{k: v for k, v in payload["progress"].items() if k in names})
    if config.run.resume_counter is not None:
        progress.counter = config.run.resume_counter
    return progress


def _checkpoint_to_resume(config: Config, name: str) -> Path | None:
    """The checkpoint that ``--resume_from_checkpoint`` means, or None for a fresh start."""
    where = config.run.resume_from_checkpoint
    if where is None and not config.run.is_training:
        where = "auto"
    if where is None:
        return None
    best = Path(where) / checkpoints.BEST
    if not config.run.is_training and best.is_file():
        return best  # a run's folder: what it is judged by
    if where != "auto":
        return checkpoints.locate(where)
    if config.run.is_training:
        return folders.find_resumable(Path(config.run.checkpoints), name)
    for folder in reversed(folders.numbered_folders(Path(config.run.checkpoints), name)):
        if (folder / checkpoints.BEST).is_file():
            return folder / checkpoints.BEST
    raise CheckpointError(
        f"--is_training 0: expected a trained run in {config.run.checkpoints}/{name}, found none; "
        "name a checkpoint with --resume_from_checkpoint"
    )


def _folder(
    config: Config,
    name: str,
    resume: Path | None,
    payload: dict[str, Any] | None,
    accelerator: Accelerator,
) -> Path:
    """The run's folder: the checkpoint's own where that is its run's, otherwise one that holds no run."""
    chosen: list[str | None] = [None]
    if accelerator.is_main_process:
        if resume is not None and payload is not None and folders.is_run_of(resume, payload["config"]):
            chosen = [str(folders.run_folder_of(resume))]
        else:
            chosen = [str(folders.claim_folder(Path(config.run.checkpoints), name))]
    folder = broadcast_object_list(chosen)[0]
    assert folder is not None
    return Path(folder)


def _refuse_other_run(
    payload: dict[str, Any],
    config: Config,
    llm: dict[str, Any],
    data: DataBundle,
    path: Path | None,
    *,
    processes: int,
) -> None:
    """Resuming with other settings, another LLM or other data is an error that lists each difference."""
    found = checkpoints.differences(payload["config"], config.flat(), free=MAY_CHANGE_ON_RESUME)
    found += [
        f"LLM {name}: the checkpoint has {payload['llm'].get(name)!r}, this run {llm.get(name)!r}"
        for name in ("architecture", "layers", "hidden_size", "content_hash")
        if payload["llm"].get(name) != llm.get(name)
    ]
    if payload["data"]["content_hash"] != data.content_hash:
        found.append(f"data: the checkpoint saw {payload['data']['name']} with another content hash")
    if config.run.is_training and payload["num_processes"] != processes:
        found.append(
            f"processes: the checkpoint had {payload['num_processes']}, this run {processes}; each "
            "takes a part of every global batch"
        )
    if found:
        raise CheckpointError(f"{path} belongs to another run:\n" + "\n".join(found))


def _llm_text(llm: dict[str, Any]) -> str:
    if not llm:
        return "none"
    note = f" ({llm['note']})" if llm["note"] else ""
    size = f"{llm['layers']} layers, hidden size {llm['hidden_size']}"
    return f"{llm['name']}, {llm['architecture']}, {size}{note}"
