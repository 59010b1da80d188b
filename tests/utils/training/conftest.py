"""What the training tests share: tiny runs in this process and on several."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import run_main
from tests.conftest import forget_accelerator
from utils.config import Config
from utils.paths import PROJECT_ROOT
from utils.training.experiment import RunResult

Settings = dict[str, Any]
TinySettings = Callable[[Path, Path], Settings]
StartRun = Callable[..., RunResult]
Found = dict[str, list[dict[str, Any]]]
Processes = Callable[..., Found]
WORKER = Path(__file__).with_name("worker.py")
TIME_LIMIT = 300
"""Seconds for all runs of one start; processes that wait for each other would do so for half an hour."""


@pytest.fixture
def tiny(series_file: Path, tiny_settings: TinySettings, tmp_path: Path) -> Settings:
    """Settings of a run of one epoch, 11 steps of 4 windows, in about a second."""
    return tiny_settings(series_file, tmp_path / "checkpoints")


@pytest.fixture
def start_run(tiny: Settings) -> StartRun:
    """Run the enhanced model with the tiny settings and these changes."""

    def start(**changes: Any) -> RunResult:
        forget_accelerator()
        return run_main.train(Config.from_flat({**tiny, **changes}), model="TimeLLM_Enhanced")

    return start


@pytest.fixture(scope="session")
def small_settings(
    write_series: Callable[..., Path], tiny_settings: TinySettings
) -> Callable[[Path], Settings]:
    """Settings of a run with both modules on a series of its own in FOLDER, for two processes at once."""

    def settings(folder: Path) -> Settings:
        return {
            **tiny_settings(write_series(folder / "waves.csv", 131), folder / "checkpoints"),
            "use_tapr": True,
            "use_gram": True,
            "llm_layers": 3,
            "eval_steps": 2,
            "batch_size": 2,
            "eval_batch_size": 3,
        }

    return settings


def torchrun(script: Path, *words: str, count: int, **variables: str) -> subprocess.CompletedProcess[str]:
    """What ``count`` processes of a script ended with and said, each on one thread and without bars."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
    path = os.pathsep.join(filter(None, (str(PROJECT_ROOT), os.environ.get("PYTHONPATH"))))
    quiet = {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    with subprocess.Popen(
        [*launch, str(script), *words],
        cwd=PROJECT_ROOT,
        env={**os.environ, **quiet, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as launcher:
        try:
            told, said = launcher.communicate(timeout=TIME_LIMIT)
        except subprocess.TimeoutExpired:
            launcher.terminate()  # it ends its processes; one that is killed leaves them waiting
            _, said = launcher.communicate()
            pytest.fail(f"{count} processes still ran after {TIME_LIMIT} s:\n{said[-3000:]}")
    return subprocess.CompletedProcess(launch, launcher.returncode, told, said)


@pytest.fixture(scope="session")
def several_processes() -> Processes:
    """What each of several processes (gloo, on the CPU) found in each run, in one start; see worker.py."""

    def start(
        folder: Path,
        runs: dict[str, Settings],
        *,
        count: int,
        nudged: dict[str, str] | None = None,
        launched: dict[str, str] | None = None,
    ) -> Found:
        """``launched`` holds the variables that accelerate's launcher would set."""
        (folder / "runs.json").write_text(json.dumps({"runs": runs, "nudged": nudged or {}}))
        done = torchrun(WORKER, str(folder), count=count, **(launched or {}))
        assert done.returncode == 0, done.stderr[-3000:]
        return {name: [torch.load(folder / f"{name}.{rank}") for rank in range(count)] for name in runs}

    return start


@pytest.fixture(scope="session")
def two_processes(several_processes: Processes) -> Processes:
    """What each of two processes found in each run."""
    return functools.partial(several_processes, count=2)
