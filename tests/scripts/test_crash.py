"""The short version of the crash test: a few kills by SIGKILL, and a planted fault."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from scripts.crash_test import TIMES, Trial, table
from scripts.lib.crash.comparing import unequal
from tests.processes import python


def crash(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """The script as typed."""
    return python("scripts/crash_test.py", *words, "--folder", folder)


@pytest.mark.slow
def test_killed_runs_end_as_those_never_killed(tmp_path):
    """Five kills over all phases, with both modules on; 100 and more are in docs/reliability.md."""
    done = crash("--trials", "5", "--seed", "3", "--settings", "tapr_gram", folder=tmp_path / "runs")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| all | 5 | 0 | 0 |" in done.stdout


@pytest.mark.slow
def test_a_planted_fault_is_caught(tmp_path):
    """A crash test that finds nothing in a run that resumes wrongly proves nothing."""
    words = ["--trials", "3", "--seed", "5", "--settings", "tapr_gram", "--fault", "random_state"]
    done = crash(*words, folder=tmp_path / "runs")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "| all | 3 | 0 | 0 |" not in done.stdout and "resumed run failed" not in done.stdout


def test_a_difference_of_one_bit_is_seen_and_times_are_not():
    """Comparing with a tolerance would pass a lost random state as rounding."""
    one, next_to_one = torch.tensor(1.0), torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))
    a = {"w": [one], "seconds": 1.0, "phases": {"data": 2}, "step": 3}
    b = {"w": [next_to_one], "seconds": 2.0, "phases": {}, "step": 3}
    assert unequal(a, b, "x", but=TIMES) == ["x/w/0"]
    assert unequal(a, {**a, "seconds": 9.0}, "x", but=TIMES) == []
    assert unequal(a, {**a, "step": 4}, "x", but=TIMES) == ["x/step: 3 and 4"]
    assert "x/seconds: 1.0 and 9.0" in unequal(a, {**a, "seconds": 9.0}, "x")
    assert unequal({"a": 1}, {"b": 1}, "x") and unequal([1], [1, 1], "x")


def test_the_table_counts_by_the_phase_of_death():
    trials = [Trial("a", "save", 1, []), Trial("b", "save", 2, ["x"]), Trial("a", "between", 1, [])]
    lines = table(trials).splitlines()
    assert "| save | 2 | 1 | 1 |" in lines and "| between | 1 | 0 | 0 |" in lines
    assert "| all | 3 | 1 | 1 |" in lines and lines[-1] == "Settings: a 2, b 1"
