"""Resuming is exact, announces what differs, and refuses what cannot be."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

import run_main
from tests.utils.training.comparing import last_payload, load, records, unequal
from utils.config import Config, setting_type
from utils.training import checkpoint as checkpoints
from utils.training.batch_size import plan_batches
from utils.training.checkpoint import CheckpointError, SaveError
from utils.training.experiment import RunResult
from utils.training.run_state import BatchPlan

SCHEDULES = setting_type("training", "lradj")[1]
WHERE = ("/config/resume_from", "/config/checkpoints", "/config/llm_model_path")


def different(a: Path, b: Path) -> list[str]:
    """Where the last step checkpoints of two runs differ, but for where they lie."""
    return [u for u in unequal(last_payload(a), last_payload(b)) if not u.startswith(WHERE)]


def copied(run_dir: Path, to: Path, *, up_to: int) -> Path:
    """A run's folder as it was at this step, or after: later step checkpoints are gone."""
    shutil.copytree(run_dir, to)
    for path in checkpoints.step_checkpoints(to):
        if int(path.parent.name.rsplit("_", 1)[1]) > up_to:
            path.unlink()
    return checkpoints.step_path(to, up_to)


def baseline(tiny: dict[str, Any], **changes: Any) -> RunResult:
    """A run of DLinear: no LLM, so it takes next to no time."""
    return run_main.train(Config.from_flat({**tiny, "model": "DLinear", **changes}), model="DLinear")


@pytest.mark.parametrize(("schedule", "warm"), [(s, 0 if s == "TST" else 5) for s in SCHEDULES])
def test_every_schedule_goes_on_where_it_was(tiny, tmp_path, schedule, warm):
    """A schedule that counts from 0 again, or epochs instead of steps, shows in the first rate."""
    common = dict(
        lradj=schedule, lr_warmup_steps=warm, train_epochs=3, save_steps=1, save_total_limit=0, eval_steps=7
    )
    whole = baseline(tiny, **common)
    for step in (3, 11, 20):  # within the warm-up, at the epoch's border, in the second epoch
        start = copied(whole.run_dir, tmp_path / f"copy {step}", up_to=step)
        resumed = baseline(tiny, **common, resume_from_checkpoint=str(start))
        assert not different(whole.run_dir, resumed.run_dir)
        assert records(resumed.run_dir) == records(whole.run_dir)


def test_a_kill_between_a_validation_and_the_checkpoint_of_its_step_costs_nothing(
    start_run, monkeypatch, tmp_path
):
    """Both are due at step 4. Killed between them, the run goes on from the best weights, or from step 2
    where they did not improve: either way the validation is made, and recorded, once."""
    common = dict(max_steps=6, eval_steps=4, save_steps=2, save_total_limit=0, use_gram=True)
    whole = start_run(**common, checkpoints=str(tmp_path / "whole"))

    class Killed(BaseException):
        pass

    real = checkpoints.save_step

    def killed(content: Any, run_dir: Path, *, step: int, keep: int) -> Path:
        if step == 4:
            raise Killed
        return real(content, run_dir, step=step, keep=keep)

    for best_is_lost in (False, True):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints, "save_step", killed)
            with pytest.raises(Killed):
                start_run(**common)
        (run_dir,) = (tmp_path / "checkpoints").glob("long_term*")
        if best_is_lost:
            (run_dir / "checkpoint").unlink()
        resumed = start_run(**common, resume_from_checkpoint="auto")
        assert resumed.run_dir == run_dir
        assert not different(whole.run_dir, run_dir)
        assert records(run_dir) == records(whole.run_dir)
        shutil.rmtree(run_dir)


def test_a_checkpoint_with_what_was_taken_out_is_tested_and_goes_on_exactly(start_run, tmp_path, caplog):
    """Earlier versions kept a running mean of the gate, and could divide the memory: neither is there now."""
    common = dict(max_steps=4, save_steps=2, save_total_limit=0, use_gram=True)
    whole = start_run(**common)
    start = copied(whole.run_dir, tmp_path / "copy", up_to=2)
    wanted = start_run(**common, is_training=0, resume_from_checkpoint=str(start))
    payload = load(start)
    payload["model"]["gram.gate_history"] = torch.tensor(0.3)
    payload["config"]["shard_memory"] = True
    checkpoints.save(payload, start)
    checkpoints._say_once.cache_clear()
    tested = start_run(**common, is_training=0, resume_from_checkpoint=str(start))
    assert tested.results["checkpoint"]["test"] == wanted.results["checkpoint"]["test"]
    assert "--shard_memory: taken out; leave it out: every process holds the whole memory" in caplog.text
    resumed = start_run(**common, resume_from_checkpoint=str(start))
    assert not different(whole.run_dir, resumed.run_dir)


def test_what_else_decides_the_last_bits_is_recorded_and_announced(start_run, caplog, tmp_path, monkeypatch):
    """Another number of threads adds in another order: a resume that differs must say so."""
    first = start_run(max_steps=2, save_steps=1, save_total_limit=0)
    kept = last_payload(first.run_dir)
    assert kept["numerics"]["threads"] == 1 and kept["numerics"]["matmul_precision"] == "highest"
    assert kept["batch"] == {"size": 4, "passes": 1, "processes": 1, "windows": 4}
    start = copied(first.run_dir, tmp_path / "copy", up_to=1)
    with caplog.at_level(logging.WARNING):
        start_run(max_steps=2, save_steps=1, resume_from_checkpoint=str(start))
    assert "resume:" not in caplog.text
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # else a machine of one core takes one
    torch.set_num_threads(2)
    try:
        start_run(max_steps=2, save_steps=1, resume_from_checkpoint=str(start))
    finally:
        torch.set_num_threads(1)
    assert "made with threads 1, this run has 2" in caplog.text


def test_an_llm_that_moved_is_the_same_llm(start_run, tiny, tiny_gpt2, tmp_path, caplog):
    """Another machine mounts it elsewhere; its content hash tells which one it is."""
    common = dict(max_steps=4, save_steps=2, save_total_limit=0)
    whole = start_run(**common)
    moved = tmp_path / "mounted elsewhere" / "gpt2"
    shutil.copytree(tiny_gpt2, moved)
    start = copied(whole.run_dir, tmp_path / "copy", up_to=2)
    by_path = start_run(**common, llm_model_path=str(moved), resume_from_checkpoint=str(start))
    assert by_path.run_dir == start.parent.parent
    left = different(whole.run_dir, by_path.run_dir)
    assert [u.split(":")[0] for u in left] == ["/llm/name"]
    checkpoints.step_path(whole.run_dir, 4).unlink()
    (whole.run_dir / "checkpoint").unlink()
    by_auto = start_run(**common, llm_model_path=str(moved), resume_from_checkpoint="auto")
    assert by_auto.run_dir == whole.run_dir and "its LLM lay elsewhere" in caplog.text


def test_an_epoch_takes_whole_steps_of_distinct_windows(start_run):
    """Of 45 windows two passes of 4 a step take 40: the last group of one pass, divided by two, was half a
    step too small."""
    result = start_run(gradient_accumulation_steps=2, train_epochs=2, save_steps=1, save_total_limit=0)
    assert result.results["last"]["step"] == 10
    assert last_payload(result.run_dir)["sampler_state"] == {"epoch": 2, "batches": 0, "seed": 2021}
    assert load(checkpoints.step_path(result.run_dir, 7))["sampler_state"]["batches"] == 4


# The global batch


def saved(size: int, passes: int, processes: int, *, flags: tuple[int, int] | None = None) -> dict[str, Any]:
    plan, flags = BatchPlan(size, passes, processes), flags or (size, passes)
    return {
        "batch": plan.state(),
        "config": {"batch_size": flags[0], "gradient_accumulation_steps": flags[1]},
    }


@pytest.mark.parametrize(
    ("had", "asked", "processes", "expected"),
    [
        ((4, 1, 2), (4, 1), 1, (4, 2, 1)),
        ((8, 1, 1), (8, 1), 2, (4, 1, 2)),
        ((4, 2, 1), (4, 2), 2, (4, 1, 2)),
        ((4, 3, 2), (4, 3), 3, (4, 2, 3)),
        ((6, 1, 2), (6, 1), 3, (4, 1, 3)),
        ((4, 1, 2), (8, 1), 1, (8, 1, 1)),
        ((8, 1, 1), (2, 4), 1, (2, 4, 1)),
    ],
)
def test_a_resumed_run_keeps_its_global_batch(had, asked, processes, expected):
    """By accumulation, by smaller parts where it must be, or as the flags say where they agree."""
    config = Config.from_flat({"batch_size": asked[0], "gradient_accumulation_steps": asked[1]})
    plan = plan_batches(config, processes, saved(*had))
    assert plan == BatchPlan(*expected) and plan.windows == BatchPlan(*had).windows


def test_a_run_that_changed_its_processes_can_change_back():
    """Its flags are still those it was begun with, its plan is not."""
    config = Config.from_flat({"batch_size": 4})
    assert plan_batches(config, 2, saved(4, 2, 1, flags=(4, 1))) == BatchPlan(4, 1, 2)
    assert plan_batches(config, 1, saved(4, 1, 2, flags=(4, 1))) == BatchPlan(4, 2, 1)


def test_another_global_batch_is_refused_in_numbers():
    config = Config.from_flat({"batch_size": 6})
    with pytest.raises(CheckpointError, match=r"--batch_size.*expected .* 8 windows a step.*found 6 windows"):
        plan_batches(config, 1, saved(4, 1, 2))
    with pytest.raises(CheckpointError, match="processes: expected a number that divides .* 8 windows"):
        plan_batches(Config.from_flat({"batch_size": 4}), 3, saved(4, 1, 2))


def test_the_same_windows_in_other_passes_end_nearly_alike(start_run, tmp_path, caplog):
    """Out of memory on another machine: half the batch, twice the passes, the same steps."""
    common = dict(dropout=0.0, save_steps=5, save_total_limit=0)
    whole = start_run(**common)
    start = copied(whole.run_dir, tmp_path / "copy", up_to=5)
    resumed = start_run(
        **common, batch_size=2, gradient_accumulation_steps=2, resume_from_checkpoint=str(start)
    )
    assert resumed.run_dir == start.parent.parent, "the run goes on in its folder"
    assert "took 4 windows a step (4 x 1" in caplog.text and "takes 4 windows a step (2 x 2" in caplog.text
    a, b = last_payload(whole.run_dir), last_payload(resumed.run_dir)
    assert a["global_step"] == b["global_step"] == 11 and a["scheduler"] == b["scheduler"]
    assert a["config"]["batch_size"] == b["config"]["batch_size"] == 4
    for name, tensor in a["model"].items():
        if not name.endswith("key_projection.bias"):  # its gradient is rounding alone
            torch.testing.assert_close(tensor, b["model"][name], rtol=2e-3, atol=2e-5, msg=name)


# What cannot be saved, or is not a run's checkpoint


def test_a_full_disk_stops_the_run_and_keeps_what_it_has(start_run, monkeypatch, capsys, tmp_path):
    """Going on unsaved would lose days at the next cut."""
    real = checkpoints.torch.save

    def full_from_step_4(content: Any, file: Any) -> None:
        if content["global_step"] >= 4:
            file.write(b"half")
            file.error = OSError(errno.ENOSPC, "No space left on device")
            raise RuntimeError("PytorchStreamWriter failed writing file data/0")
        real(content, file)

    common = dict(max_steps=6, save_steps=2, eval_steps=6)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.torch, "save", full_from_step_4)
        with pytest.raises(SaveError, match="checkpoint_step_4.*No space left on device; training"):
            start_run(**common)
    (run_dir,) = (tmp_path / "checkpoints").glob("long_term*")
    assert checkpoints.load(checkpoints.newest_in(run_dir) or Path())["global_step"] == 2
    assert not list(run_dir.glob("**/.writing*"))
    assert start_run(**common, resume_from_checkpoint="auto").results["last"]["step"] == 6


def test_unfinished_files_of_a_killed_writer_are_removed_when_the_run_goes_on(start_run):
    first = start_run(max_steps=1)
    stale = first.run_dir / f".writing-checkpoint-{socket.gethostname()}-{os.getpid()}"
    stale.write_bytes(b"half")
    resumed = start_run(max_steps=2, resume_from_checkpoint=str(first.run_dir))
    assert resumed.run_dir == first.run_dir and not stale.exists()
    assert "had not finished" not in (first.run_dir / "config.json").read_text()


def test_weights_of_an_old_layout_start_a_run_and_are_tested(start_run, tmp_path, caplog):
    """A bare state dict; one with the LLM inside; memory values of [M, H, D] and another last dimension."""
    common = dict(use_gram=True, max_steps=1)
    first = start_run(**common)
    weights = load(first.run_dir / "checkpoint")["model"]
    values = weights["gram.retriever.memory_values"]
    old = {
        **weights,
        "llm_model.wte.weight": torch.zeros(3, 3),
        "gram.retriever.memory_values": values[..., None].expand(*values.shape, 5).contiguous(),
    }
    for name, content in {"bare": weights, "old": old, "payload": {"model": old, "epoch": 3}}.items():
        path = tmp_path / name
        torch.save(content, path)
        assert start_run(**common, init_from=str(path)).results["last"]["step"] == 1
        tested = start_run(**common, is_training=0, resume_from_checkpoint=str(path))
        assert tested.results["checkpoint"]["test"]["mse"] == pytest.approx(
            first.results["best"]["test"]["mse"], rel=1e-5
        )
        assert "weights alone" in caplog.text
        with pytest.raises(CheckpointError, match="expected a run's checkpoint.*--init_from"):
            start_run(**common, resume_from_checkpoint=str(path))


def test_a_test_of_weights_that_do_not_fit_says_so(start_run, tmp_path):
    torch.save({"mapping_layer.weight": torch.zeros(2, 2)}, tmp_path / "weights")
    with pytest.raises(CheckpointError, match="--resume_from_checkpoint: its weights do not fit this model"):
        start_run(is_training=0, resume_from_checkpoint=str(tmp_path / "weights"))


def test_another_split_is_refused(start_run, monkeypatch):
    """The same rows divided otherwise: training windows of one are test windows of the other."""
    first = start_run(max_steps=1)
    kept = load(first.run_dir / "checkpoint")
    kept["data"]["windows"] = [44, 6, 17]
    checkpoints.save(kept, first.run_dir / "checkpoint")
    with pytest.raises(CheckpointError, match=r"data windows: the checkpoint saw \[44, 6, 17\], this run"):
        start_run(max_steps=1, resume_from_checkpoint=str(first.run_dir))


def test_best_weights_that_were_altered_are_not_waited_for_until_the_test(start_run, tmp_path):
    """Found at the very end, the run would have trained for nothing."""
    whole = start_run(max_steps=4, eval_steps=1, save_steps=2, save_total_limit=0)
    start = copied(whole.run_dir, tmp_path / "copy", up_to=2)
    best = start.parent.parent / "checkpoint"
    best.write_bytes(best.read_bytes()[:-1])
    resumed = start_run(max_steps=4, eval_steps=1, save_steps=2, resume_from_checkpoint=str(start))
    assert "starting that search anew" in (resumed.run_dir / "run.log").read_text()
    assert resumed.results["best"]["step"] in (3, 4)


def test_the_time_of_saving_is_in_the_results(start_run):
    result = start_run(max_steps=4, save_steps=2)
    assert result.results["saving"]["saves"] == 3 and 0 < result.results["saving"]["seconds"] < 5


def test_another_description_of_the_data_is_refused_and_a_moved_one_is_not(start_run, tmp_path):
    """The prompts are part of the model: gone on with under another text, it would be another model."""
    text = tmp_path / "mine.txt"
    text.write_text("Waves that come twice a day.")
    trained = start_run(prompt_file=str(text), save_steps=5)
    newest = str(trained.run_dir / "checkpoint_step_10")
    assert trained.results["llm"]["prompt"].startswith("About the data: Waves that come twice a day.\n")
    moved = text.rename(tmp_path / "moved.txt")
    start_run(prompt_file=str(moved), resume_from_checkpoint=newest, save_steps=5)
    moved.write_text("Something else.")
    with pytest.raises(CheckpointError, match="LLM prompt: the checkpoint has .*Waves.*Something else"):
        start_run(prompt_file=str(moved), resume_from_checkpoint=newest, save_steps=5)
