"""Windows at the end of a series, their future known or still to come.

Shape legend: T rows, N variables, M of them forecast, L lookback, H horizon, F time marks.
"""

from __future__ import annotations

import numpy as np
import torch

from data_provider import scaling
from data_provider.covariates import Coding, RowsBeside
from data_provider.dataset import WindowDataset
from data_provider.dates import dates_after
from data_provider.scaling import LARGEST
from data_provider.series import Series, identity_of
from data_provider.splits import Split
from data_provider.time_features import time_marks
from utils.errors import UserError
from utils.types import SeriesIdentity, Standardisation, TextWindows


def forecast_windows(
    series: Series,
    standardisation: Standardisation,
    *,
    seq_len: int,
    pred_len: int,
    n_targets: int,
    known_as: int,
    first: int,
    count: int,
    texts: TextWindows | None = None,
    coding: Coding | None = None,
    non_negative: bool = False,
) -> WindowDataset:
    """The ``count`` windows that begin at row ``first`` and the rows after it.

    Rows behind the end of the series have NaN as their values and the marks of their times, so that
    a window may reach into the future.

    Args:
        series: in original units.
        standardisation: the model's.
        seq_len: lookback L, rows, all of which must be known.
        pred_len: horizon H, rows.
        n_targets: how many variables are forecast, the last ones.
        known_as: the series' content hash, as the model's memory knows it (`same_series`).
        first: row at which the first window begins.
        count: number of windows.
        texts: of this series, where the model reads any.
        coding: of what is known beside the series, where the model reads that.
        non_negative: whether forecasts have a floor of 0.

    Raises:
        ValueError: there are too few rows for that, of the series or of its known covariates, or their
            values are beyond what can be computed with.
    """
    rows = len(series.values)
    needed = seq_len + count - 1
    if first < 0 or first + needed > rows:
        raise UserError(
            f"{series.name}: expected {needed} rows or more, a lookback of {seq_len} for each of {count} "
            f"window(s), found {rows if first < 0 else rows - first}"
        )
    values = scaling.transform(torch.from_numpy(series.values), standardisation).float()  # [T, N]
    too_large = (values.abs() > LARGEST).nonzero()
    if len(too_large):
        row, column = too_large[0].tolist()
        raise UserError(
            f"{series.name}: column {series.columns[column]!r}, data row {row + 1}: expected a number like "
            f"those that the model was trained on, found {series.values[row, column]:g}"
        )
    dates = series.dates.append(dates_after(series.dates[-1], series.frequency, pred_len))
    return WindowDataset(
        torch.cat([values, values.new_full((pred_len, values.shape[1]), np.nan)]),
        torch.from_numpy(time_marks(dates, series.frequency)),  # [T + H, F]
        Split(first, first + needed + pred_len),
        seq_len=seq_len,
        pred_len=pred_len,
        series_id=known_as,
        n_targets=n_targets,
        texts=texts,
        floor=scaling.floor(standardisation)[-n_targets:] if non_negative else None,
        beside=None if coding is None else _beside(series, coding, first + needed + pred_len, pred_len),
    )


def _beside(series: Series, coding: Coding, end: int, horizon: int) -> RowsBeside:
    """What is known beside rows up to ``end``.

    Raises:
        UserError: a known covariate ends before; the message names the first row that it lacks.
    """
    assert series.covariates is not None
    known = series.covariates.known
    if coding.columns.known and len(known) < end:
        dates = series.dates.append(dates_after(series.dates[-1], series.frequency, horizon))
        names = ", ".join(coding.columns.known)
        raise UserError(
            f"{series.name}: expected the known covariates ({names}) for the horizon too, up to "
            f"{dates[end - 1]}, found none from {dates[len(known)]} on; give them with --future FILE "
            "(future= in Python)"
        )
    return coding.rows(series.covariates, name=series.name)


def same_series(series: Series, identity: SeriesIdentity | None) -> bool:
    """Whether a series is the one that a model was trained on, rows added since or not."""
    if identity is None:
        return False
    end = identity.trained_rows
    begins_alike = len(series.values) >= end and (
        identity_of(series.values[:end], series.columns) == identity.trained_id
    )
    return begins_alike or series.series_id == identity.series_id
