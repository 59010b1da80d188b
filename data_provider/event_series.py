"""Made-up series with events that only texts announce: how far a model reads them can be measured.

Now and then the level of the last column changes for some rows. A notice says so before, in one of many
wordings (`event_wordings`): direction and size follow from its words alone, times are random, and no number
seen before tells of either. The notices of the test part are worded as those before never are: in verb,
size and template.

Shape legend: T rows, E events, R windows, H horizon.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from data_provider.event_wordings import HELD_OUT, Wordings, wordings
from data_provider.series import FloatArray, Series
from data_provider.splits import split_rows
from data_provider.texts import IntArray
from utils.data_sets import CUSTOM
from utils.errors import UserError

STREAM = 6
"""Which of a seed's streams is that of events: a made-up series draws from those before."""


@dataclass(frozen=True)
class EventConfig:
    """When events come, and how strong they are."""

    delay: int = 2
    """Rows from a notice to its event: at a lag of one row it is seen by a window with all of it ahead."""
    length: int = 24
    """Rows that an event lasts."""
    pause: int = 24
    """Rows from an event to the next notice, in the mean; any number from 0 to twice as many."""
    strength: float = 1.0
    """What effects of +-0.5, +-1 or +-2 are multiplied by, in deviations of the column without events."""


DEFAULT_EVENTS = EventConfig()


@dataclass(frozen=True, eq=False)
class EventSeries:
    """A series, the notices of its events, and what these do to it."""

    series: Series
    texts: pd.DataFrame
    """[E] with columns start, end and text, as a file of texts; each ends half a step before its row."""
    rows: IntArray
    """[E] the first row at which a notice has been written."""
    begins: IntArray
    """[E] the first row of each event."""
    effects: FloatArray
    """[E] by how much the last column is another in its rows."""
    held_out: NDArray[np.bool_]
    """[E] whether the notice is worded in words held out: those of the test part."""
    length: int
    """Rows of an event."""

    def hidden(self, last: Sequence[int] | IntArray, horizon: int) -> FloatArray:
        """[R, H] what events that begin after the windows' ``last`` rows [R] add to the rows ahead.

        Its mean is 0 whatever was seen before: without texts the mean of its squares is the least that it
        adds to a forecast's mean squared error.
        """
        ahead = np.asarray(last)[:, None] + 1 + np.arange(horizon)  # [R, H]
        place = np.searchsorted(self.begins, ahead, side="right") - 1
        begin = self.begins[np.maximum(place, 0)]
        own = (place >= 0) & (ahead < begin + self.length) & (begin > np.asarray(last)[:, None])
        return np.where(own, self.effects[np.maximum(place, 0)], 0.0)


def with_events(
    series: Series, *, split: int, seed: int, events: EventConfig = DEFAULT_EVENTS
) -> EventSeries:
    """The series with events in its last column.

    Args:
        series: of T rows.
        split: of the wordings, 0 to 4.
        seed: of times, sizes and words.
        events: when they come and how strong they are.

    Raises:
        UserError: there is no such split, or a number that can not be, or no event has room.
    """
    if not 0 <= split < len(HELD_OUT):
        raise UserError(
            f"--events: expected a split of the wordings, 0 to {len(HELD_OUT) - 1}, found {split}"
        )
    if events.delay < 1 or events.length < 1 or events.pause < 0:
        raise UserError(
            f"expected a delay and a length of 1 row or more, a pause of 0 or more, found {events}"
        )
    rng = np.random.default_rng(np.random.SeedSequence(seed).spawn(STREAM + 1)[STREAM])
    rows = len(series.values)
    test = split_rows(CUSTOM, rows, seq_len=1, pred_len=1).test.begin + 1
    places = _places(rows, test, events, rng)
    if not len(places):
        raise UserError(
            f"--events: expected rows for a notice, {events.delay} more and an event, found {rows}"
        )
    held_out = places >= test
    learned, kept = wordings(split, held_out=False), wordings(split, held_out=True)
    notices = [_notice(kept if own else learned, rng) for own in held_out]
    unit = events.strength * float(series.values[:, -1].std())
    effects = np.array([unit * effect for _, effect in notices])
    begins = places + events.delay
    values = series.values.copy()
    for begin, effect in zip(begins, effects, strict=True):
        values[begin : begin + events.length, -1] += effect
    written = series.dates[places] - _half_step(series.dates)
    return EventSeries(
        series=Series.from_values(
            series.name,
            values=values,
            dates=series.dates,
            columns=series.columns,
            frequency=series.frequency,
        ),
        texts=pd.DataFrame({"start": written, "end": written, "text": [text for text, _ in notices]}),
        rows=places,
        begins=begins,
        effects=effects,
        held_out=held_out,
        length=events.length,
    )


def _places(rows: int, test: int, events: EventConfig, rng: np.random.Generator) -> IntArray:
    """[E] the rows of the notices: every event lies in the part of its notice."""
    found: list[int] = []
    row = int(rng.integers(1, 2 + 2 * events.pause))
    taken = events.delay + events.length
    while True:
        if row < test < row + taken:
            row = test
        if row + taken > rows:
            return np.array(found, dtype=np.int64)
        found.append(row)
        row += taken + int(rng.integers(0, 1 + 2 * events.pause))


def _notice(words: Wordings, rng: np.random.Generator) -> tuple[str, float]:
    """A notice and its effect: direction, size, verb, word of size and template, each as likely as others."""
    sign = (1, -1)[rng.integers(2)]
    size = tuple(words.sizes)[rng.integers(len(words.sizes))]
    verb, word, template = (
        choices[rng.integers(len(choices))]
        for choices in (words.verbs[sign], words.sizes[size], words.templates)
    )
    return template.format(verb=verb, size=word), sign * size


def _half_step(dates: pd.DatetimeIndex) -> pd.Timedelta:
    return pd.Timedelta(np.diff(dates.as_unit("us").asi8).min() // 2, unit="us")
