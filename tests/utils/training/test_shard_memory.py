"""Runs whose processes divide the retrieval memory (gloo, on the CPU), against runs where each holds it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.utils.training.comparing import last_payload, load, records, unequal
from utils.training import checkpoint as checkpoints

pytestmark = pytest.mark.slow

STEPS = 4
"""Where runs go on: one step into the second epoch of three steps."""
ROWS = 23
"""Of the memory, which neither two nor three divides."""
COMMON: dict[str, Any] = {
    "use_gram": True,
    "use_tapr": True,
    "memory_size": ROWS,
    "train_epochs": 2,
    "eval_batch_size": 1,
    "save_steps": 1,
    "save_total_limit": 0,
    "dropout": 0.2,
}
"""91 rows of the series: 24 training windows, 3 for validation, 11 for the test, batch by batch of one."""
VARIANTS: dict[str, dict[str, Any]] = {
    "raw": {"retrieval_key": "raw"},
    "hybrid": {"retrieval_key": "hybrid", "eval_steps": 2},
    "learned": {"retrieval_key": "learned", "eval_test_each_epoch": True},
    "half": {"retrieval_key": "raw", "memory_dtype": "fp16", "retrieval_scope": "all", "top_k": 15},
    "parts": {
        "retrieval_key": "raw",
        "max_channels_per_step": 1,
        "batch_size": 2,
        "gradient_accumulation_steps": 2,
        "gradient_checkpointing": True,
        "debug_shapes": True,
        "dump_prompt": True,
    },
    "oracle": {"retrieval_key": "raw", "retrieval_control": "oracle"},
    "idle": {"retrieval_key": "raw", "eval_batch_size": 16},
    "few": {"retrieval_key": "raw", "memory_size": 1},
}
"""``idle``: one batch for validation and test, which the first process alone has. ``few``: the first
process, of two or three, holds no row."""
EXACT = {name for name, switches in VARIANTS.items() if switches["retrieval_key"] == "raw"}
"""Learned keys are encoded in other batches, whose last bits differ."""
MEMORY = "gram.retriever.memory_"


def runs_of(common: dict[str, Any], names: list[str]) -> dict[str, dict[str, Any]]:
    """Each variant with the memory whole, and divided."""
    found = {}
    for name in names:
        switches = {**common, **VARIANTS[name]}
        found[name] = {**switches, "model_comment": f"{name}-whole"}
        found[f"{name}, divided"] = {**switches, "model_comment": f"{name}-divided", "shard_memory": True}
    return found


@pytest.fixture(scope="module")
def two(tmp_path_factory, write_series, tiny_settings, two_processes) -> dict[str, Any]:
    """All runs on two processes in one start; ``common`` are the settings of each."""
    folder = tmp_path_factory.mktemp("two")
    common = {
        **tiny_settings(write_series(folder / "short.csv", 91), folder / "checkpoints"),
        **COMMON,
    }
    runs = runs_of(common, list(VARIANTS))
    plain = {**common, **VARIANTS["raw"], "dropout": 0.0}
    whole = {**plain, "model_comment": "base"}
    divided = {**plain, "model_comment": "base-divided", "shard_memory": True}
    step = f"checkpoint_step_{STEPS}/checkpoint.pt"
    runs |= {
        "base": whole,
        "base, divided": divided,
        "divided to divided": {**divided, "resume_from_checkpoint": "{base, divided}/" + step},
        "divided to whole": {**whole, "resume_from_checkpoint": "{base, divided}/" + step},
        "whole to divided": {**divided, "resume_from_checkpoint": "{base}/" + step},
        "tested": {**runs["raw, divided"], "is_training": 0, "resume_from_checkpoint": "{raw}"},
    }
    begun = {**whole, "init_from": "{base}", "max_steps": 1}
    for name, more in {"begun": {}, "rebuilt": {"build_memory": True, "seed": 7}}.items():
        runs[name] = {**begun, **more, "model_comment": name}
        runs[f"{name}, divided"] = {**begun, **more, "model_comment": f"{name}-divided", "shard_memory": True}
    found = two_processes(folder, runs)
    return {**found, "plain": plain}


@pytest.fixture(scope="module")
def three(tmp_path_factory, write_series, tiny_settings, several_processes) -> dict[str, Any]:
    """Some of them on three processes, for which 11 test windows are 4, 4 and 3."""
    folder = tmp_path_factory.mktemp("three")
    common = {
        **tiny_settings(write_series(folder / "short.csv", 91), folder / "checkpoints"),
        **COMMON,
    }
    return several_processes(folder, runs_of(common, ["raw", "hybrid", "few", "idle"]), count=3)


def without_memory(model: dict[str, Any]) -> dict[str, Any]:
    return {name: tensor for name, tensor in model.items() if not name.startswith(MEMORY)}


def compare(name: str, found: dict[str, Any], *, count: int, exact: bool) -> None:
    """A run whose memory is divided with the one whose memory is whole: weights, memory, scores, records."""
    wholes, parts = found[name], found[f"{name}, divided"]
    for process in (*wholes, *parts):
        assert process["error"] is None and process["processes"] == count and process["backend"] == "gloo"
    rows = wholes[0]["memory_rows"]
    assert rows == VARIANTS.get(name, {}).get("memory_size", ROWS)
    held = [part["memory_rows"] for part in parts]
    assert sum(held) == rows and max(held) <= -(-rows // count)
    folders = [Path(runs[0]["folder"]) for runs in (wholes, parts)]
    saved = [load(folder / checkpoints.BEST)["model"] for folder in folders]
    saved += [last_payload(folder)["model"] for folder in folders]
    for one, other in (saved[:2], saved[2:]):
        assert sum(key.startswith(MEMORY) for key in one) == 5
        close(one, other, exact=exact)
    for one, other in zip(wholes, parts, strict=True):
        assert not any(key.startswith(MEMORY) for key in other["model"])
        close(without_memory(one["model"]), other["model"], exact=exact)
    results = [json.loads(process["results"]) for process in (*wholes, *parts)]
    for entry in ("last", "best"):
        for result in results[1:]:
            wanted, scores = results[0][entry]["test"], result[entry]["test"]
            assert scores["windows"] == 11
            assert scores == (wanted if exact else pytest.approx(wanted, rel=1e-3))
    if exact:
        assert not unequal(records(folders[0]), records(folders[1]))
    assert f"{rows} rows of" in (log := (folders[1] / "run.log").read_text())
    assert f"divided among {count} processes" in log


def close(one: dict[str, Any], other: dict[str, Any], *, exact: bool) -> None:
    if exact:
        assert not unequal(one, other)
        return
    assert one.keys() == other.keys()
    for key, tensor in one.items():
        if not key.endswith("key_projection.bias"):  # its gradient is rounding alone
            torch.testing.assert_close(other[key], tensor, rtol=2e-3, atol=2e-5, msg=key)


@pytest.mark.parametrize("name", VARIANTS)
def test_two_processes_that_divide_the_memory_train_as_two_that_hold_it(two, name):
    """To the bit, but where keys are learned; also where one has more batches, or more of its variables."""
    compare(name, two, count=2, exact=name in EXACT)


@pytest.mark.parametrize("name", ["raw", "hybrid", "few", "idle"])
def test_three_processes_that_divide_the_memory_train_as_three_that_hold_it(three, name):
    compare(name, three, count=3, exact=name in EXACT)


@pytest.mark.parametrize("name", ["divided to divided", "divided to whole", "whole to divided"])
def test_a_run_goes_on_exactly_with_its_memory_divided_or_whole(two, name):
    """From one step into the second epoch: a checkpoint holds the whole memory and serves both."""
    for process, wanted in zip(two[name], two["base"], strict=True):
        assert process["error"] is None and process["processes"] == 2
        divided = name.endswith("divided")
        assert process["memory_rows"] == (ROWS // 2 + (process is two[name][1]) if divided else ROWS)
        expected = without_memory(wanted["model"]) if divided else wanted["model"]
        assert not unequal(expected, process["model"])
        assert len(process["order"]) == 8  # two steps of four windows
    compare("base", two, count=2, exact=True)


def test_a_checkpoint_is_tested_with_its_memory_divided(two):
    wanted = json.loads(two["raw"][0]["results"])["best"]["test"]
    for process in two["tested"]:
        assert process["error"] is None and process["memory_rows"] < ROWS
        assert json.loads(process["results"])["checkpoint"]["test"] == wanted


@pytest.mark.parametrize("name", ["begun", "rebuilt"])
def test_a_run_begins_with_the_memory_of_another_or_builds_it_anew(two, name):
    compare(name, two, count=2, exact=True)
    memories = [
        load(Path(two[run][0]["folder"]) / checkpoints.BEST)["model"][f"{MEMORY}start"]
        for run in ("base", name)
    ]
    assert torch.equal(*memories) == (name == "begun")


def test_one_process_goes_on_with_what_two_divided(two, start_run, tmp_path):
    """A user who goes from two processes to one need not change the command."""
    copied = tmp_path / "copy"
    shutil.copytree(two["base, divided"][0]["folder"], copied)
    for path in checkpoints.step_checkpoints(copied):
        if load(path)["global_step"] > STEPS:
            path.unlink()
    settings = {**two["plain"], "shard_memory": True, "checkpoints": str(tmp_path)}
    path = checkpoints.step_path(copied, STEPS)
    result = start_run(**settings, resume_from_checkpoint=str(path))
    whole, gone_on = last_payload(Path(two["base"][0]["folder"])), last_payload(result.run_dir)
    assert gone_on["num_processes"] == 1 and gone_on["global_step"] == whole["global_step"]
    close(whole["model"], gone_on["model"], exact=False)
    for key, tensor in whole["model"].items():
        if key.startswith(MEMORY):
            assert torch.equal(tensor, gone_on["model"][key]), key
    assert "one process, which holds the whole memory" in (result.run_dir / "run.log").read_text()
