"""A run that is trained once, by the real entry point, for all tests that look at one."""

from __future__ import annotations

from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, GradientState

import run_main
import run_main_enhanced


@pytest.fixture(scope="session")
def looked_at(tmp_path_factory, tiny_settings, write_series, as_words) -> Path:
    """The folder of a run with both modules and with intervals; 400 rows, 73 test windows."""
    home = tmp_path_factory.mktemp("looked at")
    series = write_series(home / "waves.csv", 400)
    settings = tiny_settings(series, home / "checkpoints")
    settings |= {"use_tapr": True, "use_gram": True, "max_steps": 12, "eval_steps": 6, "save_steps": 6}
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    return run_main_enhanced.main(as_words(settings)).run_dir


@pytest.fixture(scope="session")
def plain_run(tmp_path_factory, tiny_settings, write_series, as_words) -> Path:
    """The folder of a run that takes no steps, has no LLM, no module and no intervals."""
    home = tmp_path_factory.mktemp("plain")
    series = write_series(home / "waves.csv", 400)
    settings = tiny_settings(series, home / "checkpoints")
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    return run_main.main([*as_words(settings), "--model", "SeasonalNaive", "--levels"]).run_dir
