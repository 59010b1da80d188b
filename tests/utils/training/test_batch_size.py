"""Batches that fit, runs that are out of memory, and how long a run will take."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from utils.cli import preset_names
from utils.config import Config
from utils.errors import UserError
from utils.reporting.peak_memory import taken_by_cpu, training_memory
from utils.training import batch_size, checkpoint
from utils.training.batch_size import MemoryShortError, is_out_of_memory, plan_batches, possible_sizes
from utils.training.run_state import BatchPlan
from utils.training.time_estimate import announce, fitting_preset, planned_steps, windows_to_evaluate

AUTO: dict[str, Any] = {"auto_batch_size": True, "batch_size": 8, "max_steps": 3}
OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")


def batches(folder: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if record["event"] == "batch"]


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """As much memory as two passes of 4 windows take by the estimate: too little for one of 8."""
    sizes_of_run = batch_size.memory_sizes

    def memory_sizes(ctx: Any) -> Any:
        sizes = sizes_of_run(ctx)
        four = taken_by_cpu(training_memory(sizes.replace(batch_size=4))) + sizes.trained
        monkeypatch.setattr(batch_size, "available_bytes", lambda: (four + 1) / batch_size.USABLE)
        return sizes

    monkeypatch.setattr(batch_size, "memory_sizes", memory_sizes)


def test_possible_sizes_keep_the_windows_of_a_step():
    assert possible_sizes(BatchPlan(12, 1, 2)) == [12, 6, 4, 3, 2, 1]
    assert possible_sizes(BatchPlan(4, 3, 1)) == [4, 3, 2, 1]


def test_where_all_fits_nothing_changes(start_run):
    run = start_run(**AUTO)
    (record,) = batches(run.run_dir)
    assert record["asked"] == record["chosen"]


@pytest.mark.usefixtures("little_memory")
def test_on_a_cpu_the_estimate_decides_and_a_resumed_run_keeps_the_choice(start_run, monkeypatch):
    """There nothing is raised: the system ends a process that takes too much."""
    first = start_run(**AUTO)
    (record,) = batches(first.run_dir)
    assert (record["chosen"]["size"], record["chosen"]["passes"], record["chosen"]["windows"]) == (4, 2, 8)
    saved = checkpoint.load(first.run_dir / checkpoint.BEST)
    assert saved["batch"]["size"] == 4 and saved["config"]["batch_size"] == 8
    monkeypatch.setattr(batch_size, "available_bytes", lambda: 10**12)
    again = start_run(**AUTO | {"max_steps": 4}, resume_from_checkpoint=str(first.run_dir / checkpoint.BEST))
    newest = checkpoint.load(again.run_dir / checkpoint.BEST)
    assert newest["batch"]["size"] == 4 and len(batches(again.run_dir)) == 1


def test_an_estimate_stops_no_run_and_a_trial_does(start_run, monkeypatch, caplog):
    """An estimate that was too high refused runs that would have fitted."""
    monkeypatch.setattr(batch_size, "available_bytes", lambda: 1000)
    run = start_run(**AUTO)
    assert batches(run.run_dir)[0]["chosen"]["size"] == 1
    assert "--auto_batch_size: by the estimate" in caplog.text and "trying it decides" in caplog.text

    def fails(*_: Any) -> None:
        raise OUT_OF_MEMORY

    monkeypatch.setattr(batch_size, "try_passes", fails)
    with pytest.raises(MemoryShortError, match=r"--seq_len|--llm_layers|--load_in_4bit"):
        start_run(**AUTO)


def test_on_a_gpu_the_largest_size_that_runs_is_found(start_run, monkeypatch):
    """accelerate's finder goes down by the sizes that keep the windows of a step."""
    tried: list[int] = []

    def passes(ctx: Any, dataset: Any, size: int) -> None:
        tried.append(size)
        if size > 2:
            raise OUT_OF_MEMORY

    monkeypatch.setattr(batch_size, "try_passes", passes)
    monkeypatch.setattr(batch_size, "tries", lambda ctx: True)
    run = start_run(**AUTO)
    assert tried == [8, 4, 2] and batches(run.run_dir)[0]["chosen"]["passes"] == 4


def test_a_trial_leaves_weights_gradients_and_random_state_alone(start_run, monkeypatch):
    """A run with --auto_batch_size must not differ from the same run without."""
    seen: dict[str, Any] = {}
    choose = batch_size.try_passes

    def watched(ctx: Any, dataset: Any, size: int) -> None:
        before = {n: t.clone() for n, t in ctx.plain.state_dict().items()}
        random = torch.get_rng_state()
        choose(ctx, dataset, size)
        seen["same"] = all(torch.equal(t, before[n]) for n, t in ctx.plain.state_dict().items())
        seen["random"] = torch.equal(random, torch.get_rng_state())
        seen["clean"] = all(p.grad is None for p in ctx.plain.parameters())

    monkeypatch.setattr(batch_size, "try_passes", watched)
    monkeypatch.setattr(batch_size, "tries", lambda ctx: True)
    start_run(**AUTO, use_tapr=True, use_gram=True)
    assert seen == {"same": True, "random": True, "clean": True}


def test_out_of_memory_prints_the_documents_remedies(start_run, monkeypatch):
    """A traceback of the allocator's says nothing of what to do."""

    def step(*_: Any) -> None:
        raise OUT_OF_MEMORY

    monkeypatch.setattr("utils.training.trainer.Trainer.train_step", step)
    with pytest.raises(MemoryShortError) as caught:
        start_run(use_gram=True, batch_size=16, gradient_accumulation_steps=2)
    text = str(caught.value)
    assert "Tried to allocate 2.00 GiB" in text and "more" not in text.splitlines()[0]
    assert "1. --batch_size 8 --gradient_accumulation_steps 4, the same effective batch (now 16)" in text
    assert "without --use_gram" in text
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)
    assert isinstance(caught.value, UserError) and isinstance(caught.value, MemoryError)


def test_other_errors_are_left_as_they_are(start_run, monkeypatch):
    def step(*_: Any) -> None:
        raise RuntimeError("another matter")

    monkeypatch.setattr("utils.training.trainer.Trainer.train_step", step)
    with pytest.raises(RuntimeError, match="another matter"):
        start_run()
    allocator = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate"
    assert is_out_of_memory(RuntimeError(allocator)) and is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("another matter"))


def test_other_processes_split_the_batch_anew():
    """The choice is kept for the number of processes it was made for."""
    config = Config.from_flat({"auto_batch_size": True, "batch_size": 8})
    payload = {"batch": BatchPlan(2, 4, 1).state(), "config": config.flat()}
    assert plan_batches(config, 1, payload) == BatchPlan(2, 4, 1)
    assert plan_batches(config, 2, payload).windows == 8


class _Sized:
    def __init__(self, validation: int, test: int) -> None:
        self.validation, self.test = range(validation), range(test)


@pytest.mark.parametrize(
    ("settings", "step", "windows"),
    [
        ({"levels": ()}, 0, 2 * 100 + 2 * 10),  # two epochs of ten steps
        ({}, 0, 3 * 100 + 2 * 10),  # and the calibration of the intervals
        ({}, 10, 2 * 100 + 2 * 10),
        ({"eval_steps": 8, "levels": ()}, 0, 3 * 100 + 2 * 10),  # after 8, 16 and 20 steps
        ({"eval_test_each_epoch": True, "levels": ()}, 0, 2 * 100 + 4 * 10),
    ],
)
def test_every_evaluation_to_come_is_counted(settings, step, windows):
    data: Any = _Sized(100, 10)
    config = Config.from_flat(settings)
    assert windows_to_evaluate(config, data, step=step, total_steps=20, steps_per_epoch=10) == windows


def test_max_steps_shortens_what_the_epochs_ask_for():
    assert planned_steps(Config.from_flat({"train_epochs": 3}), 10) == 30
    assert planned_steps(Config.from_flat({"train_epochs": 3, "max_steps": 7}), 10) == 7


def test_a_run_announces_its_evaluations_and_is_not_changed_by_timing_them(start_run, caplog, monkeypatch):
    """A few windows of evaluation between two steps must leave no trace in the weights."""
    with caplog.at_level("INFO"):
        timed = start_run(max_steps=6, dropout=0.2, use_tapr=True, model_comment="timed")
    assert "of validation and test" in caplog.text
    monkeypatch.setattr("utils.training.experiment.seconds_per_window", lambda *_, **__: 1.0)
    without = start_run(max_steps=6, dropout=0.2, use_tapr=True, model_comment="without")
    weights = [checkpoint.load(run.run_dir / checkpoint.BEST)["model"] for run in (timed, without)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_the_announced_time_has_the_evaluations_in_it(caplog):
    with caplog.at_level("INFO"):
        announce(steps=100, seconds_per_step=10.0, evaluation=1000.0, preset="cpu")
        announce(steps=1, seconds_per_step=10.0, evaluation=float("nan"), preset="cpu")
    assert "0:33:20 at most, 0:16:40 of training at 10.00 s a step, 0:16:40 of validation" in caplog.text
    assert "this is long" in caplog.text and "validation and test not counted" in caplog.text


@pytest.mark.parametrize(("gigabytes", "preset"), [(6, "6GB"), (8, "6GB"), (16, "15GB"), (80, None)])
def test_the_preset_that_is_named_fits_the_machine(monkeypatch, gigabytes, preset):
    properties = SimpleNamespace(total_memory=gigabytes * 1e9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert fitting_preset(torch.device("cuda")) == preset
    assert fitting_preset(torch.device("cpu")) == "cpu"
    assert {"cpu", "6GB", "15GB"} <= set(preset_names())
