"""What accelerate's launcher asks for, and what of it is refused or said not to be read.

What comes of it: test_sharded.py and test_deepspeed.py.
"""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

from utils.config import Config, ConfigError
from utils.paths import PROJECT_ROOT
from utils.training.distributed import deepspeed
from utils.training.distributed import launcher_options as launching

FILES = PROJECT_ROOT / "scripts/accelerate"
PREPARED = {
    "fsdp": lambda args: prepare_multi_gpu_env(args),
    "deepspeed_zero2": lambda args: prepare_deepspeed_cmd_env(args)[1],
}


@pytest.fixture
def by_file(monkeypatch, tmp_path):
    """The variables that accelerate's launcher sets for one of our files with these lines otherwise."""

    def launch(name: str, **changes: Any) -> dict[str, str]:
        lines = (FILES / f"{name}.yaml").read_text().splitlines()
        lines = [line for line in lines if line.strip().split(":")[0] not in changes]
        at = next(i for i, line in enumerate(lines) if line.endswith("_config:")) + 1
        lines[at:at] = [f"  {key}: {value}" for key, value in changes.items() if value is not None]
        path = tmp_path / f"{name}.yaml"
        path.write_text("\n".join(lines))
        args, _, _ = _validate_launch_command(
            launch_command_parser().parse_args(["--config_file", str(path), "run.py"])
        )
        args.main_process_port, args.deepspeed_fields_from_accelerate_config = 0, ""
        prepared = PREPARED[name](args)
        found = {n: v for n, v in prepared.items() if n.startswith(("FSDP_", "ACCELERATE_"))}
        for variable, value in found.items():
            monkeypatch.setenv(variable, value)
        return found

    return launch


@pytest.fixture
def launched(by_file):
    """`by_file` for FSDP."""
    return lambda **changes: by_file("fsdp", **changes)


@pytest.fixture
def zero(by_file, monkeypatch):
    """`by_file` for DeepSpeed, as in one of its processes, wherever it is installed or not."""
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(launching, "is_deepspeed_available", lambda: True)
    return lambda **changes: by_file("deepspeed_zero2", **changes)


def test_the_file_asks_for_a_divided_llm_and_nobody_else_sees_it(launched):
    """Accelerate would divide what is trained; transformers would load the LLM in one process alone."""
    given = launched()
    assert given["ACCELERATE_USE_FSDP"] == "true" and given["FSDP_VERSION"] == "2"
    with launching.as_launched(Config()) as (config, unread):
        assert config == Config().replace(shard_llm=True) and unread == []
        assert not [name for name in os.environ if name.startswith("FSDP_") or name == launching.FSDP_ASKED]
        assert Accelerator(cpu=True).distributed_type.value == "NO"
    assert os.environ["ACCELERATE_USE_FSDP"] == "true" and os.environ["FSDP_VERSION"] == "2"


def test_without_it_nothing_is_changed(monkeypatch):
    monkeypatch.setenv("FSDP_VERSION", "1")  # of another program
    for config in (Config(), Config().replace(shard_llm=True)):
        with launching.as_launched(config) as (found, unread):
            assert found is config and unread == [] and os.environ["FSDP_VERSION"] == "1"


@pytest.mark.parametrize(
    ("engine", "changes", "said"),
    [
        ("launched", {"fsdp_version": 1}, "fsdp_version 1: .* expected .* 2"),
        ("launched", {"fsdp_version": None}, "fsdp_version 1: layers"),
        ("launched", {"fsdp_offload_params": True}, "fsdp_offload_params true"),
        ("launched", {"fsdp_reshard_after_forward": False}, "fsdp_reshard_after_forward false"),
        ("launched", {"fsdp_auto_wrap_policy": "SIZE_BASED_WRAP"}, "SIZE_BASED_WRAP"),
        ("launched", {"fsdp_activation_checkpointing": True}, "--gradient_checkpointing"),
        ("launched", {"fsdp_ignored_modules": "layers.0"}, "layers.0"),
        ("zero", {"zero_stage": 3}, "zero_stage 3: .* --shard_llm .* expected zero_stage: 2"),
        ("zero", {"zero_stage": 1}, "zero_stage 1"),
        ("zero", {"offload_optimizer_device": "cpu"}, "offload_optimizer_device cpu"),
        ("zero", {"offload_param_device": "nvme"}, "offload_param_device nvme"),
    ],
)
def test_options_that_would_mean_something_else_are_refused(request, engine, changes, said):
    given = request.getfixturevalue(engine)(**changes)
    with pytest.raises(ConfigError, match=said), launching.as_launched(Config()):
        pass
    assert all(os.environ[name] == value for name, value in given.items())


def test_options_that_are_not_read_are_said(launched, monkeypatch):
    launched(
        fsdp_state_dict_type="SHARDED_STATE_DICT",
        fsdp_cpu_ram_efficient_loading=True,
        fsdp_transformer_layer_cls_to_wrap="LlamaDecoderLayer",
    )
    monkeypatch.setenv("FSDP_OF_TOMORROW", "7")
    with launching.as_launched(Config()) as (config, unread):
        assert config.llm.shard_llm
    assert sorted(unread) == [
        "accelerate's fsdp_cpu_ram_efficient_loading true: each process reads the LLM from its files",
        "accelerate's fsdp_of_tomorrow 7: it is not known here",
        "accelerate's fsdp_state_dict_type SHARDED_STATE_DICT: checkpoints are whole",
        "accelerate's fsdp_transformer_cls_to_wrap LlamaDecoderLayer: the LLM's layers are found without it",
    ]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"llm_device_map": "auto"}, "--llm_device_map auto: it spreads the LLM over one process's devices"),
        ({"load_in_4bit": True}, "--load_in_4bit: weights in 4 bits are not divided"),
        ({"llm_ablation": "none"}, "--llm_ablation none: it leaves no layers to divide"),
    ],
)
def test_what_does_not_go_with_it_is_refused(launched, settings, said):
    with pytest.raises(ConfigError, match=said) as one:
        Config.from_flat({"shard_llm": True, **settings})
    assert str(one.value).endswith("; drop it, or --shard_llm")
    launched()
    with pytest.raises(ConfigError, match=said), launching.as_launched(Config.from_flat(settings)):
        pass


def test_our_file_asks_for_deepspeed_and_every_option_is_known(zero):
    given = zero()
    assert given["ACCELERATE_USE_DEEPSPEED"] == "true" and given["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == "2"
    with launching.as_launched(Config()) as (config, unread):
        assert config == Config() and unread == [] and launching.deepspeed_is_asked()


def test_a_file_of_deepspeed_s_own_is_refused(zero, monkeypatch):
    zero()
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", "ds.json")
    with (
        pytest.raises(ConfigError, match="config_file ds.json: DeepSpeed's settings are the run's flags"),
        launching.as_launched(Config()),
    ):
        pass


def test_deepspeed_options_that_are_not_read_are_said(zero):
    zero(gradient_accumulation_steps=4, gradient_clipping=1.0)
    with launching.as_launched(Config()) as (_, unread):
        pass
    assert sorted(unread) == [
        "accelerate's gradient_accumulation_steps 4: --gradient_accumulation_steps of the run decides",
        "accelerate's gradient_clipping 1.0: --max_grad_norm of the run decides",
    ]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"shard_llm": True}, "DeepSpeed: --shard_llm divides the frozen LLM by another engine; drop it"),
        ({"auto_batch_size": True}, "DeepSpeed: --auto_batch_size tries passes around DeepSpeed's engine"),
        ({"mixed_precision": "fp16"}, "fp16 needs scaled losses, which are not kept with DeepSpeed"),
        ({"llm_weights": "bf16"}, "its engine makes weights float32, which --llm_weights"),
    ],
)
def test_what_does_not_go_with_deepspeed_is_refused(zero, settings, said):
    zero()
    with pytest.raises(ConfigError, match=said), launching.as_launched(Config.from_flat(settings)):
        pass


def test_what_deepspeed_needs_is_said(zero, monkeypatch):
    zero()
    monkeypatch.setattr(launching, "is_deepspeed_available", lambda: False)
    monkeypatch.delenv("LOCAL_RANK")
    monkeypatch.setattr(launching, "torch", SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: True)))
    with pytest.raises(ConfigError) as one, launching.as_launched(Config.from_flat({"cpu": True})):
        pass
    for part in (
        "not installed: pip install",
        "by accelerate launch",
        "--cpu: accelerate leaves DeepSpeed out",
    ):
        assert part in str(one.value)


def test_megatron_is_refused(start_run, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_MEGATRON_LM", "true")
    with pytest.raises(ConfigError, match="found Megatron-LM, which trains models of its own"):
        start_run()


# Processes that were started, and those that train.


@pytest.fixture
def no_launcher(monkeypatch):
    """Nothing of a launcher that may have started the tests themselves."""
    for launcher in launching.LAUNCHERS:
        monkeypatch.delenv(launcher.number, raising=False)
        monkeypatch.delenv(launcher.own, raising=False)


@pytest.mark.parametrize("launcher", launching.LAUNCHERS, ids=lambda launcher: launcher.name)
def test_processes_that_would_each_train_the_whole_run_are_refused(no_launcher, monkeypatch, launcher):
    """Every process trained alone, into folders of its own, and nothing was said (accelerate 1.15.0)."""
    monkeypatch.setenv(launcher.number, "4")
    monkeypatch.setenv(launcher.own, "3")
    assert launching.processes_started() == (4, launcher)
    launching.check_taking_part(4)
    with pytest.raises(ConfigError, match=f"4 processes .*torchrun.*unset {launcher.number}"):
        launching.check_taking_part(1)
    monkeypatch.delenv(launcher.number)  # the way out that is named
    launching.check_taking_part(1)


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"SLURM_NTASKS": "8", "SLURM_PROCID": "0"},
        {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"},
        {"WORLD_SIZE": "8"},
        {"WORLD_SIZE": "1", "RANK": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"},
    ],
)
def test_a_job_of_several_tasks_that_starts_one_process_is_one(no_launcher, monkeypatch, variables):
    """In a script of sbatch or a shell of salloc the number of tasks is set, and none is started."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    launching.check_taking_part(1)
    assert not launching.trains_on_cpu(Config())


def test_several_processes_without_a_gpu_are_on_the_cpu_and_others_as_asked(no_launcher, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert not launching.trains_on_cpu(Config()) and launching.trains_on_cpu(Config().replace(cpu=True))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert launching.trains_on_cpu(Config())
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert not launching.trains_on_cpu(Config())


def test_a_lock_that_a_killed_build_left_is_named(monkeypatch, tmp_path, caplog):
    """torch waits for it without a word and without an end, in every later run on that account."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(deepspeed, "PartialState", lambda **_: "processes")
    wing = deepspeed.DeepSpeed(Config(), [])
    assert wing._processes() == "processes" and not caplog.records
    lock = tmp_path / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir()
    lock.touch()
    wing._processes()
    assert str(lock) in caplog.text and "delete that file" in caplog.text
