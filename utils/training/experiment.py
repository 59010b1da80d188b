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
from functools import partial
from logging import getLogger
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import (
    DataLoaderConfiguration,
    broadcast_object_list,
    gather_object,
    set_seed,
)
from torch.utils.data import DataLoader, Dataset

from utils.config import AUTO, Config, ConfigError, settings_where
from utils.config_checks import season_problem
from utils.data_sets import SHORT_TERM
from utils.ending import errors_kept
from utils.errors import UserError
from utils.evaluation_batch import windows_per_pass
from utils.log import RunLogFile, setup_logging
from utils.process_memory import keep_freed
from utils.reporting.run_header import environment, llm_text, opening_lines
from utils.threads import fit_threads
from utils.training import checkpoint as checkpoints
from utils.training import checkpoint_state, final_evaluation
from utils.training import run_folder as folders
from utils.training.batch_size import choose_batch_size, out_of_memory_explained, plan_batches
from utils.training.checkpoint import CheckpointError
from utils.training.closed_form import solve_once
from utils.training.distributed.wing import wing_of
from utils.training.objective import Objective
from utils.training.optim import build_optimizer, build_schedule
from utils.training.precision import matmul_precision, subnormals_flushed
from utils.training.precision_choice import Settled, settle
from utils.training.run_folder import status_kept
from utils.training.run_state import BatchPlan, Hooks, Loaders, RunContext
from utils.training.stopping import RunStopped, StopRequest, how_to_go_on
from utils.training.time_estimate import first_items, seconds_per_window, windows_to_evaluate
from utils.training.together import agreed, main_first
from utils.training.tracking import require_tracker, stop_tracking, tracked_metrics
from utils.training.trainer import Trainer
from utils.types import Batch, DataBundle, FitSource, LLMOutline

log = getLogger(__name__)


@dataclass(frozen=True)
class Builders:
    """What the entry points hand in."""

    model_name: str
    model: Callable[[Config], Any]
    """Configuration to model; what it must offer, `models.base.ForecastModel` shows."""
    data: Callable[[Config], DataBundle]
    training_loader: Callable[..., DataLoader[Batch]]
    """(bundle, config, num_processes=, prompts=) to the training loader."""
    evaluation_loader: Callable[..., DataLoader[Batch]]
    """(dataset, batch_size, num_workers, prompts=) to a loader in order."""
    inspect: Callable[..., list[str]]
    """(model, batch, names, shapes=, prompt=) to the lines that a look inside prints."""
    llm: Callable[[Config], LLMOutline | None]
    """Configuration to its LLM's widths, before any weight is read; None of a model without an LLM."""


@dataclass(frozen=True)
class RunResult:
    """Where a run lies and what came out."""

    run_dir: Path
    results: dict[str, Any]
    """What ``results.json`` holds."""


def run(config: Config, builders: Builders) -> RunResult:
    """Train and test, or with ``--is_training 0`` test a checkpoint.

    Raises:
        UserError: for settings, data, files, an LLM or a checkpoint that do not fit, memory that does not
            suffice, a loss that is not finite; the message says which, in the run's log as well.
        Exception: any other is a fault; its traceback lies in the run's log, where there is a run folder.
        RunStopped: a signal or ``--max_minutes`` asked for it; the message says how to go on.
    """
    with ExitStack() as closing, StopRequest(config.run.max_minutes) as stop:
        closing.enter_context(subnormals_flushed())  # before the threads begin
        try:
            ctx, payload = _set_up(config, builders, stop, closing)
            log.info("run folder: %s", ctx.folder)
            writes = ctx.accelerator.is_main_process and bool(config.run.is_training)
            closing.enter_context(status_kept(ctx.folder, writes=writes))
            closing.enter_context(out_of_memory_explained(ctx))
            _prepare_model(ctx, payload)
            if config.training.auto_batch_size and config.run.is_training and payload is None:
                choose_batch_size(ctx)
            keep_freed()
            trainer, loaders = _trainer(ctx, builders, payload)
            _look_inside(ctx, builders)
            stop.can_wait = True
            if config.run.is_training:
                with ctx.phase("training"):
                    _train(ctx, trainer, loaders, payload)
            return RunResult(ctx.folder, final_evaluation.evaluate(ctx, trainer, loaders))
        except RunStopped as stopped:
            log.info("%s", stopped.message)
            raise


def _set_up(
    config: Config, builders: Builders, stop: StopRequest, closing: ExitStack
) -> tuple[RunContext, dict[str, Any] | None]:
    """Data, model and folder of a run, and the payload that it goes on from or tests."""
    began = time.perf_counter()
    require_tracker(config.run.report_to)
    wing = closing.enter_context(wing_of(config))
    config, state = wing.config, wing.processes()
    setup_logging(main_process=state.is_main_process)
    threads = fit_threads()
    data, outline = main_first(state, lambda: (builders.data(config), builders.llm(config)))
    naming = {"model": builders.model_name, "llm_name": outline.name if outline else "none"}
    with agreed(state):
        asked = start_as_begun(config, data, **naming)
        config = resolve(asked, data)
        name = asked.run_name(**naming)
        begun = folders.as_begun(config, asked, name=name, model_name=builders.model_name)
        asked, config = asked.replace(**begun), config.replace(**begun)
        name = asked.run_name(**naming)
        resume = folders.checkpoint_to_resume(config, name=name)
        payload = _payload(config, resume)
    settled = _settled(config, state, outline, payload, variables=len(data.targets))
    config = settled.apply(config)
    accelerator = _accelerator(config, wing.engine_options(config))
    wing.check(config, accelerator)
    closing.callback(accelerator.free_memory)
    closing.enter_context(matmul_precision(config.training.matmul_precision, accelerator.device))
    data_seconds = time.perf_counter() - began
    model = _model(config, builders, accelerator)
    if model.reads_whole_season and data.season > config.data.seq_len:
        raise ConfigError([season_problem(data.season, config.data.seq_len, builders.model_name)])
    llm = asdict(model.llm_identity) | {"prompt": model.prompt_text} if model.llm_identity else {}
    with agreed(accelerator):
        if resume is None and config.run.resume_from_checkpoint == "auto" and config.run.is_training:
            resume = folders.renamed_checkpoint(
                config, asked, model_name=builders.model_name, llm_hash=llm.get("content_hash")
            )
            payload = _payload(config, resume)
        plan = _plan(config, accelerator, asked=asked, llm=llm, data=data, path=resume, payload=payload)
    folder = folders.choose_folder(config, accelerator, name=name, resume=resume, payload=payload)
    closing.enter_context(errors_kept(folder / folders.LOG_FILE, process=accelerator.process_index))
    with agreed(accelerator):
        if accelerator.is_main_process:
            facts = environment() | {"llm": llm, "data_hash": data.content_hash, "precision": settled.facts}
            folders.describe_run(folder, config, facts, resumed=resume is not None)
            closing.callback(RunLogFile(folder / folders.LOG_FILE).close)
    for line in (*wing.unread, *filter(None, [threads]), *settled.lines):
        log.info("%s", line)
    closing.callback(stop_tracking, accelerator)
    metrics = tracked_metrics(
        config, accelerator, folder, resumed_at=None if payload is None else payload.get("global_step")
    )
    return RunContext(
        config=plan.apply(config),
        accelerator=accelerator,
        data=data,
        model=model,
        plain=model,
        folder=folder,
        metrics=metrics,
        llm=llm,
        plan=plan,
        wing=wing,
        precision=settled.facts,
        flags=_flags_as_begun(config, payload),
        stop=stop,
        newest=resume if config.run.is_training else None,
        calibration=None if payload is None or config.run.is_training else payload.get("calibration"),
        phases={"data": data_seconds, "model": time.perf_counter() - began - data_seconds},
    ), payload


def start_as_begun(config: Config, data: DataBundle, *, model: str, llm_name: str) -> Config:
    """``--start auto`` of a run that is resumed or tested, and was begun without a start: without one."""
    run = config.run
    if config.backbone.start != AUTO or (run.resume_from_checkpoint is None and run.is_training):
        return config
    without = config.replace(start="none")
    if run.resume_from_checkpoint not in (None, AUTO):
        path = folders.checkpoint_to_resume(config, name="")
        assert path is not None
        saved = checkpoints.load_weights(path).get("config", {})
        return without if saved.get("start") == "none" else config
    home, begins = Path(run.checkpoints), config.run_name_begins(model)
    if folders.numbered_folders(home, config.run_name(model=model, llm_name=llm_name)):
        return config
    return without if folders.was_begun(home, begins, resolve(without, data).flat()) else config


def resolve(config: Config, data: DataBundle) -> Config:
    """The configuration with what the data decide: season, number of variables, frequency.

    ``--start auto`` becomes what it means where nothing is resumed (`start_as_begun`).
    """
    start = "none" if config.run.task_name == SHORT_TERM else config.backbone.start
    panel = data.panel
    columns: dict[str, Any] = {} if panel is None else {
        "id_column": tuple(panel.id_column), "date_column": panel.date_column, "target": data.targets[0]
    }  # fmt: skip
    return config.replace(
        **columns,
        season=min(data.season, config.data.seq_len),
        enc_in=len(data.columns),
        static_width=data.static_width,
        freq=data.frequency,
        start="solved" if config.backbone.start == AUTO and config.begins_solved else start,
    )


def _model(config: Config, builders: Builders, accelerator: Accelerator) -> Any:
    """The model under the run's seed."""
    asked = config.llm.llm_device_map
    if asked is not None and accelerator.num_processes > 1:
        raise UserError(
            f"--llm_device_map {asked}: expected one process, which spreads its LLM over the devices, found "
            f"{accelerator.num_processes}, each with an LLM of its own; leave it out, or start one process"
        )
    set_seed(config.training.seed)
    if config.training.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs for it
    torch.use_deterministic_algorithms(config.training.deterministic)
    return main_first(accelerator, lambda: builders.model(config))


def _settled(
    config: Config,
    state: PartialState,
    outline: LLMOutline | None,
    payload: dict[str, Any] | None,
    *,
    variables: int,
) -> Settled:
    """The precision, which the main process times and hands to the others; a checkpoint's is kept."""
    found: list[Settled | None] = [None]
    recorded = checkpoint_state.recorded_precision(payload)
    if state.is_main_process:
        found = [settle(config, state.device, outline, variables=variables, recorded=recorded)]
    settled = broadcast_object_list(found)[0]
    assert settled is not None
    return settled


def _payload(config: Config, path: Path | None) -> dict[str, Any] | None:
    """What the checkpoint at ``path`` holds; None without one."""
    if path is None:
        return None
    return checkpoints.load(path) if config.run.is_training else checkpoints.load_weights(path)


def _plan(
    config: Config,
    accelerator: Accelerator,
    *,
    asked: Config,
    llm: dict[str, Any],
    data: DataBundle,
    path: Path | None,
    payload: dict[str, Any] | None,
) -> BatchPlan:
    """The split of the run's batch, after making sure that the payload at ``path`` is this run's."""
    if payload is None:
        return plan_batches(config, accelerator.num_processes, None)
    training = bool(config.run.is_training)
    plan, problems = None, []
    try:
        plan = plan_batches(config, accelerator.num_processes, payload if training else None)
    except CheckpointError as error:
        problems = [str(error)]
    if "config" in payload:
        found = checkpoint_state.other_than(payload, config.flat(), asked=asked.flat(), llm=llm, data=data)
        if problems := [*found, *problems]:
            raise CheckpointError(f"{path} belongs to another run:\n" + "\n".join(problems))
    else:
        log.warning("%s: weights alone; that they fit these settings and data is not checked", path)
    assert plan is not None
    return plan


def _flags_as_begun(config: Config, payload: dict[str, Any] | None) -> dict[str, Any]:
    """Every setting, with the batch size and passes that the run was begun with."""
    begun = payload["config"] if payload is not None and "config" in payload else {}
    kept = {name: begun[name] for name in settings_where("on_resume", "batch") if name in begun}
    return {**config.flat(), **kept}


def _accelerator(config: Config, options: dict[str, Any]) -> Accelerator:
    """The engine of a run. Evaluation counts each window once, so batches are never evened out."""
    t = config.training
    if t.mixed_precision == "fp16" and not torch.accelerator.is_available():
        raise ConfigError(["--mixed_precision: fp16 needs a GPU, found none; use bf16 or no"])
    return Accelerator(
        gradient_accumulation_steps=t.gradient_accumulation_steps,
        step_scheduler_with_optimizer=False,
        dataloader_config=DataLoaderConfiguration(even_batches=False),
        **options,
    )


def _prepare_model(ctx: RunContext, payload: dict[str, Any] | None) -> None:
    """Fill in what is counted on the training windows, or restore it; then wrap."""
    run_settings = ctx.config.run
    with ctx.phase("memory"):
        ctx.wing.divide(ctx)
        # accelerate moves no model whose LLM is spread over devices; and it numbers the CPU by process,
        # where torch would copy what lies on the CPU, the LLM's mapped files with it
        on_cpu = ctx.accelerator.device.type == "cpu"
        ctx.plain.to("cpu" if on_cpu else ctx.accelerator.device)
        if payload is not None:
            _take_weights(ctx, payload, source="--resume_from_checkpoint")
            del payload["model"]  # nobody reads it again: with it goes a copy of a memory
        elif run_settings.init_from:
            path = checkpoints.locate(run_settings.init_from, flag="--init_from")
            weights = ctx.plain.state(checkpoints.load_weights(path)["model"])
            _take_weights(ctx, {"model": weights}, source=f"--init_from {path}")
        if payload is None:
            given, once = run_settings.init_from is not None, partial(solve_once, ctx)
            d = ctx.data
            ctx.plain.fit_statistics(
                FitSource(d.source, d.validation, given, once, d.words, d.texts, d.text_hash)
            )
        if payload is None or not ctx.config.run.is_training:
            # A resumed run goes on with the keys it had; a test wants those of the weights tested.
            ctx.plain.refresh(ctx.data.source)
    _check_same_everywhere(ctx)
    if ctx.accelerator.process_index:  # equal weights so far; from here on each drops out its own units
        torch.manual_seed(ctx.config.training.seed + ctx.accelerator.process_index)
    ctx.accelerator.gradient_accumulation_steps = ctx.plan.passes
    ctx.model = ctx.wing.wrapped(ctx)


def _take_weights(ctx: RunContext, payload: dict[str, Any], *, source: str) -> None:
    """The weights of a checkpoint of the same architecture."""
    try:
        ctx.plain.load_state_dict(payload["model"])
    except RuntimeError as error:  # torch's, for missing keys and other shapes
        raise CheckpointError(f"{source}: its weights do not fit this model: {error}") from error


def _check_same_everywhere(ctx: RunContext) -> None:
    """Every process must start from the same weights, LLM, data and memory."""
    if ctx.accelerator.num_processes == 1:
        return
    digest = hashlib.sha256(ctx.data.content_hash.encode())
    digest.update(str(ctx.llm.get("content_hash")).encode())
    for name, tensor in sorted(ctx.plain.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    found = gather_object([digest.hexdigest()])
    if len(set(found)) > 1:
        raise RuntimeError(f"processes start from different weights or memories: {found}")


def _trainer(ctx: RunContext, builders: Builders, payload: dict[str, Any] | None) -> tuple[Trainer, Loaders]:
    """Loaders, optimizer, schedule and the loop over them, restored where the run resumes."""
    config, accelerator = ctx.config, ctx.accelerator
    t = config.training
    loaders = _loaders(ctx, builders)
    steps_per_epoch = len(loaders.train) // t.gradient_accumulation_steps if loaders.train else 0
    total = min(t.max_steps or 10**12, t.train_epochs * steps_per_epoch) if ctx.plain.is_trainable else 0
    optimizer = build_optimizer(ctx.plain, t)
    scheduler = build_schedule(optimizer, t, total_steps=total, steps_per_epoch=steps_per_epoch)
    prepared = ctx.wing.prepared(ctx, optimizer, total_steps=total)
    trainer = Trainer(
        accelerator=accelerator,
        model=ctx.model,
        optimizer=prepared,
        scheduler=scheduler,
        config=t,
        objective=Objective(config),
        trend_label=config.tapr.trend_label,
        metrics=ctx.metrics,
        log_steps=config.run.log_steps,
        save_steps=steps_per_epoch if config.run.save_steps is None else config.run.save_steps,
        total_steps=total,
        stop=ctx.stop.asked,
        validates_start=ctx.plain.begins_solved,
        lockstep=ctx.wing.lockstep,
        evaluation_seconds=lambda: _evaluation_seconds(ctx, trainer, steps_per_epoch),
    )
    if payload is not None and config.run.is_training:
        checkpoint_state.restore(ctx, trainer, payload)
    elif payload is not None:
        trainer.progress.global_step = payload.get("global_step", 0)
    _say_what_begins(ctx, steps_per_epoch=steps_per_epoch, total_steps=total)
    return trainer, loaders


def _look_inside(ctx: RunContext, builders: Builders) -> None:
    """What ``--debug_shapes`` and ``--dump_prompt`` ask for, of the first training windows."""
    run_settings = ctx.config.run
    asked = run_settings.debug_shapes or run_settings.dump_prompt
    if asked and (ctx.accelerator.is_main_process or ctx.wing.lockstep):
        batch = first_items(ctx.data.train, ctx.config.training.batch_size, ctx.accelerator.device)
        shapes, prompt = run_settings.debug_shapes, run_settings.dump_prompt
        lines = builders.inspect(ctx.plain, batch, list(ctx.data.targets), shapes=shapes, prompt=prompt)
        for line in lines:
            log.info("%s", line)


def _loaders(ctx: RunContext, builders: Builders) -> Loaders:
    """The loaders of the three parts, each process's share of them."""
    config, accelerator = ctx.config, ctx.accelerator
    on_gpu = accelerator.device.type != "cpu"
    size = windows_per_pass(config, forecast=len(ctx.data.targets), on_gpu=on_gpu)

    def evaluation(dataset: Dataset[Batch]) -> DataLoader[Batch]:
        loader = builders.evaluation_loader(dataset, size, config.data.num_workers, prompts=ctx.plain.prompts)
        return accelerator.prepare_data_loader(loader)

    train = None
    if config.run.is_training:
        train = accelerator.prepare_data_loader(
            builders.training_loader(
                ctx.data, config, num_processes=accelerator.num_processes, prompts=ctx.plain.prompts
            )
        )
    return Loaders(train, evaluation(ctx.data.validation), evaluation(ctx.data.test))


def _say_what_begins(ctx: RunContext, *, steps_per_epoch: int, total_steps: int) -> None:
    """Data, model and length of the run, in the log."""
    for line in opening_lines(
        ctx.config,
        ctx.data,
        ctx.plain,
        llm=llm_text(ctx.llm),
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        processes=ctx.accelerator.num_processes,
        device=str(ctx.accelerator.device),
    ):
        log.info("%s", line)


def _evaluation_seconds(ctx: RunContext, trainer: Trainer, steps_per_epoch: int) -> float:
    """How long the validations and tests to come will take, by a few windows of the test."""
    windows = windows_to_evaluate(
        ctx.config,
        ctx.data,
        step=trainer.progress.global_step,
        total_steps=trainer.total_steps,
        steps_per_epoch=steps_per_epoch,
    )
    most = ctx.config.training.max_channels_per_step
    seconds = seconds_per_window(ctx.plain, ctx.data.test, ctx.accelerator.device, most=most)
    return windows * seconds / ctx.accelerator.num_processes


def _train(ctx: RunContext, trainer: Trainer, loaders: Loaders, payload: dict[str, Any] | None) -> None:
    """Fit; the best weights by validation and the step checkpoints land in the run's folder."""
    assert loaders.train is not None
    if payload is not None:
        _go_on(ctx, trainer, payload)
    elif ctx.config.run.resume_from_checkpoint == "auto":
        log.info(
            "nothing to resume: no whole checkpoint of this run with this length; starting afresh "
            "(to go on with a run of another length, name its checkpoint)"
        )

    def stopped() -> NoReturn:
        checkpoint_state.save_step(ctx, trainer)
        asked = ctx.stop.reason or "another process"
        step = trainer.progress.global_step
        raise RunStopped(f"stopped by {asked} after optimizer step {step}; {how_to_go_on(ctx.newest)}")

    trainer.fit(
        loaders.train,
        loaders.validation,
        Hooks(
            refresh=lambda: ctx.plain.refresh(ctx.data.source),
            save_best=lambda: checkpoint_state.save_best(ctx, trainer),
            save_step=lambda: checkpoint_state.save_step(ctx, trainer),
            test=lambda: trainer.evaluate(loaders.test, name="test"),
            stopped=stopped,
        ),
    )


def _go_on(ctx: RunContext, trainer: Trainer, payload: dict[str, Any]) -> None:
    """Put back what a resumed run needs beside the weights, and say what is not as it was."""
    progress = trainer.progress
    checkpoint_state.restore_random_state(ctx, payload)
    if ctx.accelerator.is_main_process:
        ctx.metrics.cut_back(progress.global_step, validated=not progress.validation_due)
    log.info("resumed at optimizer step %d", progress.global_step)
    # Killed between the two, a run goes on from its best weights and still owes the step's checkpoint.
    trainer.step_is_saved = checkpoints.is_whole(checkpoints.step_path(ctx.folder, progress.global_step))
    checkpoint_state.announce_changes(ctx, payload)
    if progress.best_step != -1 and not checkpoints.is_whole(ctx.folder / checkpoints.BEST):
        log.warning("the best weights so far are not beside this checkpoint: starting that search anew")
        progress.best_step, progress.val_loss_min = -1, float("inf")
