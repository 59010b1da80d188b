"""The texts of a run, and which of them each of its windows sees.

Every window of training, validation, test, predict and explain asks `SeriesTexts.seen`, which asks
`data_provider.texts.VisibleTexts`: no other place decides it.

Shape legend: K texts, R windows, V variables that see texts of their own (1 where all see the same), C texts
of a window.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from data_provider.series import Series
from data_provider.text_files import read_texts, text_table
from data_provider.text_leaks import Rows, audit_texts
from data_provider.texts import (
    TextTable,
    VisibleTexts,
    controlled,
    first_rows,
    text_lag,
    visible_texts,
)
from data_provider.wordings import wording_groups
from utils.config import TextConfig
from utils.types import TextReading

log = getLogger(__name__)
ReadTexts: TypeAlias = Callable[[Sequence[str]], TextReading]
SHUFFLES = 20
"""Of the texts' times for the line on leaks: enough to tell chance from more; the audit makes more."""


@dataclass(frozen=True, eq=False)
class SeriesTexts:
    """Texts with the windows of one series (a `utils.types.TextWindows`)."""

    table: TextTable
    """As the control has it."""
    visible: tuple[VisibleTexts, ...]
    """[V]."""
    reading: TextReading

    def seen(self, last: Tensor) -> tuple[Tensor, Tensor]:
        """Of windows with these last rows [R]: places of their texts and ages, both [R, V, C] int64."""
        found = [own.at(last.numpy()) for own in self.visible]
        places, ages = (np.stack(part, axis=1) for part in zip(*found, strict=True))
        return torch.from_numpy(places), torch.from_numpy(ages)

    def wordings(self, places: Tensor) -> Tensor:
        """Of the texts at these places [U], which are so near that they are one wording: [U] int64."""
        return torch.from_numpy(wording_groups([self.table.texts[i] for i in places.tolist()]))


def table_of(
    config: TextConfig, texts: pd.DataFrame | str | Path, *, names: Sequence[str], seed: int
) -> TextTable:
    """The texts of a file or table that are about variables of these names, as the settings have them.

    Raises:
        OSError: there is no such file.
        UserError: it, or a setting, is at fault, or all its texts are of other series.
    """
    columns = config.text_columns
    if isinstance(texts, pd.DataFrame):
        table = text_table(texts, "the texts", columns=columns)
    else:
        table = read_texts(texts, columns=columns)
    control = config.text_control
    if control == "other_series":  # of all series, those unknown to the run too
        return controlled(table, control, seed=seed).of_series(names)[0]
    return controlled(table.of_series(names)[0], control, seed=seed)


def texts_of(
    config: TextConfig, table: TextTable, series: Series, *, targets: Sequence[str], read: ReadTexts
) -> SeriesTexts:
    """The texts of a table for the windows of a series, each text read by ``read``.

    Raises:
        UserError: a setting, or the times of the texts, do not fit the series.
    """
    lag = text_lag(config.text_lag)
    apart = any(table.series)
    visible = tuple(
        visible_texts(table, series.dates, lag=lag, count=config.text_count, series=name)
        for name in (targets if apart else (None,))
    )
    return SeriesTexts(table, visible, read(table.texts))


def leak_line(config: TextConfig, table: TextTable, series: Series) -> str:
    """What the texts tell before its time, in one line, against the last variable."""
    rows = Rows(series.dates, series.values[:, -1])
    lags = [text_lag(config.text_lag)]
    line = audit_texts(table, rows, lags=lags, shuffles=SHUFFLES, examples=0).line
    return f"{line}; scripts/text_audit.py shows them"


def hash_until(config: TextConfig, table: TextTable, series: Series, last: int) -> str:
    """sha256 of the texts, and their times, that windows up to this last row may see."""
    table = table.take(first_rows(table, series.dates, lag=text_lag(config.text_lag)) <= last)
    content = hashlib.sha256()
    for times in (table.start, table.end, table.published):
        content.update(times.tz_localize(None).as_unit("us").asi8.astype("<i8").data)
    for text in (*table.series, *table.texts):
        content.update(f"{len(text)} {text}".encode(errors="surrogatepass"))
    return content.hexdigest()
