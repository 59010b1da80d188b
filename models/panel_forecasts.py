"""Forecasts of every series of a long table by a model that was trained on a panel, in the table's own form.

A series that was trained on keeps its scale; another has that of its own lookback (with one scale for all:
that), and nothing is fitted to it. One with too few rows for a lookback is forecast by its last season, or by
its last value where it is shorter than that, and has no intervals.

Shape legend: S series, W windows, L lookback, H horizon.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from logging import getLogger
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from data_provider.dates import DateRules, dates_after
from data_provider.long_files import check_columns, long_table, names_in, read_long_files, table_paths
from data_provider.long_format import panel_columns
from data_provider.long_table import read_long
from data_provider.panel import IntArray, Panel, named
from data_provider.panel_data import grouped_moments, panel_windows
from data_provider.panel_windows import PanelDataset, PanelWindows, Places
from models import forecast_tables
from models.forecast_tables import Array, Backtest
from models.trained import ReadOptions, Table, TrainedModel
from utils.errors import UserError
from utils.forecast_columns import ORIGIN
from utils.training.intervals import std_of
from utils.types import PanelTable, Standardisation

log = getLogger(__name__)


class PanelForecasts(NamedTuple):
    """Forecasts of some windows of a panel, in original units."""

    series: IntArray
    """[W]."""
    cut: IntArray
    """[W], the row that each begins at."""
    prediction: Array
    """[W, H]."""
    truth: Array
    """[W, H]; NaN where it is still to come."""
    half: dict[float, Array]
    """By level, half the interval's width [W, H]; NaN where there is none."""
    std: Array
    """[W], what the series is divided by."""


def read_panel(model: TrainedModel, table: Table, *, reading: ReadOptions) -> Panel:
    """A long table as the panel that the model reads.

    Its columns are called as those trained on, or by names that are known without a flag.

    Raises:
        OSError: there is no such file.
        UserError: as `data_provider.long_table.read_long`; or its columns are not known.
    """
    if reading.round_dates:
        raise UserError("--round_dates: the times of a panel are not rounded; round them in the file")
    data = model.config.data
    is_frame = isinstance(table, pd.DataFrame)
    where: object = "the table" if is_frame else Path(table)
    if isinstance(table, pd.DataFrame):
        frame = long_table(table)
        names = list(frame.columns)
    else:
        names = names_in(table_paths(Path(table))[0])
    trained = set(data.id_column) <= set(names)
    dated = data.date_column in names
    columns = panel_columns(
        names,
        where,
        ids=data.id_column if trained else (),
        date=data.date_column if trained and dated else None,
        target=data.target[0],
    )
    if columns is None:
        raise UserError(
            f"{where}: expected the columns that the model was trained on, {', '.join(data.id_column)}, "
            f"{data.date_column} and {data.target[0]}, found {', '.join(names)}; rename them"
        )
    if is_frame:
        check_columns(names, [*columns.ids, columns.date, columns.target], where)
    return read_long(
        frame if is_frame else read_long_files(Path(table), columns),
        where,
        columns,
        name=str(where),
        rules=DateRules(
            freq=reading.freq,
            date_format=reading.date_format,
            time_zone=reading.time_zone,
            repeated_times=reading.repeated_times or data.repeated_times,
        ),
        kept=model.dates_kept,
        expected=model.frequency,
        fill_missing=reading.fill_missing or data.fill_missing,
    )


def forecast_panel(
    model: TrainedModel, table: Table, *, levels: Sequence[float], reading: ReadOptions
) -> pd.DataFrame:
    """The H rows after the end of each series: its id, their times, the forecast, and bounds by level."""
    panel = read_panel(model, table, reading=reading)
    lengths = panel.lengths
    enough = lengths >= model.seq_len
    windows = _windows(model, panel)
    found = _forecasts(
        model, windows, Places(windows.lengths, torch.from_numpy(enough.astype(np.int64))), levels
    )
    every = PanelForecasts(
        np.arange(len(lengths)),
        lengths,
        np.empty((len(lengths), model.pred_len)),
        np.full((len(lengths), model.pred_len), np.nan),
        {level: np.full((len(lengths), model.pred_len), np.nan) for level in levels},
        np.ones(len(lengths)),
    )
    every.prediction[found.series] = found.prediction
    for level, half in found.half.items():
        every.half[level][found.series] = half
    short = np.flatnonzero(~enough)
    season = model.config.data.season or 1
    for series in short:
        every.prediction[series] = last_season(panel.of(int(series)), model.pred_len, season)
    if len(short):
        log.warning(
            "%s: %d of %d series have fewer rows than the lookback of %d: forecast by their last season "
            "of %d "
            "rows, or their last value where they are shorter, without intervals: %s",
            panel.name, len(short), len(lengths), model.seq_len, season, named(panel.ids, short),
        )  # fmt: skip
    return _table(panel, every)


def backtest_panel(
    model: TrainedModel, table: Table, count: int, *, levels: Sequence[float], reading: ReadOptions
) -> Backtest:
    """Forecasts of the last ``count`` windows of each series whose future the table holds, and their scores.

    Raises:
        UserError: no series is long enough.
    """
    panel = read_panel(model, table, reading=reading)
    first = panel.lengths - model.pred_len - count + 1
    enough = first >= model.seq_len
    if count < 1 or not enough.any():
        raise UserError(
            f"--backtest: expected 1 or more windows, of {model.seq_len} rows and the {model.pred_len} after "
            f"them in a series (the longest has {panel.lengths.max()} rows), found {count}"
        )
    windows = _windows(model, panel, known=first)
    places = Places(torch.from_numpy(first), torch.from_numpy(np.where(enough, count, 0)))
    found = _forecasts(model, windows, places, levels)
    ahead = (panel.begins[found.series] + found.cut)[:, None] + np.arange(model.pred_len)  # [W, H]
    found = found._replace(truth=panel.values[ahead])  # not by way of standardised numbers
    if not enough.all():
        log.warning(
            "%s: without series too short for it: %s", panel.name, named(panel.ids, np.flatnonzero(~enough))
        )
    _say_trained(model, panel, windows, found)
    return Backtest(_table(panel, found, truth=True), *_scores(panel, found))


def last_season(values: Array, horizon: int, season: int) -> Array:
    """The last ``season`` values repeated over ``horizon`` rows, or the last value of fewer."""
    back = season if len(values) >= season else 1
    return values[-back:][np.arange(horizon) % back]


def _table_of(model: TrainedModel) -> PanelTable:
    assert model.panel is not None
    return model.panel


def _windows(model: TrainedModel, panel: Panel, *, known: IntArray | None = None) -> PanelWindows:
    """The windows of a panel in the model's scales; that of a new series' lookback before ``known`` [S]."""
    return panel_windows(
        panel,
        _scales(model, panel, panel.lengths if known is None else known),
        seq_len=model.seq_len,
        pred_len=model.pred_len,
        offset=_offset(model, panel),
    )


def _scales(model: TrainedModel, panel: Panel, end: IntArray) -> Standardisation:
    """Of each series its own as trained, or that of its lookback before ``end`` [S]."""
    rows = {name: row for row, name in enumerate(_table_of(model).ids)}
    row = np.array([rows.get(name, -1) for name in panel.ids])
    mean, std = (part.numpy()[row.clip(min=0)] for part in model.standardisation)
    new = np.flatnonzero(row < 0)
    if len(new):
        one_scale = model.config.data.panel_scaler == "global"
        if not one_scale:
            number = np.repeat(np.arange(len(row)), panel.lengths)
            place = np.arange(len(number)) - panel.begins[number]
            own = (place >= end[number] - model.seq_len) & (place < np.maximum(end, 1)[number])
            own_mean, own_std = grouped_moments(panel.values[own], number[own], len(row))
            mean, std = np.where(row < 0, own_mean, mean), np.where(row < 0, own_std, std)
        log.warning(
            "%s: %d of %d series were not trained on: forecast in %s, without a refit: %s",
            panel.name, len(new), len(row),
            "the scale of all" if one_scale else "the scale of their own lookback", named(panel.ids, new),
        )  # fmt: skip
    return Standardisation(torch.from_numpy(mean), torch.from_numpy(std))


def _offset(model: TrainedModel, panel: Panel) -> int:
    """The place of the panel's first time in the calendar that was trained on; below 0 before it."""
    assert panel.calendar is not None
    trained = pd.DatetimeIndex(_table_of(model).calendar.numpy().astype("datetime64[us]"))
    first = panel.calendar[0].tz_localize(None).as_unit("us")
    if first <= trained[-1]:
        place = int(trained.searchsorted(first))
        if first >= trained[0]:
            return place
        own = panel.calendar.tz_localize(None).as_unit("us")
        return -int(own.searchsorted(trained[0])) if own[-1] >= trained[0] else -len(own) - len(trained)
    steps = 8
    while (later := dates_after(trained[-1], model.frequency, steps))[-1] < first:
        steps *= 2
    return len(trained) + int(later.as_unit("us").searchsorted(first))


def _forecasts(
    model: TrainedModel, windows: PanelWindows, places: Places, levels: Sequence[float]
) -> PanelForecasts:
    """Forecasts of the windows at ``places``, in original units."""
    series, cut = (part.numpy() for part in places.of_all())
    scale = windows.scales
    assert scale is not None
    mean, std = (part.numpy()[series][:, None] for part in scale)  # [W, 1]
    shape = (len(series), windows.pred_len)
    prediction, truth = np.empty(shape), np.empty(shape)
    half = {level: np.empty(shape) for level in levels}
    begin = 0
    for batch, state in model.states(PanelDataset(windows, places)):
        own = slice(begin, begin + len(batch.x))
        begin = own.stop
        prediction[own] = state.prediction[..., 0].double().cpu().numpy() * std[own] + mean[own]
        truth[own] = batch.y[..., 0].double().cpu().numpy() * std[own] + mean[own]
        for level in levels:
            assert model.calibration is not None
            width = model.calibration.half_width(level, std_of(batch).cpu())
            half[level][own] = width[..., 0].double().numpy() * std[own]
    if not np.isfinite(prediction).all():
        raise UserError(f"{model.path}: expected finite forecasts, found NaN or infinity")
    return PanelForecasts(series, cut, prediction, truth, half, std[:, 0])


def _table(panel: Panel, found: PanelForecasts, *, truth: bool = False) -> pd.DataFrame:
    """Forecasts as a long table: the columns of the one that was read, rows series by series."""
    assert panel.calendar is not None and panel.columns is not None
    horizon = found.prediction.shape[1]
    dates = panel.calendar.append(dates_after(panel.calendar[-1], panel.frequency, horizon))
    place = panel.first[found.series] + found.cut  # [W]
    labels = panel.labels.iloc[np.repeat(found.series, horizon)].reset_index(drop=True)
    leading: dict[str, object] = {name: labels[name] for name in labels}
    if truth:
        leading[ORIGIN] = dates[np.repeat(place - 1, horizon)]
    leading[panel.columns.date] = dates[(place[:, None] + np.arange(horizon)).reshape(-1)]
    return forecast_tables.table(
        leading,
        [panel.columns.target],
        found.prediction.reshape(-1, 1),
        half_widths={level: half.reshape(-1, 1) for level, half in found.half.items()},
        truth=found.truth.reshape(-1, 1) if truth else None,
    )


def _scores(panel: Panel, found: PanelForecasts) -> tuple[pd.DataFrame, pd.Series]:
    """The scores of `Backtest`, a row for each series."""
    rows: dict[str, Mapping[object, float]] = {}
    for series in np.unique(found.series):
        own = found.series == series
        scored, _ = forecast_tables.scores(
            found.prediction[own][..., None],
            found.truth[own][..., None],
            std=found.std[own][:1],
            targets=["all"],
            half_widths={level: half[own][..., None] for level, half in found.half.items()},
        )
        rows[panel.ids[series]] = scored.loc["all"].to_dict()
    frame = pd.DataFrame.from_dict(rows, orient="index")
    return frame, forecast_tables.means(frame)


def _say_trained(model: TrainedModel, panel: Panel, windows: PanelWindows, found: PanelForecasts) -> None:
    """Say how many windows forecast rows that the model was trained on."""
    table = _table_of(model)
    rows = {name: row for row, name in enumerate(table.ids)}
    row = np.array([rows.get(panel.ids[s], -1) for s in found.series])
    ends = (table.first + table.trained).numpy()[row.clip(min=0)]
    begins = windows.first.numpy()[found.series] + found.cut
    trained = int(((row >= 0) & (begins < ends)).sum())
    if trained:
        log.warning(
            "%d of these %d windows forecast rows that the model was trained on: no test of it",
            trained, len(row),
        )  # fmt: skip
