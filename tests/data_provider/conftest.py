"""What the data tests share: ETTh1 where it is to be had, and a small CSV."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

WriteCsv = Callable[..., Path]


@pytest.fixture
def write_csv(tmp_path: Path) -> WriteCsv:
    """Write ``rows`` hourly rows of columns a, b, OT and return the path."""

    def write(rows: int = 400, *, name: str = "small.csv", freq: str = "h", seed: int = 0) -> Path:
        values = np.random.default_rng(seed).normal(5.0, 2.0, (rows, 3))
        frame = pd.DataFrame(values, columns=["a", "b", "OT"])
        frame.insert(0, "date", pd.date_range("2020-01-01", periods=rows, freq=freq).astype(str))
        frame.to_csv(tmp_path / name, index=False)
        return tmp_path / name

    return write
