"""What is refused with a divided LLM, and where nothing is divided; what comes of it: test_sharded.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import run_main
from utils.config import Config, ConfigError
from utils.paths import PROJECT_ROOT
from utils.training.distributed.fsdp import DividedLLM

OURS = PROJECT_ROOT / "scripts/accelerate/fsdp.yaml"


def test_a_batch_size_is_not_found_by_trying(monkeypatch):
    """A process without room would raise while the others wait for it; by the estimate none does."""
    config = Config.from_flat({"shard_llm": True, "auto_batch_size": True})
    gpus: Any = SimpleNamespace(num_processes=2, device=torch.device("cuda"))
    with pytest.raises(ConfigError, match="--auto_batch_size: on a GPU it tries batches"):
        DividedLLM(config, []).check(config, gpus)
    for processes, device, settings in (
        (2, "cpu", {}),
        (1, "cuda", {}),
        (2, "cuda", {"auto_batch_size": False}),
    ):
        engine: Any = SimpleNamespace(num_processes=processes, device=torch.device(device))
        DividedLLM(config, []).check(config.replace(**settings), engine)


def test_one_process_and_a_model_without_an_llm_say_that_nothing_is_sharded(start_run, tiny, monkeypatch):
    plain = start_run(max_steps=2, model_comment="plain")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")  # as accelerate's launcher does
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv("FSDP_STATE_DICT_TYPE", "SHARDED_STATE_DICT")
    asked = start_run(max_steps=2, model_comment="asked")
    said = (asked.run_dir / "run.log").read_text()
    assert "--shard_llm: one process: nothing is sharded" in said
    assert "accelerate's fsdp_state_dict_type SHARDED_STATE_DICT: checkpoints are whole" in said
    assert asked.results["last"] == plain.results["last"]
    linear = run_main.train(Config.from_flat({**tiny, "model": "DLinear", "max_steps": 1}), model="DLinear")
    said = (linear.run_dir / "run.log").read_text()
    assert "--shard_llm: DLinear has no LLM: nothing is sharded" in said
