"""What a run would take, without training: ``python scripts/preflight.py <the run's flags>``.

Prints the lines that every run begins with, and the time that the whole run would take by a few
timed steps on this machine; ``--no_timing`` leaves those out. ``--trace`` adds the memory that a GPU's
tensors would take, traced on a simulated device: no GPU is needed. ``--list_llms`` prints a table in place of
all that: which language models at hand fit this machine for such a run. Nothing is written.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: its own folder is on the path, the project's is not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from data_provider.data_factory import build_data, training_loader
from layers.llm.sources import at_hand
from models.registry import MODELS, llm_outline, model_name, parse_run
from models.TimeLLM import DTYPES
from scripts.lib import llms_at_hand
from utils.config import AUTO, Config
from utils.ending import command
from utils.log import setup_logging
from utils.paths import BASE_MODELS
from utils.process_memory import available_bytes, mib, peak_bytes
from utils.reporting.peak_memory import sizes_of, training_memory
from utils.reporting.run_header import llm_text, opening_lines
from utils.threads import fit_threads
from utils.training.batch_size import largest_by_estimate, plan_batches, possible_sizes
from utils.training.experiment import resolve
from utils.training.forward import channel_parts, forecast_state
from utils.training.objective import Objective
from utils.training.optim import build_optimizer
from utils.training.precision import matmul_precision
from utils.training.precision_choice import settle
from utils.training.run_state import BatchPlan
from utils.training.time_estimate import (
    now,
    planned_steps,
    seconds_per_window,
    time_text,
    windows_to_evaluate,
)
from utils.training.tracing import traced_peaks
from utils.training.trainer import TIMED_STEPS
from utils.types import DataBundle, FitSource, unsolved

NO_TIMING, TRACE, LIST = "--no_timing", "--trace", "--list_llms"


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Print the lines; exit status 2 where a user can mend what is wrong."""
    words = list(sys.argv[1:] if argv is None else argv)
    config, _ = parse_run([w for w in words if w not in (NO_TIMING, TRACE, LIST)])
    setup_logging(main_process=True)
    told = lines(config, timing=NO_TIMING not in words, trace=TRACE in words)
    for line in table_of_llms(config) if LIST in words else told:
        print(line, flush=True)
    return 0


def lines(config: Config, *, timing: bool, trace: bool = False) -> Iterator[str]:
    """What a run says of itself before it begins, then what a few steps of it tell.

    Raises:
        ValueError, OSError: as the run would.
    """
    device = torch.device("cuda" if torch.cuda.is_available() and not config.training.cpu else "cpu")
    yield from filter(None, [fit_threads()])
    data = build_data(config, model=MODELS[model_name(config)])
    config = resolve(config, data)
    name = model_name(config)
    settled = settle(config, device, llm_outline(name)(config), variables=len(data.targets))
    config = settled.apply(config)
    yield from settled.lines
    with matmul_precision(config.training.matmul_precision, device):
        torch.manual_seed(config.training.seed)
        model: Any = MODELS[name](config).to(device)
        model.fit_statistics(FitSource(data.source, once=unsolved))
        if config.training.auto_batch_size and model.is_trainable:
            config = with_fitting_batch(config, data, model, on_gpu=device.type == "cuda")
            yield f"--auto_batch_size: {plan_batches(config, 1, None)}"
        passes = len(training_loader(data, config))
        steps = passes // config.training.gradient_accumulation_steps
        total = planned_steps(config, steps) if model.is_trainable else 0
        yield from opening_lines(
            config, data, model, llm=llm_text(asdict(model.llm_identity) if model.llm_identity else {}),
            steps_per_epoch=steps, total_steps=total, processes=1, device=str(device),
        )  # fmt: skip
        if timing and total:
            yield from timed_lines(config, data, model, device=device, steps_per_epoch=steps, total=total)
        if trace and total:
            yield traced_line(config, data, model)


def table_of_llms(config: Config) -> Iterator[str]:
    """Which of the language models at hand fit this machine, for such a run.

    Raises:
        ValueError, OSError: as the run would, of its data.
    """
    device = torch.device("cuda" if torch.cuda.is_available() and not config.training.cpu else "cpu")
    data = build_data(config, model=MODELS[model_name(config)])
    config = resolve(config, data)
    passes = len(training_loader(data, config)) // config.training.gradient_accumulation_steps
    memory = config.gram.memory_size if config.gram.use_gram else 0
    if config.training.mixed_precision == AUTO:
        config = config.replace(mixed_precision="no")
    with matmul_precision(config.training.matmul_precision, device) as chosen:
        yield from llms_at_hand.table(
            config.replace(matmul_precision=chosen),
            at_hand(BASE_MODELS),
            llms_at_hand.Machine(
                device, torch.cuda.mem_get_info()[0] if device.type == "cuda" else available_bytes()
            ),
            variables=len(data.targets),
            memory_rows=memory if isinstance(memory, int) else data.source.num_rows,
            steps=planned_steps(config, passes),
        )


def traced_line(config: Config, data: DataBundle, model: Any) -> str:
    """The peaks on a GPU, by the formula and by a traced step; the model is of no use afterwards."""
    variables = len(data.targets)
    sizes = sizes_of(model, config=config, forecast=variables, on_gpu=True)
    prompt = sizes.prompt if sizes.llm is not None else None
    traced = traced_peaks(config, model, variables=variables, prompt=prompt)
    expected = f" (the formula says {mib(training_memory(sizes).total)})" if prompt else ""
    return (
        f"memory on a GPU, traced: {mib(traced.training)} at the peak of training{expected}, "
        f"{mib(traced.evaluation)} in evaluation; its driver and kernels take about 0.5 to 1 GB besides"
    )


def with_fitting_batch(config: Config, data: DataBundle, model: Any, *, on_gpu: bool) -> Config:
    """The configuration with the batch size that ``--auto_batch_size`` would take here.

    By the estimate on a GPU too, where a run would try; there the memory that is free is the limit.
    """
    plan = plan_batches(config, 1, None)
    found = sizes_of(model, config=config, forecast=len(data.targets), on_gpu=on_gpu)
    free = torch.cuda.mem_get_info()[0] if on_gpu else available_bytes()
    sizes = possible_sizes(plan)
    size = largest_by_estimate(found, sizes, passes=plan.passes, available=free) or sizes[-1]
    return BatchPlan(size, plan.windows // size, 1).apply(config)


def timed_lines(
    config: Config, data: DataBundle, model: Any, *, device: torch.device, steps_per_epoch: int, total: int
) -> Iterator[str]:
    """The time of the whole run, and the memory that the timed steps took."""
    precision = config.training.mixed_precision
    with torch.autocast(device.type, DTYPES[precision], enabled=precision != "no"):
        seconds = seconds_per_step(config, data, model, device)
        peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else peak_bytes()
        windows = windows_to_evaluate(
            config, data, step=0, total_steps=total, steps_per_epoch=steps_per_epoch
        )
        most = config.training.max_channels_per_step
        evaluation = windows * seconds_per_window(model, data.test, device, most=most)
    yield time_text(steps=total, seconds_per_step=seconds, evaluation=evaluation)
    yield f"memory measured in these steps: {mib(peak)}"


def seconds_per_step(config: Config, data: DataBundle, model: Any, device: torch.device) -> float:
    """Mean over a few optimizer steps, after one that warms up."""
    model.train()
    optimizer = build_optimizer(model, config.training)
    objective = Objective(config)
    batches = iter(training_loader(data, config, prompts=model.prompts))
    began = now(device)
    for step in range(TIMED_STEPS + 1):
        if step == 1:
            began = now(device)
        for _ in range(config.training.gradient_accumulation_steps):
            batch = next(batches, None)
            if batch is None:  # a short epoch
                batches = iter(training_loader(data, config, prompts=model.prompts))
                batch = next(batches)
            batch = type(batch)(*(t.to(device) for t in batch))
            for part in channel_parts(batch, config.training.max_channels_per_step):
                state = forecast_state(model, part.batch)
                (part.share * objective(state, part.batch, step=step).total).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return (now(device) - began) / TIMED_STEPS


if __name__ == "__main__":
    sys.exit(main())
