"""A panel as everything a run needs: parts by time in each series, a table of scales, windows, notes.

Each series is divided by its own rows, in the fractions of `data_provider.splits`; its test and its
validation have a horizon at least, which a short series takes from its training.

Shape legend: S series, C times of the calendar, L lookback, H horizon.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from data_provider.dates import dates_after
from data_provider.panel import FloatArray, IntArray, Panel, named, series_numbers
from data_provider.panel_windows import PanelDataset, PanelSource, PanelWindows, Places
from data_provider.scaling import LARGEST
from data_provider.splits import TEST_FRACTION, TRAIN_FRACTION
from data_provider.time_features import season_rows, time_marks
from utils.config import DataConfig
from utils.errors import UserError
from utils.types import DataBundle, PanelTable, SeriesIdentity, Standardisation

MOST_EVALUATED = 10_000
"""Windows of a validation or test, at even distances where there are more."""


class PanelParts(NamedTuple):
    """Rows of each series at which its parts end, [S] each; the test ends with the series."""

    train: IntArray
    """Of those that are used (``--percent``)."""
    validation_begins: IntArray
    validation: IntArray


def panel_parts(lengths: IntArray, *, seq_len: int, pred_len: int, percent: int = 100) -> PanelParts:
    """Where the parts of series of these lengths [S] end; below 0 where one is shorter than its parts."""
    train, test = ((lengths * share).astype(np.int64) for share in (TRAIN_FRACTION, TEST_FRACTION))
    validation = np.maximum(pred_len, lengths - train - test)
    test = np.maximum(pred_len, test)
    begins = lengths - test - validation
    used = np.where(begins > seq_len, (begins - seq_len) * percent // 100 + seq_len, begins)
    return PanelParts(used, begins, lengths - test)


def part_places(begin: IntArray, end: IntArray, *, seq_len: int, pred_len: int) -> Places:
    """The windows whose lookback exists and whose future lies in the rows ``begin`` to ``end`` [S]."""
    first = np.maximum(begin, seq_len)
    counts = np.maximum(0, end - pred_len - first + 1)
    return Places(torch.from_numpy(first), torch.from_numpy(counts))


def fit_scales(panel: Panel, rows: IntArray, *, together: bool) -> Standardisation:
    """Mean and population deviation of the first ``rows`` [S] of each series, or of all these together: [S].

    What does not change has the deviation 1.
    """
    number = np.repeat(np.arange(len(rows)), panel.lengths)
    own = np.arange(len(number)) - panel.begins[number] < rows[number]
    groups = np.zeros(int(own.sum()), dtype=np.int64) if together else number[own]
    mean, std = grouped_moments(panel.values[own], groups, 1 if together else len(rows))
    both = (torch.from_numpy(part) for part in (mean, std))
    return Standardisation(*(part.expand(len(rows)).contiguous() if together else part for part in both))


def grouped_moments(values: FloatArray, groups: IntArray, count: int) -> tuple[FloatArray, FloatArray]:
    """Mean and population deviation of ``values`` by group, [count] each; 0 and 1 of none.

    A group that does not change has exactly its value, and the deviation 1.
    """
    size = np.maximum(np.bincount(groups, minlength=count), 1)
    mean = np.bincount(groups, values, minlength=count) / size
    mean += np.bincount(groups, values - mean[groups], minlength=count) / size  # what rounding left
    centred = values - mean[groups]
    std = np.sqrt(np.bincount(groups, centred**2, minlength=count) / size)
    low, high = np.full(count, np.inf), np.full(count, -np.inf)
    np.minimum.at(low, groups, values)
    np.maximum.at(high, groups, values)
    constant = low >= high
    return np.where(np.isfinite(low) & constant, low, mean), np.where(constant, 1.0, std)


def seasonal_scales(panel: Panel, rows: IntArray, season: int) -> tuple[FloatArray, FloatArray]:
    """Mean absolute and mean squared change over a season in the first ``rows`` [S] of each series, [S] each.

    0 of a series that does not change, NaN of one that has no more rows than a season.
    """
    number = np.repeat(np.arange(len(rows)), panel.lengths)
    place = np.arange(len(number)) - panel.begins[number]
    later = np.flatnonzero((place >= season) & (place < rows[number]))
    change = panel.values[later] - panel.values[later - season]
    count = np.bincount(number[later], minlength=len(rows)).astype(np.float64)
    with np.errstate(invalid="ignore"):
        return tuple(  # type: ignore[return-value]
            np.bincount(number[later], amount, minlength=len(rows)) / np.where(count, count, np.nan)
            for amount in (np.abs(change), change**2)
        )


def panel_windows(
    panel: Panel, scales: Standardisation, *, seq_len: int, pred_len: int, offset: int = 0
) -> PanelWindows:
    """The windows of a panel, each series standardised by its own of the ``scales`` [S].

    ``offset`` is the place of the panel's first time in the calendar of the panel that was trained on.

    Raises:
        UserError: a value is beyond what can be computed with.
    """
    mean, std = (np.repeat(part.numpy(), panel.lengths) for part in scales)
    values = ((panel.values - mean) / std).astype(np.float32)
    wrong = ~(np.abs(values) <= LARGEST)
    if wrong.any():
        row = int(wrong.argmax())
        series = int(np.searchsorted(panel.begins, row, side="right")) - 1
        raise UserError(
            f"{panel.name}: series {panel.ids[series]!r}, its row {row - panel.begins[series] + 1}: "
            f"expected a "
            f"number like the series' others, found {panel.values[row]:g}; correct it, or leave the "
            f"series out"
        )
    assert panel.calendar is not None
    dates = panel.calendar.append(dates_after(panel.calendar[-1], panel.frequency, pred_len))
    marks = time_marks(dates, panel.frequency)
    return PanelWindows(
        torch.from_numpy(values),
        torch.from_numpy(panel.begins),
        torch.from_numpy(series_numbers(panel.ids)),
        seq_len=seq_len,
        pred_len=pred_len,
        first=torch.from_numpy(panel.first + offset),
        marks=torch.from_numpy(marks) if marks.shape[1] else torch.zeros(len(dates), 0),
        offset=offset,
        scales=scales,
    )


def build_panel(panel: Panel, data: DataConfig, *, notes: Mapping[str, str]) -> DataBundle:
    """The windows of a panel with dates, divided and standardised.

    Raises:
        UserError: no series is long enough for a training, a validation or a test window, or a value is
            beyond what can be computed with.
    """
    assert panel.columns is not None and panel.calendar is not None
    lengths, options = panel.lengths, {"seq_len": data.seq_len, "pred_len": data.pred_len}
    parts = panel_parts(lengths, percent=data.percent, **options)
    training = part_places(np.zeros_like(lengths), parts.train, **options)
    validated = part_places(parts.validation_begins, parts.validation, **options)
    tested = part_places(parts.validation, lengths, **options)
    _require(panel, data, {"training": training, "validation": validated, "test": tested})
    is_trained = training.counts.numpy() > 0
    trained, together = np.where(is_trained, parts.train, 0), data.panel_scaler == "global"
    known = np.where(is_trained, parts.train, np.maximum(parts.validation, 1))
    scales = fit_scales(panel, trained if together else known, together=together)
    windows = panel_windows(panel, scales, **options)
    train = PanelDataset(windows, training)
    evaluated = {"validation": validated.every(data.eval_stride), "test": tested.every(data.test_stride)}
    validation, test = (PanelDataset(windows, p.every(1, most=MOST_EVALUATED)) for p in evaluated.values())
    season = data.season or season_rows(panel.frequency)
    content = panel.content_hash()
    absolute, squared = seasonal_scales(panel, parts.validation, season)
    target = panel.columns.target
    return DataBundle(
        name=panel.name,
        train=train,
        validation=validation,
        test=test,
        source=PanelSource(train, series_id=int(content[:15], 16)),
        standardisation=scales,
        columns=(target,),
        targets=(target,),
        frequency=panel.frequency,
        season=season,
        content_hash=content,
        identity=SeriesIdentity(0, 0, 0),  # no single series was trained on
        tested=panel.name,
        test_targets=(target,),
        windows=(len(train), len(validation), min(len(tested), MOST_EVALUATED)),
        notes={
            **notes,
            **panel.notes,
            **_notes(panel, data, known, training, evaluated),
        },
        date_format=panel.dates_kept.date_format,
        time_zone=panel.dates_kept.time_zone,
        panel=PanelTable(
            ids=panel.ids,
            id_column=panel.columns.ids,
            date_column=panel.columns.date,
            series_id=windows.ids,
            first=windows.first,
            trained=torch.from_numpy(trained),
            calendar=torch.from_numpy(panel.calendar.tz_localize(None).as_unit("us").asi8.copy()),
            absolute_change=torch.from_numpy(absolute),
            squared_change=torch.from_numpy(squared),
        ),
    )


def _require(panel: Panel, data: DataConfig, parts: Mapping[str, Places]) -> None:
    """Raise UserError where a part has no window in any series."""
    for name, places in parts.items():
        if not len(places):
            needed = data.seq_len + data.pred_len * (3 if name == "training" else 1)
            raise UserError(
                f"--seq_len {data.seq_len} --pred_len {data.pred_len}: expected a series of {needed} rows or "
                f"more for a {name} window, found {len(panel.ids)} series of at most {panel.lengths.max()} "
                f"(--percent {data.percent}); shorten the lookback or the horizon"
            )


def _notes(
    panel: Panel, data: DataConfig, known: IntArray, training: Places, evaluated: Mapping[str, Places]
) -> dict[str, str]:
    """What a reader of the results must know: series left out of a part, thinned windows, constant series."""
    untrained = np.flatnonzero(training.counts.numpy() == 0)
    notes = {
        "scaler": "each series is standardised by its own training rows (--panel_scaler series)"
        if data.panel_scaler == "series"
        else "all series are standardised by all training rows together (--panel_scaler global)"
    }
    if len(untrained):
        notes["untrained"] = (
            f"{len(untrained)} of {len(panel.ids)} series are too short for a training window: "
            f"{named(panel.ids, untrained)}; scaled by the rows before their test"
        )
    for name, places in evaluated.items():
        without = np.flatnonzero(places.counts.numpy() == 0)
        if len(without):
            notes[f"without_{name}"] = (
                f"{len(without)} series are too short for a {name} window: {named(panel.ids, without)}"
            )
        if len(places) > MOST_EVALUATED:
            notes[f"{name}_windows"] = f"{name}: {MOST_EVALUATED} of {len(places)} windows at even distances"
    for name, stride in (("validation", data.eval_stride), ("test", data.test_stride)):
        if stride > 1:
            notes[f"{name}_stride"] = f"every {stride}th {name} window of each series"
    constant = constant_series(panel, known)
    if len(constant):
        notes["constant"] = (
            f"warning: {len(constant)} series do not change in the rows they are scaled by: "
            f"{named(panel.ids, constant)}; in units of their own"
        )
    return notes


def constant_series(panel: Panel, rows: IntArray) -> NDArray[np.int64]:
    """The series whose first ``rows`` [S], two or more, are all the same."""
    number = np.repeat(np.arange(len(rows)), panel.lengths)
    place = np.arange(len(number)) - panel.begins[number]
    changed = (place > 0) & (place < rows[number]) & (np.diff(panel.values, prepend=0.0) != 0)
    return np.flatnonzero((np.bincount(number[changed], minlength=len(rows)) == 0) & (rows > 1))
