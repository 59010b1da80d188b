"""As many threads as a process has cores of its own."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from utils import threads


def topology(root: Path, siblings: dict[int, str]) -> Path:
    for number, text in siblings.items():
        folder = root / f"cpu{number}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{text}\n")
    return root


def test_two_logical_processors_of_a_core_are_one_thread(tmp_path):
    """On a laptop of 4 cores torch begins with 8 threads, which share the arithmetic of four."""
    home = topology(tmp_path, {0: "0,4", 1: "1,5", 4: "0,4", 5: "1,5"})
    assert threads.physical_cores([0, 1, 4, 5], home) == 2
    assert threads.physical_cores([0, 1], home) == 2 and threads.physical_cores([0, 4], home) == 1
    assert threads.physical_cores([0, 9], home) == 2  # unknown ones count


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "150000 100000"}, 1.5),
        ({"cpu.max": "max 100000"}, math.inf),
        ({"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2.0),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, math.inf),
        ({}, math.inf),
    ],
)
def test_a_container_s_quota_is_read(files, expected, tmp_path):
    """64 threads on the time of two processors: all wait for those that have none."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert threads.quota(tmp_path) == expected


def test_a_number_that_was_said_or_is_lower_stays(monkeypatch):
    """A launcher gives each process its share; a test runs on one."""
    before = torch.get_num_threads()
    try:
        for name in threads.SAID:
            monkeypatch.delenv(name, raising=False)
        torch.set_num_threads(2)
        assert not threads.fit_threads(lambda: 4) and torch.get_num_threads() == 2
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        assert not threads.fit_threads(lambda: 1) and torch.get_num_threads() == 2
        monkeypatch.delenv("OMP_NUM_THREADS")
        assert "threads: 1" in threads.fit_threads(lambda: 1) and torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    assert threads.own_cores() >= 1
