"""Training on three real processes (gloo, on the CPU): odd shares, and one that dies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from utils.paths import PROJECT_ROOT

pytestmark = pytest.mark.slow

WORLD = 3
SWITCHES: dict[str, Any] = {"use_tapr": True, "use_gram": True, "dropout": 0.0, "train_epochs": 2}
ROWS = {"remainder 2": 91, "remainder 1": 86}
"""Of the series; 11 and 10 windows for the test, over three processes."""
TEST_WINDOWS = {"remainder 2": 11, "remainder 1": 10}


@pytest.fixture(scope="module")
def found(tmp_path_factory, write_series, tiny_settings, several_processes) -> dict[str, Any]:
    """All runs in one launch; ``common`` are the settings of one of them."""
    folder = tmp_path_factory.mktemp("three")
    series = {name: write_series(folder / f"{rows}.csv", rows) for name, rows in ROWS.items()}
    runs = {
        name: {**tiny_settings(path, folder / "checkpoints"), **SWITCHES, "eval_batch_size": 1}
        for name, path in series.items()
    }
    common = runs["remainder 2"]
    runs["impatient"] = {**common, "patience": 1, "train_epochs": 9, "learning_rate": 1.0}
    runs["accumulating"] = {**common, "batch_size": 2, "gradient_accumulation_steps": 2}
    found = several_processes(folder, runs, count=WORLD)
    errors = [process["error"] for processes in found.values() for process in processes]
    assert not [error for error in errors if error]
    return {**found, "common": common}


@pytest.mark.parametrize("name", [*ROWS, "impatient", "accumulating"])
def test_all_end_with_the_same_weights_and_memory(found, name):
    processes = found[name]
    assert [process["processes"] for process in processes] == [WORLD] * WORLD
    assert {process["backend"] for process in processes} == {"gloo"}
    first = processes[0]["model"]
    assert any("memory_keys" in key for key in first)
    for other in processes[1:]:
        assert first.keys() == other["model"].keys()
        assert all(torch.equal(tensor, other["model"][key]) for key, tensor in first.items())
    assert len({process["folder"] for process in processes}) == 1


@pytest.mark.parametrize("name", ROWS)
def test_each_test_window_is_counted_once_whatever_remains(found, name):
    assert TEST_WINDOWS[name] % WORLD == int(name[-1])
    scores = [json.loads(process["results"])["last"]["test"] for process in found[name]]
    assert [score["windows"] for score in scores] == [TEST_WINDOWS[name]] * WORLD
    assert scores[0] == scores[1] == scores[2]


def test_training_windows_are_shared_without_repetition(found):
    """24 windows: two steps of three times four an epoch."""
    orders = [process["order"] for process in found["remainder 2"]]
    assert [len(order) for order in orders] == [16] * WORLD
    for epoch in (slice(0, 8), slice(8, 16)):
        assert sorted(sum((order[epoch] for order in orders), [])) == list(range(24))


@pytest.mark.parametrize("name", ["remainder 2", "accumulating"])
def test_they_train_as_one_with_three_times_the_batch(found, start_run, name):
    """Steps, rates and gradients are those of one process on the same global batch, accumulated or not."""
    several = found[name][0]
    result = start_run(**{**found["common"], "batch_size": 12, "model_comment": "one"})
    alone = torch.load(result.run_dir / "checkpoint", weights_only=True)
    kept = torch.load(Path(several["folder"]) / "checkpoint", weights_only=True)
    assert alone["global_step"] == kept["global_step"] and len(several["order"]) == 16
    scores = json.loads(several["results"])["last"]["test"]
    assert result.results["last"]["test"]["mse"] == pytest.approx(scores["mse"], rel=1e-3)
    for key, tensor in alone["model"].items():
        if not key.endswith("key_projection.bias"):  # softmax takes no notice of it
            torch.testing.assert_close(tensor, kept["model"][key], rtol=2e-3, atol=2e-5, msg=key)


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
        os.kill(os.getpid(), signal.{signal})
    return original(*args, **kwargs)

objective.Objective.__call__ = spied
run_main.main(sys.argv[1:], model="TimeLLM_Enhanced")
"""


def launched(script: Path, *words: str) -> subprocess.CompletedProcess[str]:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(WORLD)]
    environment = {"PYTHONPATH": str(PROJECT_ROOT), "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    return subprocess.run(
        [*launch, str(script), *words], cwd=PROJECT_ROOT, env={**os.environ, **environment},
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("signal", "said", "newest"), [("SIGKILL", "Signal 9", 2), ("SIGTERM", "stopped by another process", 3)]
)
def test_one_that_is_ended_ends_the_others_and_the_run_goes_on(
    found, start_run, as_words, tmp_path, signal, said, newest
):
    """In the third step: killed, it leaves the others waiting in a reduction; asked to stop, all save it."""
    settings = {**found["common"], "checkpoints": str(tmp_path / "runs"), "save_steps": 1}
    script = tmp_path / "ending.py"
    script.write_text(ENDING.replace("{signal}", signal))
    began = time.monotonic()
    done = launched(script, *as_words(settings))
    took = time.monotonic() - began
    assert done.returncode == 1 and said in done.stdout + done.stderr, done.stderr[-3000:]
    assert took < 60 + 30  # half a minute to start three processes on a busy machine
    (run_dir,) = (tmp_path / "runs").iterdir()
    steps = [int(path.name.split("_")[-1]) for path in run_dir.glob("checkpoint_step_*")]
    assert max(steps) == newest
    result = start_run(**settings, resume_from_checkpoint="auto")
    assert result.run_dir == run_dir
    whole = torch.load(Path(found["remainder 2"][0]["folder"]) / "checkpoint", weights_only=True)
    resumed = torch.load(run_dir / "checkpoint", weights_only=True)
    assert resumed["global_step"] == whole["global_step"]
    for key, tensor in whole["model"].items():
        if not key.endswith("key_projection.bias"):
            torch.testing.assert_close(tensor, resumed["model"][key], rtol=2e-3, atol=2e-5, msg=key)
