"""Training on three real processes (gloo, on the CPU): odd shares, --shard_llm, and one that dies."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.utils.training.comparing import unequal
from tests.utils.training.conftest import torchrun

pytestmark = pytest.mark.slow

WORLD = 3
SWITCHES: dict[str, Any] = {
    "use_tapr": True,
    "use_gram": True,
    "llm_layers": 2,
    "dropout": 0.0,
    "train_epochs": 2,
    "eval_batch_size": 1,
}
ROWS = {"remainder 2": (91, {}), "remainder 1": (86, {"max_channels_per_step": 1})}
"""Of the series, and other settings; validation and test are judged window by window."""
ACCUMULATING = {"peft": "lora", "token_order": "prompt_first", "retrieval_fusion": "both"}
TEST_WINDOWS = {"remainder 2": 11, "remainder 1": 10}
"""Of 3 and 2 windows for the validation the third process has one, and none."""


@pytest.fixture(scope="module")
def found(tmp_path_factory, write_series, tiny_settings, several_processes) -> dict[str, Any]:
    """All runs in one launch; ``common`` are the settings of one of them."""
    folder = tmp_path_factory.mktemp("three")
    runs = {}
    for name, (rows, changes) in ROWS.items():
        series = write_series(folder / f"{rows}.csv", rows)
        settings = {**tiny_settings(series, folder / "checkpoints"), **SWITCHES, **changes}
        runs[name] = settings
        runs[f"{name}, divided"] = {**settings, "shard_llm": True, "model_comment": "divided"}
    common = runs["remainder 2"]
    runs["impatient"] = {**common, "patience": 1, "train_epochs": 9, "learning_rate": 1.0}
    runs["accumulating"] = {**common, **ACCUMULATING, "batch_size": 2, "gradient_accumulation_steps": 2}
    runs["tested"] = {
        **runs["remainder 1, divided"],
        "is_training": 0,
        "resume_from_checkpoint": "{remainder 1, divided}/checkpoint",
    }
    found = several_processes(folder, runs, count=WORLD)
    assert not [(name, p["error"]) for name in found for p in found[name] if p["error"]]
    return {**found, "common": common}


@pytest.mark.parametrize("name", [*ROWS, "impatient", "accumulating"])
def test_all_end_with_the_same_weights_and_memory(found, name):
    processes = found[name]
    assert [process["processes"] for process in processes] == [WORLD] * WORLD
    assert {process["backend"] for process in processes} == {"gloo"}
    first = processes[0]["model"]
    assert any("memory_keys" in key for key in first)
    assert not [line for other in processes[1:] for line in unequal(first, other["model"])]
    assert len({process["folder"] for process in processes}) == 1


@pytest.mark.parametrize("name", ROWS)
def test_each_test_window_is_counted_once_whatever_remains(found, name):
    assert TEST_WINDOWS[name] % WORLD == int(name[-1])
    scores = [json.loads(process["results"])["last"]["test"] for process in found[name]]
    assert [score["windows"] for score in scores] == [TEST_WINDOWS[name]] * WORLD
    assert scores[0] == scores[1] == scores[2]


@pytest.mark.parametrize("name", ROWS)
def test_a_divided_llm_is_that_of_processes_with_fewer_windows_too(found, name):
    """A layer is gathered from all processes: one that makes a pass less leaves the others waiting."""
    for one, other in zip(found[name], found[f"{name}, divided"], strict=True):
        assert one["processes"] == other["processes"] == WORLD
        assert not unequal(one["model"], other["model"])
        results = [json.loads(process["results"]) for process in (one, other)]
        assert [results[0][kind] for kind in ("last", "best")] == [results[1][k] for k in ("last", "best")]


@pytest.mark.parametrize("name", ROWS)
def test_each_process_holds_its_share(found, name):
    """Weights of 32 rows on three processes: 11, 11 and 10; those of one row go to the first."""
    shares = [process["shares"] for process in found[f"{name}, divided"]]
    assert shares[0] and shares[0].keys() == shares[1].keys() == shares[2].keys()
    for key, (_, every) in shares[0].items():
        assert sum(share[key][0] for share in shares) == every
    held = [sum(own for own, _ in share.values()) for share in shares]
    assert max(held) < 1.1 * sum(held) / WORLD


def test_a_divided_checkpoint_is_tested_as_it_was(found):
    tested = [json.loads(process["results"]) for process in found["tested"]]
    trained = json.loads(found["remainder 1, divided"][0]["results"])
    assert all(process["shares"] for process in found["tested"])
    assert [result["checkpoint"]["test"] for result in tested] == [trained["best"]["test"]] * WORLD


def test_training_windows_are_shared_without_repetition(found):
    """24 windows: two steps of three times four an epoch."""
    orders = [process["order"] for process in found["remainder 2"]]
    assert [len(order) for order in orders] == [16] * WORLD
    for epoch in (slice(0, 8), slice(8, 16)):
        assert sorted(sum((order[epoch] for order in orders), [])) == list(range(24))


def check_close(alone: dict[str, Any], several: dict[str, Any]) -> None:
    assert alone["global_step"] == several["global_step"]
    for key, tensor in alone["model"].items():
        if not key.endswith("key_projection.bias"):  # softmax takes no notice of it
            torch.testing.assert_close(tensor, several["model"][key], rtol=2e-3, atol=2e-5, msg=key)


def checkpoint_of(folder: Any) -> dict[str, Any]:
    return torch.load(Path(folder) / "checkpoint", weights_only=True)


@pytest.mark.parametrize(("name", "settings"), [("remainder 2", {}), ("accumulating", ACCUMULATING)])
def test_they_train_as_one_with_three_times_the_batch(found, start_run, name, settings):
    """Steps, rates and gradients are those of one process on the same global batch, accumulated or not."""
    several = found[name][0]
    result = start_run(**{**found["common"], **settings, "batch_size": 12, "model_comment": "one"})
    assert len(several["order"]) == 16
    scores = json.loads(several["results"])["last"]["test"]
    assert result.results["last"]["test"]["mse"] == pytest.approx(scores["mse"], rel=1e-3)
    check_close(checkpoint_of(result.run_dir), checkpoint_of(several["folder"]))


def test_early_stopping_is_agreed_on(found):
    results = [json.loads(process["results"]) for process in found["impatient"]]
    ends = [(result["last"], result["best"]) for result in results]
    assert ends[0] == ends[1] == ends[2]
    lines = (Path(found["impatient"][0]["folder"]) / "metrics.jsonl").read_text().splitlines()
    epochs = {record["epoch"] for record in map(json.loads, lines) if record["event"] == "validation"}
    assert 1 < len(epochs) < 9


ENDING = """
import os, signal, sys
import run_main
from utils.training import objective

original, calls = objective.Objective.__call__, []

def spied(*args, **kwargs):
    calls.append(1)
    if len(calls) == 3 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **kwargs)

objective.Objective.__call__ = spied
run_main.main(sys.argv[1:], model="TimeLLM_Enhanced")
"""


def test_one_that_is_killed_ends_the_others_and_the_run_goes_on(found, start_run, as_words, tmp_path):
    """In the third step it leaves the others waiting in a reduction; asked to stop: test_processes_resume."""
    settings = {**found["common"], "checkpoints": str(tmp_path / "runs"), "save_steps": 1}
    script = tmp_path / "ending.py"
    script.write_text(ENDING)
    began = time.monotonic()
    done = torchrun(script, *as_words(settings), count=WORLD)
    assert done.returncode == 1 and "Signal 9" in done.stdout + done.stderr, done.stderr[-3000:]
    assert time.monotonic() - began < 60 + 30  # half a minute to start three processes on a busy machine
    (run_dir,) = (tmp_path / "runs").iterdir()
    steps = [int(path.name.split("_")[-1]) for path in run_dir.glob("checkpoint_step_*")]
    assert max(steps) == 2
    result = start_run(**settings, resume_from_checkpoint="auto")
    assert result.run_dir == run_dir
    check_close(checkpoint_of(found["remainder 2"][0]["folder"]), checkpoint_of(run_dir))
