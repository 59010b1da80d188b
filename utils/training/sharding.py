"""The frozen LLM divided among processes: asked for by ``--shard_llm``, or by a launcher's FSDP.

What is trained stays whole in every process, and DistributedDataParallel averages its gradients: so
checkpoints are whole, and go on with the LLM divided or not, on any number of processes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from logging import getLogger
from typing import NamedTuple

from accelerate import Accelerator
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from utils.config import Config, ConfigError
from utils.process_memory import mib
from utils.training.context import RunContext

log = getLogger(__name__)
ASKED = "ACCELERATE_USE_FSDP"
REFUSED = {"ACCELERATE_USE_DEEPSPEED": "DeepSpeed", "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM"}
"""Engines that divide what is trained, its gradients or its optimizer's state."""
OPTIONS = "FSDP_"
"""How the variables begin in which accelerate's launcher hands on its file."""


class Option(NamedTuple):
    """What of an option of accelerate's FSDP can be had here."""

    had: tuple[str, ...]
    """Its values that come out as they say, in lower case."""
    otherwise: str
    """What holds where it has another."""
    refused: bool = True
    """Whether another is an error, or only said."""


KNOWN = {
    "FSDP_VERSION": Option(("2",), "layers are divided by torch's fully_shard; expected fsdp_version: 2"),
    "FSDP_RESHARD_AFTER_FORWARD": Option(
        ("true",), "layers are freed after each pass; expected fsdp_reshard_after_forward: true"
    ),
    "FSDP_OFFLOAD_PARAMS": Option(
        ("false",), "shares stay on the device; expected fsdp_offload_params: false"
    ),
    "FSDP_AUTO_WRAP_POLICY": Option(
        ("transformer_based_wrap",),
        "each layer is divided; expected fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP",
    ),
    "FSDP_IGNORED_MODULES": Option((), "the LLM's layers are divided and nothing else; leave it out"),
    "FSDP_ACTIVATION_CHECKPOINTING": Option(("false",), "use the run's flag --gradient_checkpointing"),
    "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD": Option(("false",), "there is no such; leave it out"),
    "FSDP_TRANSFORMER_CLS_TO_WRAP": Option((), "the LLM's layers are found without it", refused=False),
    "FSDP_STATE_DICT_TYPE": Option(("full_state_dict",), "checkpoints are whole", refused=False),
    "FSDP_CPU_RAM_EFFICIENT_LOADING": Option(
        ("false",), "each process reads the LLM from its files", refused=False
    ),
}
NOT_ITS_OWN = frozenset(
    "FSDP_SHARDING_STRATEGY FSDP_MIN_NUM_PARAMS FSDP_BACKWARD_PREFETCH FSDP_FORWARD_PREFETCH "
    "FSDP_USE_ORIG_PARAMS FSDP_SYNC_MODULE_STATES".split()
)
"""What version 2 does not read: the launcher fills it in."""


@contextmanager
def as_launched(config: Config) -> Iterator[tuple[Config, list[str]]]:
    """The configuration with what accelerate's launcher asks for, and what of its file is not read.

    FSDP there means ``--shard_llm``. Inside, neither accelerate nor transformers sees it: accelerate
    would divide what is trained, and transformers would load the LLM in the main process alone.

    Raises:
        ConfigError: the file asks for what can not be had, or for an engine that divides what a checkpoint
            here holds whole.
    """
    engines = [name for variable, name in REFUSED.items() if _is_set(variable)]
    if engines:
        raise ConfigError(
            [
                f"accelerate: expected one process, data parallel ones or FSDP, found {engines[0]}: it "
                "divides what is trained, and going on from its checkpoints is not built. --source_tokens "
                "prototypes makes what is trained small, and with it gradients and optimizer; --shard_llm "
                "(scripts/accelerate/fsdp.yaml) divides the frozen LLM, the largest part of a large one"
            ]
        )
    if not _is_set(ASKED):
        yield config, []
        return
    given = {name: value for name, value in os.environ.items() if name.startswith(OPTIONS)}
    problems, unread = _compared(given)
    if problems:
        raise ConfigError(problems)
    hidden = {name: os.environ.pop(name) for name in (ASKED, *given)}
    try:
        yield config.replace(shard_llm=True), unread
    finally:
        os.environ.update(hidden)


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() == "true"


def _compared(given: dict[str, str]) -> tuple[list[str], list[str]]:
    """Of the launcher's options, those that are refused and those that are not read, a line each."""
    refused: list[str] = []
    unread: list[str] = []
    for name, value in given.items():
        if name in NOT_ITS_OWN:
            continue
        option = KNOWN.get(name, Option((), "it is not known here", refused=False))
        if value.lower() in option.had:
            continue
        line = f"accelerate's {name.lower()} {value}: {option.otherwise}"
        (refused if option.refused else unread).append(line)
    return refused, unread


def check(config: Config, accelerator: Accelerator) -> None:
    """Refuse what processes that wait for each other in every layer can not do.

    Raises:
        ConfigError: a batch size is to be found by trying.
    """
    several = accelerator.num_processes > 1
    tries = config.training.auto_batch_size and accelerator.device.type != "cpu"
    if config.llm.shard_llm and several and tries and config.run.is_training:
        raise ConfigError(
            [
                "--auto_batch_size: on a GPU it tries batches until one fits, and a process without room "
                "would leave the others waiting in a layer; give --batch_size, or drop --shard_llm"
            ]
        )


def shard(this: RunContext) -> None:
    """Divide the frozen layers of the run's LLM where ``--shard_llm`` asks for it, and say what came of it.

    Before the model goes to its device: that never holds more than one whole layer.
    """
    processes = this.accelerator.num_processes
    if not this.config.llm.shard_llm:
        return
    if not this.plain.uses_llm or processes == 1:
        reason = "one process" if this.plain.uses_llm else f"{this.plain.name} has no LLM"
        log.info("--shard_llm: %s: nothing is sharded", reason)
        return
    this.plain.shard_llm(init_device_mesh(this.accelerator.device.type, (processes,)))
    shares = [p for p in this.plain.parameters() if isinstance(p, DTensor)]
    whole = sum(p.numel() * p.element_size() for p in shares)
    held = sum(p.to_local().numel() * p.element_size() for p in shares)
    this.sharded = True
    log.info(
        "--shard_llm: the LLM's frozen layers (%s) are divided among %d processes, %s in this one; its word "
        "embeddings and what is trained are whole in each",
        mib(whole),
        processes,
        mib(held),
    )


def prepared(this: RunContext) -> nn.Module:
    """The run's model in its precision, on its device, wrapped for training on several processes."""
    accelerator = this.accelerator
    if not this.sharded:
        return accelerator.prepare_model(this.plain)
    # accelerate wraps no model of which a part is divided; torch does, where it is told to pass over it:
    # these weights are frozen and differ from process to process, nothing to broadcast or to average
    model = accelerator.prepare_model(this.plain, evaluation_mode=True)
    divided = [name for name, weight in model.named_parameters() if isinstance(weight, DTensor)]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, divided)
    devices = None if accelerator.device.type == "cpu" else [accelerator.local_process_index]
    return DistributedDataParallel(model, device_ids=devices, **accelerator.ddp_handler.to_kwargs())
