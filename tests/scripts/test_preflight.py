"""What a run would take, told without training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from models.registry import model_name
from scripts import preflight
from utils.config import Config

FLAGS = (
    "--data synthetic --seq_len 48 --pred_len 12 --label_len 0 --llm_layers 1 --d_model 16 --d_ff 16 "
    "--n_heads 2 --num_tokens 20 --batch_size 2 --memory_size 50 --d_repr 16 --max_steps 20 --cpu"
).split()


def told(capsys: pytest.CaptureFixture[str], folder: Path, *flags: str) -> str:
    assert preflight.main([*FLAGS, "--llm_model_path", str(folder), *flags]) == 0
    return capsys.readouterr().out


def test_all_that_a_run_would_take_is_told_without_training(tiny_llama, capsys, tmp_path, monkeypatch):
    """The same lines as a run's first ones, and the time; nothing is left behind."""
    monkeypatch.chdir(tmp_path)
    text = told(capsys, tiny_llama, "--use_tapr", "--use_gram", "--retrieval_key", "raw")
    said = "parameters:|steps: |20 at most in all|at step 1|at the peak of training|checkpoint: "
    said += "|rows of|--d_repr|no admissible neighbour|estimated time: 0:|memory measured in these steps"
    for part in said.split("|"):
        assert part in text, part
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flags", [("--use_tapr", "--use_gram"), ("--model", "DLinear")])
def test_a_gpus_memory_is_told_without_one(flags, tiny_llama, capsys):
    """The presets for GPUs had a guess."""
    text = told(capsys, tiny_llama, "--no_timing", "--trace", *flags)
    assert "memory on a GPU, traced: " in text and "at the peak of training" in text


def test_without_timing_no_step_is_taken(tiny_llama, capsys, monkeypatch):
    monkeypatch.setattr(preflight, "seconds_per_step", lambda *_: pytest.fail("a step was timed"))
    assert "estimated time" not in told(capsys, tiny_llama, "--no_timing")


def test_the_batch_size_that_fits_is_told(tiny_llama, capsys, monkeypatch):
    """Two windows in two passes of one, where there is room for no more."""
    known: list[int] = []
    fitting = preflight.largest_by_estimate

    def little(found: Any, sizes: list[int], **more: Any) -> int:
        known.extend(sizes)
        return (fitting(found, sizes, **{**more, "available": 10**12}) or 0) - 1

    monkeypatch.setattr(preflight, "largest_by_estimate", little)
    text = told(capsys, tiny_llama, "--auto_batch_size", "--no_timing")
    assert known == [2, 1] and "--auto_batch_size: 2 windows a step (1 x 2 pass(es) x 1 process(es))" in text
    assert "(batch 1 x 1 process(es) x 2 pass(es))" in text


def test_what_a_user_can_mend_is_told_in_a_line(tiny_llama, capsys):
    flags = [*FLAGS, "--llm_model_path", str(tiny_llama), "--batch_size", "100000"]
    assert preflight.main(flags) == 2
    assert "error: --batch_size 100000" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "name"),
    [({}, "TimeLLM"), ({"model": "Linear"}, "Linear"), ({"use_tapr": True}, "TimeLLM_Enhanced")],
)
def test_the_model_is_that_of_the_entry_point(settings: dict[str, Any], name: str) -> None:
    assert model_name(Config.from_flat(settings)) == name


def test_a_closed_form_has_no_steps_to_time(tiny_llama, capsys):
    text = told(capsys, tiny_llama, "--model", "Ridge")
    assert "steps: none" in text and "estimated time" not in text
