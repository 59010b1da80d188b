"""M4: many short series of different lengths, as windows for the one training loop.

A series' last horizon before the test is its validation; training windows lie wholly before that, so
neither reaches into the test. There are no dates: the time marks hold the insample mask, 1 where a
row of the lookback exists and 0 where the series has not begun, as in the family's code.

Each series is divided by a scale of its own training part, without an offset: SMAPE and MASE are the
same in any unit.

Shape legend: S series, H horizon.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_provider.download import ensure_data
from data_provider.panel import FloatArray, Panel
from data_provider.panel_windows import PanelDataset, PanelSource, PanelWindows, Places
from utils.config import Config, DataConfig
from utils.data_sets import M4, M4_PATTERNS, M4Pattern
from utils.errors import UserError, using_file
from utils.m4_scores import mase_scale, naive2
from utils.types import DataBundle, SeriesIdentity, SeriesReference, Standardisation

SMALLEST_SCALE = 0.01
"""Of a series' scale, as a share of its level: an almost constant one is not blown up to noise."""
COLUMN = "value"


def build_m4(config: Config) -> DataBundle:
    """The windows of one group of M4 (``--seasonal_patterns``), read from ``--root_path``.

    Raises:
        OSError: if a file is not there and can not be had.
        ValueError: if one is at fault, or no series is long enough for a training window.
    """
    data, name = config.data, config.data.seasonal_patterns
    pattern = M4_PATTERNS[name]
    files = ensure_data(M4, data.root_path, wanted=lambda file: file.name.startswith(name))
    panel = read_competition(*(file.path for file in files), horizon=pattern.horizon)
    return competition_data(
        panel,
        name=f"{M4} {name}",
        pattern=pattern,
        data=data,
        notes={file.path.name: file.sha256 for file in files},
    )


def competition_data(
    panel: Panel, *, name: str, pattern: M4Pattern, data: DataConfig, notes: Mapping[str, str]
) -> DataBundle:
    """The windows of a competition's series without dates, whose last horizon is the test.

    Raises:
        UserError: no series is long enough for a training window.
    """
    horizon, known = pattern.horizon, panel.lengths - pattern.horizon
    scale = np.array([scale_of(panel.of(s)[: -2 * horizon]) for s in range(len(known))])
    windows = PanelWindows(
        torch.from_numpy(panel.values / np.repeat(scale, panel.lengths)).float(),
        torch.from_numpy(panel.begins),
        _ids(panel, horizon),
        seq_len=data.seq_len,
        pred_len=horizon,
    )
    places = training_places(known - horizon, horizon, history=pattern.history)
    if not len(places):
        raise UserError(f"{name}: expected series of {2 * horizon + 1} values or more, found none")
    train = PanelDataset(windows, places)
    evaluated = torch.arange(len(known))[:: data.eval_stride]
    validation, test = (
        PanelDataset(windows, _last_of(windows, s, held), _reference(windows, s, held, pattern.season))
        for s, held in ((evaluated, 2 * horizon), (torch.arange(len(known)), horizon))
    )
    content = _content_hash(panel, horizon)
    return DataBundle(
        name=name,
        train=train,
        validation=validation,
        test=test,
        source=PanelSource(train, series_id=int(content[:15], 16)),
        standardisation=Standardisation(
            torch.zeros(len(scale), dtype=torch.float64), torch.from_numpy(scale)
        ),
        columns=(COLUMN,),
        targets=(COLUMN,),
        frequency=pattern.frequency,
        season=data.season or pattern.season,
        content_hash=content,
        identity=SeriesIdentity(0, 0, 0),  # a collection: no single series was trained on
        tested=name,
        test_targets=(COLUMN,),
        windows=(len(train), len(validation), len(test)),
        notes={
            **notes,
            **_notes(panel, horizon, trained=int((places.counts > 0).sum()), season=pattern.season),
        },
    )


def _last_of(windows: PanelWindows, series: Tensor, held_out: int) -> Places:
    """One window of each of these series, ``held_out`` rows before its end."""
    counts = torch.zeros_like(windows.lengths)
    counts[series] = 1
    return Places(windows.lengths - held_out, counts)


def _content_hash(panel: Panel, horizon: int) -> str:
    """sha256 of all values, past and future, and of where each series begins."""
    known = np.concatenate([panel.of(s)[:-horizon] for s in range(len(panel.ids))])
    begins = np.r_[0, np.cumsum(panel.lengths - horizon)].astype(np.int64)
    future = np.stack([panel.of(s)[-horizon:] for s in range(len(panel.ids))])
    content = hashlib.sha256(known.data)
    content.update(begins.data)
    content.update(np.ascontiguousarray(future).data)
    return content.hexdigest()


def _notes(panel: Panel, horizon: int, *, trained: int, season: int) -> dict[str, str]:
    """What a reader of the results must know of the series; ``trained`` have a training window."""
    lengths = panel.lengths - horizon
    notes = {
        "series": f"{len(lengths)} series of {lengths.min()} to {lengths.max()} values; {trained} are long "
        "enough for a training window, all are validated on their last horizon before the test"
    }
    flat = sum(mase_scale(panel.of(i)[:-horizon], season) == 0 for i in range(len(lengths)))
    if flat:
        notes["constant"] = f"{flat} series do not change in sample and are left out of MASE"
    return notes


def training_places(lengths: NDArray[np.int64], horizon: int, *, history: float) -> Places:
    """Every training window of series of these lengths [S], validation not counted.

    One known row before the forecast at least, the whole future known, and the forecast within the last
    ``history`` horizons.
    """
    first = np.maximum(1, lengths - int(history * horizon))
    counts = np.maximum(0, lengths - horizon - first + 1)
    return Places(torch.from_numpy(first), torch.from_numpy(counts))


def scale_of(values: FloatArray) -> float:
    """What a series is divided by: its deviation, or a hundredth of its level where that is more."""
    if not len(values):
        return 1.0
    return float(max(values.std(), SMALLEST_SCALE * np.abs(values).mean())) or 1.0


def read_competition(train: Path, test: Path, *, horizon: int) -> Panel:
    """The series of two files of the competition, known values and those to forecast behind each other.

    In each file a line is one series: an id, then the values.

    Raises:
        ValueError: for anything wrong; the message names file, series and place.
    """
    known, asked = _read_lines(train), _read_lines(test)
    if list(known) != list(asked):
        odd = next(iter(set(known) ^ set(asked)), "another order")
        raise UserError(f"{test}: expected the series of {train.name} in their order, found {odd}")
    for name in known:
        if len(asked[name]) != horizon:
            raise UserError(f"{test}: series {name}: expected {horizon} values, found {len(asked[name])}")
        if len(known[name]) <= horizon:
            raise UserError(
                f"{train}: series {name}: expected more than {horizon} values, found {len(known[name])}"
            )
    return panel_of({name: np.r_[known[name], asked[name]] for name in known})


def panel_of(series: Mapping[str, FloatArray]) -> Panel:
    """Series without dates by their ids, as a panel."""
    return Panel(
        name=COLUMN,
        ids=tuple(series),
        values=np.concatenate(list(series.values())),
        begins=np.r_[0, np.cumsum([len(values) for values in series.values()])].astype(np.int64),
        frequency="",
    )


def _read_lines(path: Path) -> dict[str, FloatArray]:
    """Values by id; the header line is passed over, and so are the empty fields behind a series' end."""
    found: dict[str, FloatArray] = {}
    with using_file(path), path.open(encoding="utf-8-sig", errors="replace") as file:
        next(file, None)
        for number, line in enumerate(file, start=2):
            name, _, rest = line.strip().rstrip(",").replace('"', "").partition(",")
            if not name:
                continue
            try:
                values = np.array(rest.split(","), dtype=np.float64)
            except ValueError as error:
                raise UserError(
                    f"{path}, line {number}, series {name}: expected numbers, found {error}"
                ) from None
            if name in found or not np.isfinite(values).all():
                problem = "a second one of this name" if name in found else "one that is missing or infinite"
                raise UserError(
                    f"{path}, line {number}, series {name}: expected finite values, found {problem}"
                )
            found[name] = values
    if not found:
        raise UserError(f"{path}: expected a header line and series below it, found none")
    return found


def _ids(panel: Panel, horizon: int) -> Tensor:
    """63 bits of the sha256 of each series' name and known values, [S]."""
    digests = (
        hashlib.sha256(name.encode() + panel.of(number)[:-horizon].tobytes()).digest()
        for number, name in enumerate(panel.ids)
    )
    return torch.tensor([max(1, int.from_bytes(digest[:8], "big") >> 1) for digest in digests])


def _reference(windows: PanelWindows, series: Tensor, held_out: int, season: int) -> SeriesReference:
    """What forecasts of these series are scored against, ``held_out`` of their last rows unknown."""
    scale, benchmark = [], []
    for number in series.tolist():
        known = (
            windows.values[windows.begins[number] : windows.begins[number + 1] - held_out].double().numpy()
        )
        scale.append(mase_scale(known, season))
        benchmark.append(naive2(known, windows.pred_len, season))
    order = windows.ids[series].argsort()
    return SeriesReference(
        series_id=windows.ids[series][order],
        scale=torch.tensor(scale, dtype=torch.float64)[order],
        naive2=torch.from_numpy(np.stack(benchmark))[order],
    )
