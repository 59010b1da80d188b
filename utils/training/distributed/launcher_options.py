"""How many processes a launcher has started, what accelerate's asks for by its file, and what can be had.

FSDP means ``--shard_llm`` (`utils.training.distributed.fsdp`), DeepSpeed means ZeRO-2 of what is trained
(`utils.training.distributed.deepspeed`). Options that would mean something else are refused, or said
not to be read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from accelerate.utils import is_deepspeed_available

from utils.config import AUTO, Config, ConfigError

FSDP_ASKED = "ACCELERATE_USE_FSDP"
DEEPSPEED_ASKED = "ACCELERATE_USE_DEEPSPEED"
MEGATRON_ASKED = "ACCELERATE_USE_MEGATRON_LM"


class Launcher(NamedTuple):
    """How a launcher's processes know of each other."""

    name: str
    number: str
    """Variable that holds the number of processes."""
    own: str
    """Variable that holds a process's own number; without it nobody started several."""


LAUNCHERS = (
    Launcher("torchrun", "WORLD_SIZE", "RANK"),
    Launcher("mpirun (Open MPI)", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    Launcher("mpirun (MVAPICH2)", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"),
    Launcher("mpirun (MPICH, Intel MPI)", "PMI_SIZE", "PMI_RANK"),
    # of a step that srun started: a job script has SLURM_NTASKS and SLURM_PROCID too, and is alone
    Launcher("srun", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
)
"""The innermost first: one that starts another's processes is not asked."""


class Option(NamedTuple):
    """What of an option of the launcher's file can be had here."""

    had: tuple[str, ...]
    """Its values that come out as they say, in lower case."""
    otherwise: str
    """What holds where it has another."""
    refused: bool = True
    """Whether another is an error, or only said."""


FSDP_OPTIONS = {
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
DEEPSPEED_OPTIONS = {
    "ACCELERATE_DEEPSPEED_ZERO_STAGE": Option(
        ("2",),
        "ZeRO-2 divides gradients and optimizer of what is trained, --shard_llm (or "
        "scripts/accelerate/fsdp.yaml) the frozen LLM; expected zero_stage: 2",
    ),
    "ACCELERATE_DEEPSPEED_CONFIG_FILE": Option(
        ("none",), "DeepSpeed's settings are the run's flags; leave deepspeed_config_file out"
    ),
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": Option(
        ("none",), "the shares stay on the device; expected offload_optimizer_device: none"
    ),
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": Option(
        ("none",), "weights stay on the device; expected offload_param_device: none"
    ),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": Option(
        ("1", "auto"), "--gradient_accumulation_steps of the run decides", refused=False
    ),
    "ACCELERATE_GRADIENT_CLIPPING": Option(
        ("none", "auto"), "--max_grad_norm of the run decides", refused=False
    ),
    "ACCELERATE_DEEPSPEED_MOE_LAYER_CLS_NAMES": Option(("none",), "no layer is treated apart", refused=False),
}
FILLED_IN = frozenset(
    "FSDP_SHARDING_STRATEGY FSDP_MIN_NUM_PARAMS FSDP_BACKWARD_PREFETCH FSDP_FORWARD_PREFETCH "
    "FSDP_USE_ORIG_PARAMS FSDP_SYNC_MODULE_STATES ACCELERATE_DEEPSPEED_ZERO3_INIT "
    "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL".split()
)
"""What FSDP's version 2 and ZeRO-2 do not read: the launcher fills it in."""
ALONE = {
    "shard_llm": "--shard_llm divides the frozen LLM by another engine",
    "auto_batch_size": "--auto_batch_size tries passes around DeepSpeed's engine",
}
"""Switches that do not go with DeepSpeed."""


@contextmanager
def as_launched(config: Config) -> Iterator[tuple[Config, list[str]]]:
    """The configuration with what accelerate's launcher asks for, and what of its file is not read.

    Inside, neither accelerate nor transformers sees FSDP: accelerate would divide what is trained, and
    transformers would load the LLM in the main process alone. DeepSpeed is accelerate's own.

    Raises:
        ConfigError: the file asks for what can not be had.
    """
    if _is_set(MEGATRON_ASKED):
        raise ConfigError(
            [
                "accelerate: expected one process, data parallel ones, FSDP or DeepSpeed, found Megatron-LM, "
                "which trains models of its own; scripts/accelerate holds files for the others"
            ]
        )
    if deepspeed_is_asked():
        given = {n: os.environ[n] for n in (*DEEPSPEED_OPTIONS, *FILLED_IN) if n in os.environ}
        problems, unread = _compared(given, DEEPSPEED_OPTIONS)
        problems += _not_with_deepspeed(config)
        if problems:
            raise ConfigError(problems)
        yield config, unread
    elif _is_set(FSDP_ASKED):
        given = {name: value for name, value in os.environ.items() if name.startswith("FSDP_")}
        problems, unread = _compared(given, FSDP_OPTIONS)
        if problems:
            raise ConfigError(problems)
        hidden = {name: os.environ.pop(name) for name in (FSDP_ASKED, *given)}
        try:
            yield config.replace(shard_llm=True), unread
        finally:
            os.environ.update(hidden)
    else:
        yield config, []


def processes_started() -> tuple[int, Launcher | None]:
    """How many processes a launcher has started, and which; 1 and None without one."""
    for launcher in LAUNCHERS:
        count = os.environ.get(launcher.number, "")
        if count.isdigit() and launcher.own in os.environ:
            return int(count), launcher
    return 1, None


def trains_on_cpu(config: Config) -> bool:
    """Whether accelerate is to be told of the CPU: by ``--cpu``, or as one of several without a GPU.

    Untold, accelerate 1.15.0 takes each of several processes for a run of its own where there is no GPU.
    """
    return config.training.cpu or (processes_started()[0] > 1 and not torch.accelerator.is_available())


def check_taking_part(processes: int) -> None:
    """Make sure that all processes that were started are the ``processes`` of this run.

    Raises:
        ConfigError: each would train the whole run for itself.
    """
    started, launcher = processes_started()
    if launcher is None or started <= 1 or processes != 1:
        return
    way = f"start them with torchrun --nproc_per_node {started}"
    if launcher.name == "srun":
        way = "let srun start torchrun once a machine: srun --ntasks-per-node 1 torchrun --nproc_per_node N"
    raise ConfigError(
        [
            f"{launcher.name}: expected its {started} processes to train together, found that each would "
            f"train the whole run for itself; {way}. For {started} runs of their own, unset "
            f"{launcher.number} in each"
        ]
    )


def deepspeed_is_asked() -> bool:
    """Whether accelerate's file asks for DeepSpeed."""
    return _is_set(DEEPSPEED_ASKED)


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() == "true"


def _compared(given: Mapping[str, str], known: Mapping[str, Option]) -> tuple[list[str], list[str]]:
    """Of the launcher's options, those that are refused and those that are not read, a line each."""
    refused: list[str] = []
    unread: list[str] = []
    for name, value in given.items():
        if name in FILLED_IN:
            continue
        option = known.get(name, Option((), "it is not known here", refused=False))
        if value.lower() in option.had:
            continue
        shown = name.removeprefix("ACCELERATE_").removeprefix("DEEPSPEED_").lower()
        line = f"accelerate's {shown} {value}: {option.otherwise}"
        (refused if option.refused else unread).append(line)
    return refused, unread


def _not_with_deepspeed(config: Config) -> Iterator[str]:
    """What of the run and of the machine does not go with DeepSpeed's engine."""
    if not is_deepspeed_available():
        yield "DeepSpeed: accelerate's file asks for it, and it is not installed: pip install deepspeed"
    if "LOCAL_RANK" not in os.environ:
        yield "DeepSpeed: expected a start by accelerate launch, found a process of its own"
    for name, reason in ALONE.items():
        if config.flat()[name]:
            yield f"DeepSpeed: {reason}; drop it, or take scripts/accelerate/multi_gpu.yaml"
    if config.llm.llm_weights != AUTO or config.llm.load_in_4bit:
        yield (
            "DeepSpeed: its engine makes weights float32, which --llm_weights and --load_in_4bit would not; "
            "drop them, or take scripts/accelerate/multi_gpu.yaml"
        )
    if config.training.mixed_precision == "fp16":
        yield "--mixed_precision: fp16 needs scaled losses, which are not kept with DeepSpeed; use bf16"
    if config.training.cpu and torch.cuda.is_available():
        yield "--cpu: accelerate leaves DeepSpeed out where GPUs are there but not used; drop either"
