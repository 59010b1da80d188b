"""What a forecast reads of dated texts: nothing known later, the same in every path."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import run_main
from models import Forecaster
from tests.conftest import forget_accelerator
from utils.config import Config
from utils.training.experiment import RunResult

ROWS, LOOKBACK, HORIZON = 300, 32, 8
TRAINED = 210
"""Rows of the training part."""
Runs = Callable[..., RunResult]


def notices(*, changed_after: int | None = None) -> pd.DataFrame:
    """One every fifth row, of 30 wordings; other words from a row on."""
    rows = np.arange(3, ROWS, 5)
    dates = pd.date_range("2020-01-01", periods=ROWS, freq="h")[rows]
    words = ["load goes up by", "load goes down by", "nothing happens but"]
    kinds = ["much", "a little", "one", "two", "five", "more than ten", "less", "some", "no"]
    texts = [f"{words[i % 3]} {kinds[(i // 3) % 9]} {'today' if i % 2 else 'here'}" for i in range(len(rows))]
    if changed_after is not None:
        texts = [
            t if row <= changed_after else f"{t[::-1]} 12/31/2031" for t, row in zip(texts, rows, strict=True)
        ]
    return pd.DataFrame({"end": dates.astype(str), "text": texts})


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, write_series: Any) -> Path:
    folder: Path = tmp_path_factory.mktemp("texts")
    write_series(folder / "waves.csv", ROWS)
    notices().to_csv(folder / "notices.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def settings(home: Path, tiny_settings: Any) -> Callable[..., dict[str, Any]]:
    def made(**changes: Any) -> dict[str, Any]:
        whole = {**tiny_settings(home / "waves.csv", home / "checkpoints"), "start": "solved"}
        whole |= {"text_file": str(home / "notices.csv"), "text_tokens": 12, "text_count": 2, "max_steps": 2}
        return {**whole, "text_question": ["\nSo load goes"], **changes}

    return made


@pytest.fixture(scope="module")
def runs(settings: Callable[..., dict[str, Any]]) -> Runs:
    """Runs by their changes, each made once."""
    made: dict[str, RunResult] = {}

    def run(model: str = "TimeLLM", **changes: Any) -> RunResult:
        name = repr((model, sorted(changes.items())))
        if name not in made:
            forget_accelerator()
            made[name] = run_main.train(Config.from_flat(settings(**changes)), model=model)
        return made[name]

    return run


def weights(run: RunResult) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(run.run_dir / "checkpoint", weights_only=True)["model"]
    return found


@pytest.mark.parametrize("fusion", ["asked", "prompt"])
def test_no_later_text_moves_a_forecast(fusion, runs, settings, home):
    """Training, validation, test and predict: with all later words changed, equal to the bit."""
    later = home / f"later_{fusion}.csv"
    notices(changed_after=TRAINED + 28).to_csv(later, index=False)
    run = runs(text_fusion=fusion)
    other = runs(text_fusion=fusion, text_file=str(later))
    own, its = weights(run), weights(other)
    assert own.keys() == its.keys() and all(torch.equal(own[name], its[name]) for name in own)
    f = Forecaster.load(run.run_dir, device="cpu")
    series = f.own_series()
    for last in (100, 250):
        first = last - LOOKBACK + 1
        cut = notices(changed_after=last - 1)
        forecasts = [
            f.forecasts(f.windows(series, first=first, texts=texts)).prediction
            for texts in (None, cut, notices(changed_after=last - 12))
        ]
        assert np.array_equal(forecasts[0], forecasts[1])
        assert not np.array_equal(forecasts[0], forecasts[2]), "what is seen does move it"
