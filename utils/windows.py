"""Windows as single series: the fold of variables into the batch, and a safe deviation.

Shape legend: B windows, N variables, T rows, S = B * N series.
"""

from __future__ import annotations

from torch import Tensor

from utils.config import STD_FLOOR


def per_series(windows: Tensor) -> Tensor:
    """[B, T, N] to [S, T], variable by variable within each window (channel independence)."""
    return windows.transpose(1, 2).reshape(-1, windows.shape[1])


def floored_std(series: Tensor) -> Tensor:
    """Deviation of series [S, T] over their rows, at least `STD_FLOOR`: [S]."""
    return series.std(dim=-1, unbiased=False).clamp(min=STD_FLOOR)
