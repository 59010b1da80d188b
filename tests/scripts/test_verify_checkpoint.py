"""The script that says whether a checkpoint is whole."""

from __future__ import annotations

import pytest
import torch

from scripts import verify_checkpoint
from utils.config import Config
from utils.training import checkpoint as checkpoints


@pytest.fixture
def run_dir(tmp_path):
    """A run folder with the best weights and two steps."""
    payload = {
        "model": {"w": torch.zeros(3, 4), "gram.retriever.memory_values": torch.zeros(7, 2)},
        "optimizer": {},
        "scheduler": {},
        "epoch": 1,
        "global_step": 20,
        "val_loss_min": 0.25,
        "counter": 2,
        "progress": {"epoch": 1, "epoch_steps": 9, "validation_due": True, "best_step": 11},
        "batch": {"size": 4, "passes": 1, "processes": 2, "windows": 8},
        "numerics": {"threads": 1},
        "config": Config.from_flat({"use_gram": True}).flat(),
        "llm": {"name": "SMOLLM2", "layers": 2, "content_hash": "ab" * 32},
        "data": {
            "name": "ETTh1",
            "columns": ["a", "b"],
            "frequency": "h",
            "content_hash": "cd" * 32,
            "windows": [3, 2, 1],
        },
    }
    checkpoints.save(payload, tmp_path / checkpoints.BEST)
    for step in (10, 20):
        checkpoints.save_step(payload, tmp_path, step=step, keep=0)
    return tmp_path


def test_whole_checkpoints_are_described(run_dir, capsys):
    assert verify_checkpoint.main([str(run_dir)]) == 0
    said = capsys.readouterr().out
    assert said.count("WHOLE") == 3 and "NOT" not in said
    for text in (
        "sha256 is right",
        "step: 20, in epoch 2 after 9 of its steps, validation due",
        "2 tensors, 26 numbers",
        "SMOLLM2",
        "windows 3/2/1",
        "memory of 7 rows",
        "size 4, passes 1, processes 2, windows 8",
    ):
        assert text in said
    for part in ("checkpoint_step_10", "checkpoint_step_10/checkpoint.pt", "checkpoint"):
        assert verify_checkpoint.main([str(run_dir / part)]) == 0


def test_a_damaged_one_among_whole_ones_is_named(run_dir, capsys):
    """One bad file of many must show in the exit status."""
    path = checkpoints.step_path(run_dir, 10)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    assert verify_checkpoint.main([str(run_dir)]) == 1
    said = capsys.readouterr().out
    assert (
        f"NOT WHOLE  {path}: expected the sha256" in said
        and said.count("\nWHOLE") + said.startswith("WHOLE") == 2
    )


def test_weights_alone_are_whole_and_cannot_be_gone_on_from(tmp_path, capsys):
    torch.save({"w": torch.zeros(2)}, tmp_path / "weights.pt")
    assert verify_checkpoint.main([str(tmp_path / "weights.pt")]) == 0
    said = capsys.readouterr().out
    assert "no sha256" in said and "cannot be gone on from: expected a run's checkpoint" in said


def test_nothing_there_is_status_1(tmp_path, capsys):
    assert verify_checkpoint.main([str(tmp_path)]) == 1
    assert "found none" in capsys.readouterr().out


def test_rows_of_a_memory_that_is_the_start_s_are_counted(run_dir, capsys):
    """A run whose GRA-M shares the start's memory was said to have none."""
    payload = checkpoints.load(run_dir / checkpoints.BEST)
    payload["model"] = {"start.retrieved.futures": torch.zeros(11, 2)}
    checkpoints.save(payload, run_dir / checkpoints.BEST)
    assert verify_checkpoint.main([str(run_dir / "checkpoint")]) == 0
    assert "memory of 11 rows" in capsys.readouterr().out
