"""Forecasts as tables: a row per step, a column per variable, and what a backtest scored.

Shape legend: W windows, H horizon, M variables forecast.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from utils.conformal import level_of
from utils.errors import UserError
from utils.forecast_columns import (
    DATE,
    bound_column,
    percent,
    quantile_column,
    truth_column,
    what_if_column,
)

Array = NDArray[np.float64]
MEAN = "(mean of all)"
"""The heading of the means over all variables where scores are printed; a key of none of them."""


class Backtest(NamedTuple):
    """Forecasts whose truth is known, and how far off they were."""

    frame: pd.DataFrame
    """A row for each step of each window: ``origin`` (the last known time), ``date``, and for each variable
    its forecast, ``<name>_true``, and where asked for ``<name>_lo_80``, ``<name>_hi_80``; original units."""
    scores: pd.DataFrame
    """A row for each variable: ``mse`` and ``mae`` in its own units, ``mse_standardised`` and
    ``mae_standardised``, and by level ``covered_80`` and ``width_80`` (in its own units)."""
    mean: pd.Series
    """Means of the scores over the variables; NaN for what is in the variables' own units."""


def table(
    leading: Mapping[str, pd.DatetimeIndex],
    targets: Sequence[str],
    prediction: Array,
    *,
    half_widths: Mapping[float, Array],
    truth: Array | None = None,
    what_if: Array | None = None,
    floor: float = -np.inf,
    levels: Sequence[float] | None = None,
    quantiles: Sequence[float] = (),
) -> pd.DataFrame:
    """Columns by variable: forecast, truth where given, then the bounds by level.

    Args:
        leading: the first columns, each [R].
        targets: names of the variables, M of them.
        prediction: [R, M].
        half_widths: by level, [R, M].
        truth: [R, M].
        what_if: forecasts under other texts, [R, M].
        floor: what no lower bound is below, as no truth is.
        levels: those that have columns; by default all of ``half_widths``.
        quantiles: those that have columns, each a bound of an interval of ``half_widths``.

    No two columns have the same name: `check_names` tells before any forecast.
    """
    columns: dict[str, pd.DatetimeIndex | Array] = dict(leading)
    for place, name in enumerate(targets):
        own = columns[name] = prediction[:, place]
        if truth is not None:
            columns[truth_column(name)] = truth[:, place]
        if what_if is not None:
            columns[what_if_column(name)] = what_if[:, place]
        for level in half_widths if levels is None else levels:
            half = half_widths[level]
            columns[bound_column(name, "lo", level)] = np.maximum(own - half[:, place], floor)
            columns[bound_column(name, "hi", level)] = own + half[:, place]
        for quantile in quantiles:
            level = level_of(quantile)
            moved = own if not level else own + np.sign(quantile - 0.5) * half_widths[level][:, place]
            columns[quantile_column(name, quantile)] = np.maximum(moved, floor)
    return pd.DataFrame(columns)


def levels_of(levels: Sequence[float], quantiles: Sequence[float]) -> list[float]:
    """The levels of all intervals that these columns need, each once.

    Raises:
        UserError: a quantile is not between 0 and 1.
    """
    for quantile in quantiles:
        if not 0 < quantile < 1:
            raise UserError(
                f"--quantiles: expected numbers between 0 and 1, such as 0.1 0.9, found {quantile:g}"
            )
    return list(dict.fromkeys([*levels, *(level for q in quantiles if (level := level_of(q)))]))


def as_given(forecast: pd.DataFrame, table: object) -> pd.DataFrame:
    """A forecast in the form of the ``table`` that it goes on from: dates in its zone, and as its index."""
    if not isinstance(table, pd.DataFrame):
        return forecast
    indexed = isinstance(table.index, pd.DatetimeIndex)
    given = table.index if indexed else pd.Index(table[next(c for c in table if str(c).strip() == DATE)])
    dates = pd.DatetimeIndex(forecast[DATE])
    if isinstance(given, pd.DatetimeIndex) and given.tz is not None and dates.tz is not None:
        forecast = forecast.assign(**{DATE: dates.tz_convert(given.tz)})
    return forecast.set_index(DATE).rename_axis(table.index.name) if indexed else forecast


def check_names(
    leading: Sequence[str],
    targets: Sequence[str],
    *,
    levels: Sequence[float],
    quantiles: Sequence[float] = (),
    truth: bool = False,
    what_if: bool = False,
) -> None:
    """Before any forecast: its table will have every column once.

    Raises:
        ValueError: variables are called like columns of the table, as runs of old may have them.
    """
    names = [*leading]
    for name in targets:
        names += [name, *([truth_column(name)] if truth else [])]
        names += [what_if_column(name)] if what_if else []
        names += [bound_column(name, side, level) for level in levels for side in ("lo", "hi")]
        names += [quantile_column(name, quantile) for quantile in quantiles]
    counts = Counter(names)
    twice = sorted(name for name in counts if counts[name] > 1)
    if twice:
        raise UserError(
            f"expected names of variables that leave {', '.join(twice)} to the forecast's own columns, found "
            "a variable called so; rename it in the data, and train with that name"
        )


def scores(
    prediction: Array,
    truth: Array,
    *,
    std: Array,
    targets: Sequence[str],
    half_widths: Mapping[float, Array],
) -> tuple[pd.DataFrame, pd.Series]:
    """The scores of `Backtest` and their means.

    By forecasts and truths [W, H, M] and the variables' ``deviation`` [M].
    """
    error = prediction - truth
    squared, absolute = (np.mean(e, axis=(0, 1)) for e in (error**2, np.abs(error)))  # [M]
    columns = {
        "mse": squared,
        "mae": absolute,
        "mse_standardised": squared / std**2,
        "mae_standardised": absolute / std,
    }
    for level, half in half_widths.items():
        columns[f"covered_{percent(level)}"] = np.mean(np.abs(error) <= half, axis=(0, 1))
        columns[f"width_{percent(level)}"] = 2 * np.mean(half, axis=(0, 1))
        columns[f"width_{percent(level)}_standardised"] = 2 * np.mean(half, axis=(0, 1)) / std
    frame = pd.DataFrame(columns, index=list(targets))
    return frame, means(frame)


def means(scored: pd.DataFrame) -> pd.Series:
    """The means of scores over their rows; NaN for what is in the rows' own units."""
    own_units = [
        c
        for c in scored.columns
        if c in ("mse", "mae") or c.removeprefix("width_").replace(".", "").isdigit()
    ]
    return scored.drop(columns=own_units).mean().reindex(scored.columns)


def scores_text(tested: Backtest) -> str:
    """The scores for a terminal: a column for each variable, and their means as the last one."""
    shown = pd.concat([tested.scores.T, tested.mean.rename(MEAN)], axis=1)
    return shown.to_string(float_format="%.4f", na_rep="")
