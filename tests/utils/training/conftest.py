"""What the training tests share: a small real series, tiny settings, runs in this process and on two."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState

import run_main
from utils.config import Config
from utils.paths import PROJECT_ROOT
from utils.training.experiment import RunResult

WriteSeries = Callable[..., Path]
Settings = dict[str, Any]
TinySettings = Callable[[Path, Path], Settings]
StartRun = Callable[..., RunResult]
Found = dict[str, list[dict[str, Any]]]
TwoProcesses = Callable[..., Found]
WORKER = Path(__file__).with_name("worker.py")
TIME_LIMIT = 300
"""Seconds for all runs of one start; processes that wait for each other would do so for half an hour."""


def _forget_accelerator() -> None:
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


@pytest.fixture(autouse=True)
def fresh_accelerator() -> Iterator[None]:
    """Accelerate keeps its state per process: without this, one test's precision would be the next one's."""
    _forget_accelerator()
    yield
    _forget_accelerator()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny matrices are slower on many threads, most of all where cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def write_series() -> WriteSeries:
    """Write ``rows`` hourly rows of a daily cycle with noise and drift, columns a and OT."""

    def write(path: Path, rows: int = 120, *, seed: int = 0) -> Path:
        time = np.arange(rows)
        noise = np.random.default_rng(seed).normal(0, 0.2, (rows, 2))
        waves = np.stack([np.sin(time * np.pi / 12), np.cos(time * np.pi / 12) + time * 0.005], axis=1)
        frame = pd.DataFrame(waves + noise, columns=["a", "OT"])
        frame.insert(0, "date", pd.date_range("2020-01-01", periods=rows, freq="h").astype(str))
        frame.to_csv(path, index=False)
        return path

    return write


@pytest.fixture(scope="session")
def series_file(tmp_path_factory: pytest.TempPathFactory, write_series: WriteSeries) -> Path:
    """120 rows: 45 training windows of 32 + 8 rows, 5 for validation, 17 for the test."""
    return write_series(tmp_path_factory.mktemp("series") / "waves.csv")


@pytest.fixture(scope="session")
def tiny_settings(tiny_gpt2: Path) -> TinySettings:
    """Settings of a run of one epoch on a series of `write_series`, tiny in all sizes."""

    def settings(series: Path, checkpoints: Path) -> Settings:
        return {
            "data": "custom",
            "root_path": str(series.parent),
            "data_path": series.name,
            "seq_len": 32,
            "label_len": 0,
            "pred_len": 8,
            "llm_model_path": str(tiny_gpt2),
            "llm_layers": 1,
            "d_model": 16,
            "d_ff": 16,
            "n_heads": 2,
            "num_tokens": 20,
            "d_repr": 16,
            "memory_size": 100,
            "batch_size": 4,
            "eval_batch_size": 16,
            "train_epochs": 1,
            "aux_warmup_steps": 4,
            "log_steps": 1,
            "save_steps": 0,
            "cpu": True,
            "checkpoints": str(checkpoints),
        }

    return settings


@pytest.fixture
def tiny(series_file: Path, tiny_settings: TinySettings, tmp_path: Path) -> Settings:
    """Settings of a run of one epoch, 11 steps of 4 windows, in about a second."""
    return tiny_settings(series_file, tmp_path / "checkpoints")


@pytest.fixture
def start_run(tiny: Settings) -> StartRun:
    """Run the enhanced model with the tiny settings and these changes."""

    def start(**changes: Any) -> RunResult:
        _forget_accelerator()
        return run_main.train(Config.from_flat({**tiny, **changes}), model="TimeLLM_Enhanced")

    return start


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def two_processes() -> TwoProcesses:
    """What each of two processes (gloo, on the CPU) found in each run, all in one start; see worker.py."""

    def start(folder: Path, runs: dict[str, Settings], *, nudged: dict[str, str] | None = None) -> Found:
        (folder / "runs.json").write_text(json.dumps({"runs": runs, "nudged": nudged or {}}))
        launcher = subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"),
                *("--master_addr", "127.0.0.1", "--master_port", str(_free_port())),
                *(str(WORKER), str(folder)),
            ],
            cwd=PROJECT_ROOT,
            env={
                **os.environ,
                "PYTHONPATH": str(PROJECT_ROOT),
                "HF_HUB_OFFLINE": "1",
                "OMP_NUM_THREADS": "1",
                "TQDM_DISABLE": "1",
            },
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            _, said = launcher.communicate(timeout=TIME_LIMIT)
        except subprocess.TimeoutExpired:
            launcher.terminate()  # it ends its processes; one that is killed leaves them waiting
            _, said = launcher.communicate()
            at = [name for name in runs if not all((folder / f"{name}.{rank}").exists() for rank in range(2))]
            pytest.fail(f"two processes still ran after {TIME_LIMIT} s, at {at[:1]}:\n{said[-3000:]}")
        assert launcher.returncode == 0, said[-3000:]
        return {name: [torch.load(folder / f"{name}.{rank}") for rank in range(2)] for name in runs}

    return start
