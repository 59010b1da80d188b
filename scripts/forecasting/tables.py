"""Forecasts as tables: a row per step, a column per variable, and what a backtest scored.

Shape legend: W windows, H horizon, M variables forecast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from utils.errors import UserError

Array = NDArray[np.float64]
Times = NDArray[np.datetime64]
ALL = "all"
"""The row of a backtest's scores over all variables."""


class Backtest(NamedTuple):
    """Forecasts whose truth is known, and how far off they were."""

    frame: pd.DataFrame
    """A row for each step of each window: ``origin`` (the last known time), ``date``, and for each variable
    its forecast, ``<name>_true``, and where asked for ``<name>_lo_80``, ``<name>_hi_80``; original units."""
    scores: pd.DataFrame
    """A row for each variable: ``mse`` and ``mae`` in its own units, ``mse_standardised`` and
    ``mae_standardised``, and by level ``covered_80`` and ``width_80`` (in its own units). The row ``all``
    has means over the variables, but none of what is in their own units."""


def percent(level: float) -> str:
    """How columns name a level: 80, 97.5."""
    return f"{100 * level:g}"


def table(
    leading: Mapping[str, Times],
    targets: Sequence[str],
    prediction: Array,
    *,
    half_widths: Mapping[float, Array],
    truth: Array | None = None,
) -> pd.DataFrame:
    """Columns by variable: forecast, truth where given, then the bounds by level.

    Args:
        leading: the first columns, each [R].
        targets: names of the variables, M of them.
        prediction: [R, M].
        half_widths: by level, [R, M].
        truth: [R, M].

    Raises:
        ValueError: two columns would have the same name, because variables are called like others' bounds.
    """
    columns: list[tuple[str, Times | Array]] = list(leading.items())
    for place, name in enumerate(targets):
        own = prediction[:, place]
        columns.append((name, own))
        if truth is not None:
            columns.append((f"{name}_true", truth[:, place]))
        for level, half in half_widths.items():
            columns.append((f"{name}_lo_{percent(level)}", own - half[:, place]))
            columns.append((f"{name}_hi_{percent(level)}", own + half[:, place]))
    names = [name for name, _ in columns]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(
            f"expected names of variables that leave {', '.join(twice)} to the forecast's own columns, found "
            "a variable called so; rename it in the data, and train with that name"
        )
    return pd.DataFrame(dict(columns))


def scores(
    prediction: Array,
    truth: Array,
    *,
    deviation: Array,
    targets: Sequence[str],
    half_widths: Mapping[float, Array],
) -> pd.DataFrame:
    """The scores of `Backtest`, by forecasts and truths [W, H, M] and the variables' ``deviation`` [M]."""
    error = prediction - truth
    squared, absolute = (np.mean(e, axis=(0, 1)) for e in (error**2, np.abs(error)))  # [M]
    columns = {
        "mse": squared,
        "mae": absolute,
        "mse_standardised": squared / deviation**2,
        "mae_standardised": absolute / deviation,
    }
    for level, half in half_widths.items():
        columns[f"covered_{percent(level)}"] = np.mean(np.abs(error) <= half, axis=(0, 1))
        columns[f"width_{percent(level)}"] = 2 * np.mean(half, axis=(0, 1))
        columns[f"width_{percent(level)}_standardised"] = 2 * np.mean(half, axis=(0, 1)) / deviation
    frame = pd.DataFrame(columns, index=list(targets))
    frame.loc[ALL] = frame.mean()
    own_units = [
        c for c in columns if c in ("mse", "mae") or c.removeprefix("width_").replace(".", "").isdigit()
    ]
    frame.loc[ALL, own_units] = np.nan
    return frame
