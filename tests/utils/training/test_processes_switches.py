"""Every switch on two real processes: all that is built is used, and both processes agree throughout."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from models.registry import MODELS
from tests.models.test_timellm_enhanced import BOTH, SWITCHES
from utils.config import Config, iter_settings, setting_type
from utils.training.run_folder import METRICS_FILE

pytestmark = pytest.mark.slow

STEPS = 3
"""Optimizer steps of a run: DistributedDataParallel notices an unused parameter at the next forward only."""
MORE: list[dict[str, Any]] = [
    *({**BOTH, "n_scales": scales} for scales in (4, 5)),
    {"use_tapr": True, "lambda_trend": 0.0},
    {"use_gram": True, "lambda_retrieval": 0.0},
    {**BOTH, "loss": "MSE", "loss_scale": "std"},
    {**BOTH, "channel_sampling": "single"},
    {**BOTH, "padding_patch": "none"},
    {**BOTH, "mixed_precision": "bf16", "retrieval_fusion": "both"},
    {**BOTH, "gradient_accumulation_steps": 2},
    {**BOTH, "max_grad_norm": 0.1},
    {**BOTH, "gradient_accumulation_steps": 2, "max_grad_norm": 0.1, "mixed_precision": "bf16"},
    {**BOTH, "build_memory": True, "deterministic": True},
    {**BOTH, "use_time_marks": True},
    {**BOTH, "shard_memory": True},
    {**BOTH, "linear_path": "ridge", "input_dropout": 0.3},
    {**BOTH, "max_channels_per_step": 1, "gradient_accumulation_steps": 2},
    *({"model": name} for name, model in MODELS.items() if model.is_named_by_flag),
    {"model": "PatchTST", "padding_patch": "none", "channel_sampling": "single", "mixed_precision": "bf16"},
]
"""Beside the table that the model's own tests go through on one process."""
ELSEWHERE = {
    "lradj": "changes the rate alone",
    "mixed_precision fp16": "needs a GPU",
    "llm_device_map": "for one process alone, see tests/layers/test_larger_llms.py",
    "seasonal_patterns": "read by M4 alone",
    "task_name short_term_forecast": "M4's, see test_short_term.py",
    "loss SMAPE": "M4's, see test_short_term.py",
    "report_to wandb": "needs a package that is an extra, see test_tracking.py",
}
"""Choices that no run here takes, and why."""


def untaken(table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Both modules with each choice of each setting that ``table`` lacks: also of those added later."""
    default = Config().flat()
    taken = {(name, value) for run in table for name, value in {**default, **run}.items()}
    return [
        {**BOTH, name: choice}
        for group, name, _ in iter_settings()
        for choice in setting_type(group, name)[1]
        if (name, choice) not in taken and not {name, f"{name} {choice}"} & ELSEWHERE.keys()
    ]


def label(switches: dict[str, Any]) -> str:
    return ",".join(f"{name}={value}" for name, value in switches.items())


TABLE = {label(switches): switches for switches in [*SWITCHES, *MORE, *untaken([*SWITCHES, *MORE])]}
NUDGED = {
    f"nudged {tensor}": tensor
    for tensor in (
        "output_projection.linear.weight",
        "tapr.label_cuts",
        "gram.retriever.memory_values",
        "gram.retriever.memory_start",
        "LLM",
    )
}
"""Runs with both modules in which the second process has one number of this tensor, or its LLM, otherwise."""

Found = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def found(tmp_path_factory, write_series, tiny_settings, two_processes) -> Found:
    """All runs in one start, the refused ones first: what they leave behind must not bind the next.

    130 rows: 52 training windows, some of which overlap the whole memory and find nothing.
    """
    folder = tmp_path_factory.mktemp("switches")
    common = {
        **tiny_settings(write_series(folder / "waves.csv", 130), folder / "checkpoints"),
        "memory_size": 40,
        "batch_size": 2,
        "eval_batch_size": 10,
        "max_steps": STEPS,
        "aux_warmup_steps": 1,
    }
    runs = {name: {**common, **BOTH} for name in NUDGED}
    runs |= {name: {**common, **switches} for name, switches in TABLE.items()}
    return two_processes(folder, runs, nudged=NUDGED)


@pytest.mark.parametrize("name", TABLE)
def test_two_processes_train_under_every_switch(found: Found, name: str) -> None:
    """find_unused_parameters=False: a part that is off but built stops the run at its second step."""
    one, two = found[name]
    assert one["error"] is None
    assert two["error"] is None
    assert one["processes"] == two["processes"] == 2
    steps = _steps(one)
    assert bool(one["order"]) == bool(two["order"]) == bool(steps)
    assert not set(one["order"]) & set(two["order"])  # each trains on its own windows
    assert one["model"].keys() == two["model"].keys()
    for key, tensor in one["model"].items():
        assert torch.equal(tensor, two["model"][key]), key
        assert tensor.isfinite().all(), key
    moved = {key for key in one["trainable"] if not torch.equal(one["start"][key], one["model"][key])}
    assert {_part(key) for key in moved} == {_part(key) for key in one["trainable"]}
    scores = [json.loads(process["results"])["last"] for process in (one, two)]
    assert scores[0] == scores[1]
    assert scores[0]["step"] == steps
    assert math.isfinite(scores[0]["test"]["mse"])


@pytest.mark.parametrize("name", TABLE)
def test_losses_are_finite_under_every_switch(found: Found, name: str) -> None:
    assert found[name][0]["error"] is None
    lines = (Path(found[name][0]["folder"]) / METRICS_FILE).read_text().splitlines()
    steps = [entry for entry in map(json.loads, lines) if entry["event"] == "train"]
    assert [entry["step"] for entry in steps] == list(range(1, _steps(found[name][0]) + 1))
    for entry in steps:
        del entry["event"], entry["seconds_per_step"], entry["samples_per_second"]
        assert all(math.isfinite(value) for value in entry.values()), entry


@pytest.mark.parametrize("name", NUDGED)
def test_processes_that_start_differently_refuse_to_train(found: Found, name: str) -> None:
    """DDP would overwrite the weights of all but the first without a word, and train on two memories.

    Both must raise: one that went on would wait for the other in its first step.
    """
    one, two = found[name]
    assert one["error"] is not None
    assert one["error"].startswith("RuntimeError: processes start from different weights or memories")
    assert one["error"] == two["error"]
    assert one["order"] == two["order"] == []
    assert max(one["seconds"], two["seconds"]) < 60


def test_processes_that_start_alike_train(found: Found) -> None:
    """The same settings without the difference: what is refused above is the difference alone."""
    one, two = found[label(BOTH)]
    assert one["error"] is None and two["error"] is None
    assert all(torch.equal(tensor, two["start"][key]) for key, tensor in one["start"].items())


def _steps(process: dict[str, Any]) -> int:
    """Optimizer steps of a run: a model that is fitted in closed form takes none."""
    return STEPS if process["trainable"] else 0


def _part(parameter: str) -> str:
    """The part of the model that a parameter belongs to."""
    return parameter.split(".")[0]
