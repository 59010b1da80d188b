"""The benchmark of memories that processes divide: a smaller part in each, and the same rows found."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from utils.paths import PROJECT_ROOT

ROWS = 60_000


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_processes_that_divide_a_memory_hold_a_part_and_find_the_same(processes):
    done = subprocess.run(
        [sys.executable, "scripts/bench_memory.py", str(ROWS), "--processes", str(processes)],
        cwd=PROJECT_ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    head, _, *lines = done.stdout.splitlines()
    assert f"each of {processes} holds" in head
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [row[:3] for row in cells] == [
        ["60,000", numbers, holds] for numbers in ("fp16", "fp32") for holds in ("all rows", "a part")
    ]
    assert {row[-1] for row in cells} == {"1.000"}
    held = [float(re.fullmatch(r"(\d+) MiB", row[4]).group(1)) for row in cells]  # type: ignore[union-attr]
    for whole, part in (held[:2], held[2:]):
        assert part < whole / processes + 10  # an allocator's gaps
