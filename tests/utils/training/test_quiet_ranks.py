"""Two processes by torchrun without a GPU: they train together, or fail in few words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.utils.training.conftest import Settings, TinySettings, torchrun

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU"),
]
SCRIPT = Path(__file__).with_name("failing_process.py")


@pytest.fixture
def launch(tiny_settings: TinySettings, as_words, series_file: Path, tmp_path: Path):
    """Exit status and lines on screen of two processes, what torchrun says of itself left out."""

    def start(*words: str, **variables: str) -> tuple[int, list[str]]:
        settings: Settings = tiny_settings(series_file, tmp_path / "checkpoints")
        del settings["cpu"]
        words = (*as_words(settings), "--model", "Linear", "--levels", *words)
        # warnings: torch's own, of what accelerate hands it
        done = torchrun(SCRIPT, *words, count=2, PYTHONWARNINGS="ignore", **variables)
        lines = done.stderr.splitlines()
        own = next((i for i, line in enumerate(lines) if "torch/distributed/elastic" in line), len(lines))
        return done.returncode, [line for line in lines[:own] if line]

    return start


def test_processes_of_torchrun_train_one_run_together(launch, tmp_path):
    """Each trained the whole run alone, into two folders, and said nothing (accelerate 1.15.0)."""
    status, said = launch()
    (folder,) = (tmp_path / "checkpoints").glob("long_term*")
    assert status == 0 and not said
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert max(record["step"] for record in records) == 45 // (2 * 4)


def test_a_faulty_file_is_one_line(launch, tmp_path):
    """84 lines before, the last from the collective library."""
    (tmp_path / "bad.csv").write_text(
        "date,a,b\n2020-01-01,1,2\n2020-01-02,x,3\n2020-01-03,4,5\n2020-01-04,6,7\n"
    )
    status, said = launch("--root_path", str(tmp_path), "--data_path", "bad.csv")
    assert status and len(said) == 1 and said[0].startswith(f"error: {tmp_path / 'bad.csv'}: column 'a'")


def test_a_failure_of_one_in_training_ends_all_and_is_said_once(launch, tmp_path):
    """One process that fails alone must neither leave the others waiting nor drown in what they lose."""
    status, said = launch(AT="1")
    assert status and len(said) == 1
    log = next((tmp_path / "checkpoints").glob("*/run.log"))
    kept = log.read_text()
    assert said == [f"error: KeyError: 'planted' (a fault of this program; its traceback: {log})"]
    assert "KeyError: 'planted'" in kept and ", in failing" in kept
