"""M4: many short series of different lengths, as windows for the one training loop.

A series' last horizon before the test is its validation; training windows lie wholly before that, so
neither reaches into the test. There are no dates: the time marks hold the insample mask, 1 where a
row of the lookback exists and 0 where the series has not begun, as in the family's code.

Each series is divided by a scale of its own training part, without an offset: SMAPE and MASE are the
same in any unit.

Shape legend: S series, L lookback, H horizon, R rows asked for.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from data_provider.download import ensure_data
from utils.config import Config
from utils.data_sets import M4, M4_PATTERNS
from utils.errors import UserError, using_file
from utils.m4_scores import mase_scale, naive2
from utils.types import Batch, DataBundle, SeriesIdentity, SeriesReference, Standardisation, WindowRows

FloatArray = NDArray[np.float64]
SMALLEST_SCALE = 0.01
"""Of a series' scale, as a share of its level: an almost constant one is not blown up to noise."""
COLUMN = "value"


class Collection(NamedTuple):
    """Series of different lengths behind each other."""

    names: list[str]
    """[S]."""
    values: FloatArray
    """All series' known values, original units."""
    begins: NDArray[np.int64]
    """[S + 1], where each begins, and the end of the last."""
    future: FloatArray
    """[S, H], the values to forecast."""

    def of(self, series: int) -> FloatArray:
        """The known values of one series."""
        return self.values[self.begins[series] : self.begins[series + 1]]


class Windows:
    """Lookbacks and futures of a collection, standardised, by series and by the row they are cut at.

    A cut is the row at which the forecast begins. Rows before a series' first hold the mean of the
    lookback's others, and 0 in the mask.
    """

    def __init__(self, values: Tensor, begins: Tensor, future: Tensor, ids: Tensor, seq_len: int) -> None:
        """``values`` [all rows], ``begins`` [S + 1], ``future`` [S, H]; ``ids`` [S] name the series."""
        self.values, self.begins, self.future, self.ids = values, begins, future, ids
        self.lengths = begins[1:] - begins[:-1]
        self.seq_len, self.pred_len = seq_len, future.shape[1]
        self.order = ids.argsort()

    def lookbacks(self, series: Tensor, cut: Tensor) -> tuple[Tensor, Tensor]:
        """(lookbacks, masks) [R, L] of these series [R], before these cuts [R]."""
        rows = cut[:, None] - self.seq_len + torch.arange(self.seq_len)
        there = rows >= 0
        found = self.values[self.begins[series][:, None] + rows.clamp(min=0)]
        mask = there.to(found.dtype)
        mean = (found * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)
        return torch.where(there, found, mean), mask

    def futures(self, series: Tensor, cut: Tensor) -> Tensor:
        """Futures [R, H] behind these cuts: the test's where the cut is the series' end."""
        at_end = cut >= self.lengths[series]
        rows = self.begins[series][:, None] + cut[:, None] + torch.arange(self.pred_len)
        known = self.values[rows.clamp(max=len(self.values) - 1)]
        return torch.where(at_end[:, None], self.future[series], known)

    def numbered(self, series_id: Tensor) -> Tensor:
        """Which series these ids [R] name.

        Raises:
            IndexError: for an id that is none of them.
        """
        place = torch.searchsorted(self.ids[self.order], series_id).clamp(max=len(self.ids) - 1)
        found = self.order[place]
        if bool((self.ids[found] != series_id).any()):
            raise IndexError("series_id: expected series of this collection, found another")
        return found


class M4Dataset(Dataset[Batch]):
    """Windows of a collection as unbatched `Batch` items: x [L, 1], y [H, 1], marks the masks."""

    def __init__(
        self, windows: Windows, series: Tensor, cut: Tensor, reference: SeriesReference | None = None
    ) -> None:
        """Item ``i`` is series ``series[i]``, cut at row ``cut[i]``; ``reference`` scores it."""
        self.windows, self.series, self.cut, self.reference = windows, series, cut, reference

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.series)

    def __getitem__(self, index: int) -> Batch:
        """Item ``index``; its start is below 0 where the series is shorter than the lookback."""
        if not 0 <= index < len(self):
            raise IndexError(f"window: expected 0 to {len(self) - 1}, found {index}")
        series, cut = self.series[index : index + 1], self.cut[index : index + 1]
        lookback, mask = self.windows.lookbacks(series, cut)
        return Batch(
            x=lookback.T,  # [L, 1]
            y=self.windows.futures(series, cut).T,  # [H, 1]
            x_mark=mask.T,
            y_mark=torch.ones(self.windows.pred_len, 1),
            start=cut[0] - self.windows.seq_len,
            series_id=self.windows.ids[series[0]],
            variable=torch.zeros(1, dtype=torch.int64),
        )


class M4Source:
    """Random access to the training windows (a `utils.types.WindowSource` of one variable)."""

    num_variables = 1

    def __init__(self, training: M4Dataset, *, series_id: int) -> None:
        """``series_id`` names the collection."""
        self.training, self.series_id = training, series_id
        self.num_windows = len(training)

    @property
    def num_rows(self) -> int:
        """One for each window."""
        return self.num_windows

    def holds(self, series_id: Tensor) -> bool:
        """Whether all of these ids name series of this collection."""
        return bool(torch.isin(series_id.cpu(), self.training.windows.ids).all())

    def rows(self, index: Tensor) -> WindowRows:
        """The rows with these numbers.

        Raises:
            IndexError: a row outside 0 to ``num_rows`` - 1.
        """
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < self.num_rows:
            raise IndexError(f"row: expected 0 to {self.num_rows - 1}, found {index.tolist()[:3]}")
        windows = self.training.windows
        series, cut = self.training.series[index], self.training.cut[index]
        return WindowRows(
            lookback=windows.lookbacks(series, cut)[0],
            future=windows.futures(series, cut),
            series_id=windows.ids[series],
            variable=torch.zeros_like(series),
            start=cut - windows.seq_len,
        )

    def lookbacks(self, *, series_id: Tensor, variable: Tensor, start: Tensor) -> Tensor:
        """The lookbacks [R, L] that begin at these rows of these series.

        Raises:
            IndexError: another variable than 0, the only one.
        """
        if bool(variable.any()):
            raise IndexError(f"variable: expected 0, the only one, found {int(variable.max())}")
        windows = self.training.windows
        return windows.lookbacks(windows.numbered(series_id), start + windows.seq_len)[0]


def build_m4(config: Config) -> DataBundle:
    """The windows of one group of M4 (``--seasonal_patterns``), read from ``--root_path``.

    Raises:
        OSError: if a file is not there and can not be had.
        ValueError: if one is at fault, or no series is long enough for a training window.
    """
    data, name = config.data, config.data.seasonal_patterns
    pattern = M4_PATTERNS[name]
    files = ensure_data(M4, data.root_path, wanted=lambda file: file.name.startswith(name))
    collection = read_collection(*(file.path for file in files), horizon=pattern.horizon)
    lengths = np.diff(collection.begins)
    scale = np.array([scale_of(collection.of(s)[: -pattern.horizon]) for s in range(len(lengths))])
    windows = _windows(collection, scale, seq_len=data.seq_len)
    series, cut = training_cuts(lengths - pattern.horizon, pattern.horizon, history=pattern.history)
    if not len(series):
        raise UserError(f"M4 {name}: expected series of {2 * pattern.horizon + 1} values or more, found none")
    train = M4Dataset(windows, series, cut)
    every = torch.arange(len(lengths))
    evaluated = every[:: data.eval_stride]
    validation, test = (
        M4Dataset(windows, s, windows.lengths[s] - held_out, _reference(windows, s, held_out, pattern.season))
        for s, held_out in ((evaluated, pattern.horizon), (every, 0))
    )
    content = _content_hash(collection)
    notes = {file.path.name: file.sha256 for file in files}
    notes |= _notes(collection, trained=len(series.unique()), season=pattern.season)
    return DataBundle(
        name=f"{M4} {name}",
        train=train,
        validation=validation,
        test=test,
        source=M4Source(train, series_id=int(content[:15], 16)),
        standardisation=Standardisation(
            torch.zeros(len(scale), dtype=torch.float64), torch.from_numpy(scale)
        ),
        columns=(COLUMN,),
        targets=(COLUMN,),
        frequency=pattern.frequency,
        season=data.season or pattern.season,
        content_hash=content,
        identity=SeriesIdentity(0, 0, 0),  # a collection: no single series was trained on
        tested=f"{M4} {name}",
        test_targets=(COLUMN,),
        windows=(len(train), len(validation), len(test)),
        notes=notes,
    )


def _windows(collection: Collection, scale: FloatArray, *, seq_len: int) -> Windows:
    """The windows of a collection, each series divided by its ``scale`` [S]."""
    values = collection.values / np.repeat(scale, np.diff(collection.begins))
    return Windows(
        torch.from_numpy(values).float(),
        torch.from_numpy(collection.begins),
        torch.from_numpy(collection.future / scale[:, None]).float(),
        _ids(collection),
        seq_len,
    )


def _content_hash(collection: Collection) -> str:
    """sha256 of all values, past and future, and of where each series begins."""
    content = hashlib.sha256(collection.values.data)
    content.update(collection.begins.data)
    content.update(np.ascontiguousarray(collection.future).data)
    return content.hexdigest()


def _notes(collection: Collection, *, trained: int, season: int) -> dict[str, str]:
    """What a reader of the results must know of the series; ``trained`` have a training window."""
    lengths = np.diff(collection.begins)
    notes = {
        "series": f"{len(lengths)} series of {lengths.min()} to {lengths.max()} values; {trained} are long "
        "enough for a training window, all are validated on their last horizon before the test"
    }
    flat = sum(mase_scale(collection.of(i), season) == 0 for i in range(len(lengths)))
    if flat:
        notes["constant"] = f"{flat} series do not change in sample and are left out of MASE"
    return notes


def training_cuts(lengths: NDArray[np.int64], horizon: int, *, history: float) -> tuple[Tensor, Tensor]:
    """(series, cut) of every training window of series of these lengths [S], validation not counted.

    One known row before the forecast at least, the whole future known, and the forecast within the last
    ``history`` horizons.
    """
    first = np.maximum(1, lengths - int(history * horizon))
    counts = np.maximum(0, lengths - horizon - first + 1)
    series = np.repeat(np.arange(len(lengths)), counts)
    offset = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return torch.from_numpy(series), torch.from_numpy(first[series] + offset)


def scale_of(values: FloatArray) -> float:
    """What a series is divided by: its deviation, or a hundredth of its level where that is more."""
    if not len(values):
        return 1.0
    return float(max(values.std(), SMALLEST_SCALE * np.abs(values).mean())) or 1.0


def read_collection(train: Path, test: Path, *, horizon: int) -> Collection:
    """The series of two files of the competition: an id, then the values, one series a line.

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
    lengths = [len(values) for values in known.values()]
    return Collection(
        names=list(known),
        values=np.concatenate(list(known.values())),
        begins=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        future=np.stack(list(asked.values())),
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


def _ids(collection: Collection) -> Tensor:
    """63 bits of the sha256 of each series' name and values, [S]."""
    digests = (
        hashlib.sha256(name.encode() + collection.of(number).tobytes()).digest()
        for number, name in enumerate(collection.names)
    )
    return torch.tensor([max(1, int.from_bytes(digest[:8], "big") >> 1) for digest in digests])


def _reference(windows: Windows, series: Tensor, held_out: int, season: int) -> SeriesReference:
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
