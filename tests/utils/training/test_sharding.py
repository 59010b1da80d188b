"""What asks for a divided LLM, and what is refused; what comes of it: test_sharded.py."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env

import run_main
from utils.config import Config, ConfigError
from utils.paths import PROJECT_ROOT
from utils.training import sharding

OURS = PROJECT_ROOT / "scripts/accelerate/fsdp.yaml"


@pytest.fixture
def launched(monkeypatch, tmp_path):
    """The variables that accelerate's launcher sets for our file with these lines otherwise."""

    def launch(**changes: Any) -> dict[str, str]:
        lines = [line for line in OURS.read_text().splitlines() if line.strip().split(":")[0] not in changes]
        at = lines.index("fsdp_config:") + 1
        lines[at:at] = [f"  {name}: {value}" for name, value in changes.items() if value is not None]
        path = tmp_path / "fsdp.yaml"
        path.write_text("\n".join(lines))
        args, _, _ = _validate_launch_command(
            launch_command_parser().parse_args(["--config_file", str(path), "run.py"])
        )
        found = {
            n: v for n, v in prepare_multi_gpu_env(args).items() if n.startswith(("FSDP_", "ACCELERATE_"))
        }
        for name, value in found.items():
            monkeypatch.setenv(name, value)
        return found

    return launch


def test_the_file_asks_for_a_divided_llm_and_nobody_else_sees_it(launched):
    """Accelerate would divide what is trained; transformers would load the LLM in one process alone."""
    given = launched()
    assert given["ACCELERATE_USE_FSDP"] == "true" and given["FSDP_VERSION"] == "2"
    with sharding.as_launched(Config()) as (config, unread):
        assert config == Config().replace(shard_llm=True) and unread == []
        assert not [name for name in os.environ if name.startswith("FSDP_") or name == sharding.ASKED]
        assert Accelerator(cpu=True).distributed_type.value == "NO"
    assert os.environ["ACCELERATE_USE_FSDP"] == "true" and os.environ["FSDP_VERSION"] == "2"


def test_without_it_nothing_is_changed(monkeypatch):
    monkeypatch.setenv("FSDP_VERSION", "1")  # of another program
    for config in (Config(), Config().replace(shard_llm=True)):
        with sharding.as_launched(config) as (found, unread):
            assert found is config and unread == [] and os.environ["FSDP_VERSION"] == "1"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"fsdp_version": 1}, "fsdp_version 1: layers are divided by torch's fully_shard; expected .* 2"),
        ({"fsdp_version": None}, "fsdp_version 1: layers"),
        ({"fsdp_offload_params": True}, "fsdp_offload_params true: shares stay on the device"),
        ({"fsdp_reshard_after_forward": False}, "fsdp_reshard_after_forward false: layers are freed"),
        ({"fsdp_auto_wrap_policy": "SIZE_BASED_WRAP"}, "SIZE_BASED_WRAP: each layer is divided"),
        ({"fsdp_activation_checkpointing": True}, "use the run's flag --gradient_checkpointing"),
        ({"fsdp_ignored_modules": "layers.0"}, "layers.0: the LLM's layers are divided and nothing else"),
    ],
)
def test_options_that_would_mean_something_else_are_refused(launched, changes, said):
    given = launched(**changes)
    with pytest.raises(ConfigError, match=said), sharding.as_launched(Config()):
        pass
    assert os.environ["FSDP_VERSION"] == given["FSDP_VERSION"]


def test_options_that_are_not_read_are_said(launched, monkeypatch):
    launched(
        fsdp_state_dict_type="SHARDED_STATE_DICT",
        fsdp_cpu_ram_efficient_loading=True,
        fsdp_transformer_layer_cls_to_wrap="LlamaDecoderLayer",
    )
    monkeypatch.setenv("FSDP_OF_TOMORROW", "7")
    with sharding.as_launched(Config()) as (config, unread):
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
        ({"compile": True}, "--compile: layers that are gathered anew for each pass are not compiled"),
        ({"llm_ablation": "none"}, "--llm_ablation none: it leaves no layers to divide"),
    ],
)
def test_what_does_not_go_with_it_is_refused(launched, settings, said):
    with pytest.raises(ConfigError, match=said) as one:
        Config.from_flat({"shard_llm": True, **settings})
    assert str(one.value).endswith("; drop it, or --shard_llm")
    launched()
    with pytest.raises(ConfigError, match=said), sharding.as_launched(Config.from_flat(settings)):
        pass


def test_a_batch_size_is_not_found_by_trying(monkeypatch):
    """A process without room would raise while the others wait for it; by the estimate none does."""
    config = Config.from_flat({"shard_llm": True, "auto_batch_size": True})
    gpus: Any = SimpleNamespace(num_processes=2, device=torch.device("cuda"))
    with pytest.raises(ConfigError, match="--auto_batch_size: on a GPU it tries batches"):
        sharding.check(config, gpus)
    for processes, device, settings in (
        (2, "cpu", {}),
        (1, "cuda", {}),
        (2, "cuda", {"shard_llm": False}),
        (2, "cuda", {"auto_batch_size": False}),
    ):
        engine: Any = SimpleNamespace(num_processes=processes, device=torch.device(device))
        sharding.check(config.replace(**settings), engine)


def test_one_process_and_a_model_without_an_llm_say_that_nothing_is_sharded(start_run, tiny, launched):
    plain = start_run(max_steps=2, model_comment="plain")
    launched(fsdp_state_dict_type="SHARDED_STATE_DICT")
    asked = start_run(max_steps=2, model_comment="asked")
    said = (asked.run_dir / "run.log").read_text()
    assert "--shard_llm: one process: nothing is sharded" in said
    assert "accelerate's fsdp_state_dict_type SHARDED_STATE_DICT: checkpoints are whole" in said
    assert asked.results["last"] == plain.results["last"]
    linear = run_main.train(Config.from_flat({**tiny, "model": "DLinear", "max_steps": 1}), model="DLinear")
    said = (linear.run_dir / "run.log").read_text()
    assert "--shard_llm: DLinear has no LLM: nothing is sharded" in said


@pytest.mark.parametrize("engine", ["DEEPSPEED", "MEGATRON_LM"])
def test_engines_that_divide_what_is_trained_are_refused(start_run, monkeypatch, engine):
    """Checkpoints here are whole; those of such engines would lack most of it, without a word.

    On a CPU accelerate leaves DeepSpeed out without a word, so it is the launcher's wish that is refused.
    """
    monkeypatch.setenv(f"ACCELERATE_USE_{engine}", "true")
    with pytest.raises(ConfigError, match="found (DeepSpeed|Megatron-LM): it divides what is trained"):
        start_run()


def test_accelerate_reads_our_file_as_fsdp():
    config = load_config_from_file(str(OURS))
    assert config.distributed_type.value == "FSDP" and config.fsdp_config["fsdp_version"] == 2
