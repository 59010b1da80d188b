"""Windows of a panel: one by one for loaders, by the thousand for the memory.

A window is a series and a cut, the row at which its forecast begins. Rows before a series' first hold the
mean of the lookback's others, and 0 in the mask; rows behind its last are NaN.

Shape legend: S series, R rows asked for, C times of the calendar, L lookback, H horizon, F time marks.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import Dataset

from utils.types import Batch, SeriesReference, Standardisation, WindowRows


class PanelWindows:
    """Lookbacks and futures of a panel, standardised, by series and by cut."""

    def __init__(
        self,
        values: Tensor,
        begins: Tensor,
        ids: Tensor,
        *,
        seq_len: int,
        pred_len: int,
        first: Tensor | None = None,
        marks: Tensor | None = None,
        offset: int = 0,
        scales: Standardisation | None = None,
    ) -> None:
        """Keep views.

        Args:
            values: of all series behind each other, float32, standardised.
            begins: where each begins, and the end of the last, [S + 1].
            ids: the number of each, [S].
            seq_len: L.
            pred_len: H.
            first: place of each one's first row in the calendar, [S]; None without dates: 0.
            marks: time marks of the calendar, [C, F], at least H times behind the last; None without dates:
                those of a window are its mask.
            offset: the place in the calendar that the first marks are of.
            scales: what the values were standardised by, [S].
        """
        self.offset, self.scales = offset, scales
        self.values, self.begins, self.ids, self.marks = values, begins, ids, marks
        self.first = torch.zeros_like(ids) if first is None else first
        self.lengths = begins[1:] - begins[:-1]
        self.seq_len, self.pred_len = seq_len, pred_len
        self.order = ids.argsort()

    def lookbacks(self, series: Tensor, cut: Tensor) -> tuple[Tensor, Tensor]:
        """(lookbacks, masks) [R, L] of these series [R], before these cuts [R]."""
        rows = cut[:, None] - self.seq_len + torch.arange(self.seq_len)
        found = self.values[self.begins[series][:, None] + rows.clamp(min=0)]
        there = rows >= 0
        mask = there.to(found.dtype)
        if bool(there.all()):
            return found, mask
        mean = (found * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)
        return torch.where(there, found, mean), mask

    def futures(self, series: Tensor, cut: Tensor) -> Tensor:
        """Futures [R, H] behind these cuts."""
        rows = cut[:, None] + torch.arange(self.pred_len)
        found = self.values[(self.begins[series][:, None] + rows).clamp(max=len(self.values) - 1)]
        return found.masked_fill(rows >= self.lengths[series][:, None], torch.nan)

    def starts(self, series: Tensor, cut: Tensor) -> Tensor:
        """Where these lookbacks begin [R]: in the calendar, or without dates in the series."""
        return self.first[series] + cut - self.seq_len

    def calendar_marks(self, start: Tensor, rows: int) -> Tensor:
        """Time marks [R, rows, F] of the rows from ``start`` [R] on."""
        assert self.marks is not None
        return self.marks[(start - self.offset)[:, None] + torch.arange(rows)]

    def numbered(self, series_id: Tensor) -> Tensor:
        """Which series these ids [R] name.

        Raises:
            IndexError: for an id that is none of them.
        """
        place = torch.searchsorted(self.ids[self.order], series_id).clamp(max=len(self.ids) - 1)
        found = self.order[place]
        if bool((self.ids[found] != series_id).any()):
            raise IndexError("series_id: expected series of this panel, found another")
        return found


class Places:
    """Which windows there are: of each series those cut at successive rows."""

    def __init__(self, first: Tensor, counts: Tensor, chosen: Tensor | None = None) -> None:
        """Of series ``s`` the ``counts[s]`` cuts from ``first[s]`` on; of all these the ``chosen``."""
        self.first, self.counts, self.chosen = first, counts, chosen
        self.ends = counts.cumsum(0)

    def __len__(self) -> int:
        """Number of windows."""
        return int(self.ends[-1]) if self.chosen is None else len(self.chosen)

    def of(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """(series, cut) of the windows with these numbers, [R] each."""
        if self.chosen is not None:
            index = self.chosen[index]
        series = torch.searchsorted(self.ends, index, right=True)
        return series, self.first[series] + index - (self.ends[series] - self.counts[series])

    def of_all(self) -> tuple[Tensor, Tensor]:
        """(series, cut) of every window."""
        return self.of(torch.arange(len(self)))

    def every(self, stride: int, *, most: int | None = None) -> Places:
        """Each ``stride``-th window of every series, or of those ``most`` at even distances."""
        index = torch.arange(len(self))
        if stride > 1:
            series, cut = self.of_all()
            index = index[(cut - self.first[series]) % stride == 0]
        if most is not None and len(index) > most:
            index = index[torch.arange(most) * len(index) // most]
        return self if len(index) == len(self) else Places(self.first, self.counts, index)


class PanelDataset(Dataset[Batch]):
    """Windows of a panel as unbatched `Batch` items: x [L, 1], y [H, 1]."""

    def __init__(
        self, windows: PanelWindows, places: Places, reference: SeriesReference | None = None
    ) -> None:
        """Item ``i`` is window ``i`` of ``places``; ``reference`` scores it as M4 does."""
        self.windows, self.places, self.reference = windows, places, reference

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.places)

    def __getitem__(self, index: int) -> Batch:
        """Item ``index``."""
        if not 0 <= index < len(self):
            raise IndexError(f"window: expected 0 to {len(self) - 1}, found {index}")
        windows = self.windows
        series, cut = self.places.of(torch.tensor([index]))
        lookback, mask = windows.lookbacks(series, cut)
        start = windows.starts(series, cut)
        x_mark, y_mark = mask.T, torch.ones(windows.pred_len, 1)
        if windows.marks is not None:
            both = windows.calendar_marks(start, windows.seq_len + windows.pred_len)[0]
            x_mark, y_mark = both[: windows.seq_len], both[windows.seq_len :]
        return Batch(
            x=lookback.T,  # [L, 1]
            y=windows.futures(series, cut).T,  # [H, 1]
            x_mark=x_mark,
            y_mark=y_mark,
            start=start[0],
            series_id=windows.ids[series[0]],
            variable=torch.zeros(1, dtype=torch.int64),
        )


class PanelSource:
    """Random access to the training windows (a `utils.types.WindowSource` of one variable)."""

    num_variables = 1

    def __init__(self, training: PanelDataset, *, series_id: int) -> None:
        """``series_id`` names the panel."""
        self.training, self.series_id = training, series_id
        self.num_windows = len(training)

    @property
    def num_rows(self) -> int:
        """One for each window."""
        return self.num_windows

    def holds(self, series_id: Tensor) -> bool:
        """Whether all of these ids name series of this panel."""
        return bool(torch.isin(series_id.cpu(), self.training.windows.ids).all())

    def rows(self, index: Tensor) -> WindowRows:
        """The rows with these numbers.

        Raises:
            IndexError: a row outside 0 to ``num_rows`` - 1.
        """
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < self.num_rows:
            raise IndexError(f"row: expected 0 to {self.num_rows - 1}, found {index.tolist()[:3]}")
        windows = self.training.windows
        series, cut = self.training.places.of(index)
        start = windows.starts(series, cut)
        marks = None
        if windows.marks is not None:
            marks = windows.calendar_marks(start + windows.seq_len - 1, 1)[:, 0]
        return WindowRows(
            lookback=windows.lookbacks(series, cut)[0],
            future=windows.futures(series, cut),
            series_id=windows.ids[series],
            variable=torch.zeros_like(series),
            start=start,
            marks=marks,
        )

    def lookbacks(self, *, series_id: Tensor, variable: Tensor, start: Tensor) -> Tensor:
        """The lookbacks [R, L] that begin at these places of these series.

        Raises:
            IndexError: another variable than 0, the only one.
        """
        if bool(variable.any()):
            raise IndexError(f"variable: expected 0, the only one, found {int(variable.max())}")
        windows = self.training.windows
        series = windows.numbered(series_id)
        return windows.lookbacks(series, start - windows.first[series] + windows.seq_len)[0]
