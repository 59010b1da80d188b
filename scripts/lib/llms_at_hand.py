"""Which language models at hand fit this machine, for the run that flags describe.

Memory is by the formula of `utils.reporting.peak_memory`, from each model's config alone: no weight is read.
Time is by the operations of a step and the speed of this machine on products of the model's widths.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoConfig, AutoModel

from layers.llm.files import Source, one_line, quiet_transformers, text_settings
from layers.llm.kept import FLOATS
from layers.llm.load import outlined
from scripts.lib.scale.cost import step_flops
from utils.config import Config
from utils.evaluation_batch import PROMPT
from utils.process_memory import mib
from utils.reporting.peak_memory import (
    LLMSizes,
    MemorySizes,
    llm_sizes,
    taken_by_cpu,
    trained_weights,
    training_memory,
)
from utils.reporting.text_tables import markdown_table
from utils.training.precision_choice import MOST_WIDTH, Slice, Way, machine_timer
from utils.training.time_estimate import clock_text

WEIGHTS = {"fp32": 4, "bf16": 2, "int8": 1}
"""Values of ``--llm_weights``, with the bytes of a weight in each."""
ROWS = 512
"""Of the products that are timed."""


class Machine(NamedTuple):
    """What the models are to fit."""

    device: torch.device
    available: float
    """Bytes."""


def table(
    config: Config, sources: list[Source], machine: Machine, *, variables: int, memory_rows: int, steps: int
) -> Iterator[str]:
    """The table, then a line for each model that can not be told of, and what the table says."""
    rows, unknown = [], []
    timer = machine_timer(machine.device)
    way = Way(config.training.mixed_precision, config.training.matmul_precision)
    for source in sources:
        try:
            llm, inner = _sizes(source, config)
        except (
            AttributeError,
            ImportError,
            LookupError,
            OSError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            unknown.append(f"{source.name}: not told of, since {one_line(error)}")
            continue
        part = Slice("training", ROWS, min(llm.width, MOST_WIDTH), min(inner, MOST_WIDTH))
        speed = part.operations / min(timer(way, part) for _ in range(3))
        for layers in sorted({min(config.llm.llm_layers, llm.layers), llm.layers}):
            sizes = _run(config, llm, layers, variables=variables, memory_rows=memory_rows)
            seconds = step_flops(sizes).total / speed
            cells = [_cell(sizes, kind, machine) for kind in WEIGHTS]
            rows.append(
                (
                    source.name,
                    f"{layers} of {llm.layers}",
                    *cells,
                    f"{seconds:.1f} s",
                    clock_text(steps * seconds),
                )
            )
    names = [f"{kind}, training" for kind in WEIGHTS]
    yield markdown_table(("LLM", "layers", *names, "a step", f"{steps} steps"), rows)
    yield from unknown
    yield (
        f"Memory by formula beside the libraries, with the linear maps in --llm_weights of each column; "
        f"{mib(machine.available)} are available, ! does not fit. Times by the operations of a step, no "
        "evaluation counted; the run's own flags without --list_llms time a few steps."
    )


def _sizes(source: Source, config: Config) -> tuple[LLMSizes, int]:
    """Sizes of a model with all its layers, none of whose weights is read, and its inner width."""
    trust = config.llm.trust_remote_code
    with quiet_transformers(), torch.device("meta"):
        settings = AutoConfig.from_pretrained(source.folder, trust_remote_code=trust, **source.options)
        model: Any = AutoModel.from_config(text_settings(settings), trust_remote_code=trust)
    computed = FLOATS["fp32"] if config.training.mixed_precision == "no" else FLOATS["bf16"]
    found = llm_sizes(model.to(computed).requires_grad_(False))
    widest = max((part.weight.numel() for part in model.modules() if isinstance(part, nn.Linear)), default=0)
    return found._replace(largest=widest), outlined(source.name, settings).inner


def _run(config: Config, llm: LLMSizes, layers: int, *, variables: int, memory_rows: int) -> MemorySizes:
    """The run with the first ``layers`` of a model, and a usual prompt."""
    sizes = MemorySizes(
        config=config.replace(llm_layers=llm.layers),
        llm=llm,
        prompt=(PROMPT // 2, PROMPT - PROMPT // 2),
        kind="causal",
        variables=1 if config.data.channel_sampling == "single" else variables,
        forecast=variables,
        memory_rows=memory_rows,
        trained=0.0,
    ).replace(llm_layers=layers)
    return MemorySizes(**{**vars(sizes), "trained": 4 * trained_weights(sizes.config, sizes.llm)})


def _cell(sizes: MemorySizes, kind: str, machine: Machine) -> str:
    """Memory at the peak of a training step with the maps in a format, and whether it fits."""
    llm = sizes.llm
    assert llm is not None
    saved = llm.layer_weights * max(0, llm.weight - WEIGHTS[kind])
    kept = llm._replace(
        saved=saved, weights=llm.weights - llm.layers * saved, largest=llm.largest if saved else 0
    )
    on_gpu = machine.device.type != "cpu"
    found = training_memory(MemorySizes(**{**vars(sizes), "llm": kept, "on_gpu": on_gpu}))
    needed = found.total if on_gpu else found.weights + found.rows + taken_by_cpu(found)
    return f"{mib(needed)}{'' if needed <= machine.available else ' !'}"
