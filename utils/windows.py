"""Windows as single series: the fold of variables into the batch, and a safe deviation.

Shape legend: B windows, N variables, T rows, S = B * N series.
"""

from __future__ import annotations

from torch import Tensor

from utils.config import STD_FLOOR
from utils.types import Covariates, RowCovariates


def per_series(windows: Tensor) -> Tensor:
    """[B, T, N] to [S, T], variable by variable within each window (channel independence)."""
    return windows.transpose(1, 2).reshape(-1, windows.shape[1])


def floored_std(series: Tensor) -> Tensor:
    """Deviation of series [S, T] over their rows, at least `STD_FLOOR`: [S]."""
    return series.std(dim=-1, unbiased=False).clamp(min=STD_FLOOR)


def rows_of(covariates: Covariates | None) -> RowCovariates | None:
    """Those of a batch's windows [B, ...] as those of its series [S, ...], window by window."""
    if covariates is None:
        return None
    variables = covariates.static.shape[1]
    known, past = (part.repeat_interleave(variables, dim=0) for part in (covariates.known, covariates.past))
    return RowCovariates(known, past, covariates.static.flatten(0, 1))
