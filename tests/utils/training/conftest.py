"""What the training tests share: a small real series, tiny settings, and runs in this process."""

from __future__ import annotations

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
from utils.training.experiment import RunResult

WriteSeries = Callable[..., Path]
StartRun = Callable[..., RunResult]


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


@pytest.fixture
def tiny(series_file: Path, tiny_gpt2: Path, tmp_path: Path) -> dict[str, Any]:
    """Settings of a run of one epoch, 11 steps of 4 windows, in about a second."""
    return {
        "data": "custom",
        "root_path": str(series_file.parent),
        "data_path": series_file.name,
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
        "checkpoints": str(tmp_path / "checkpoints"),
    }


@pytest.fixture
def start_run(tiny: dict[str, Any]) -> StartRun:
    """Run the enhanced model with the tiny settings and these changes."""

    def start(**changes: Any) -> RunResult:
        _forget_accelerator()
        return run_main.train(Config.from_flat({**tiny, **changes}), model="TimeLLM_Enhanced")

    return start
