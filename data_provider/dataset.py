"""Windows of a standardised series, one by one for loaders and by the thousand for the memory.

Shape legend: T rows, N variables, M of them forecast (the last ones), L lookback,
H horizon, F time marks, W windows, R rows asked for.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from data_provider.covariates import RowsBeside
from data_provider.splits import Split
from utils.types import Batch, RowCovariates, TextWindows, WindowRows


class WindowDataset(Dataset[Batch]):
    """The windows of one part of a series, as unbatched `Batch` items.

    With joint sampling item ``i`` is window ``i`` with all variables, x [L, N]. With single
    sampling it is variable ``i // W`` of window ``i % W``, x [L, 1]: the channel-independent
    counting of the published Time-LLM.
    """

    def __init__(
        self,
        values: Tensor,
        marks: Tensor,
        split: Split,
        *,
        seq_len: int,
        pred_len: int,
        series_id: int,
        channel_sampling: Literal["joint", "single"] = "joint",
        stride: int = 1,
        n_targets: int | None = None,
        texts: TextWindows | None = None,
        beside: RowsBeside | None = None,
        floor: Tensor | None = None,
    ) -> None:
        """Keep views of the whole series; nothing is copied.

        Args:
            values: the whole series [T, N] float32, standardised.
            marks: its time marks [T, F] float32.
            split: the rows of this part.
            seq_len: lookback L.
            pred_len: horizon H.
            series_id: content hash of the series.
            channel_sampling: all variables of a window per item, or one.
            stride: distance between the starts of successive windows; 1 takes them all.
            n_targets: how many variables are forecast, the last ones; all by default.
            texts: of the series, where windows are told of them.
            beside: what is known beside the series, for as many rows as it is.
            floor: what no forecast is below, [M] float32, standardised.

        Raises:
            ValueError: the split reaches beyond the values or the marks.
        """
        if split.end > len(values) or len(values) != len(marks):
            raise ValueError(
                f"split: expected rows up to {split.end} in values and marks alike, "
                f"found {len(values)} and {len(marks)}"
            )
        self.values, self.marks, self.split = values, marks, split
        self.beside, self.floor = beside, floor
        self.seq_len, self.pred_len, self.stride = seq_len, pred_len, stride
        self.channel_sampling = channel_sampling
        self.num_variables = values.shape[1]
        self.num_windows = -(-split.num_windows(seq_len, pred_len) // stride)
        self._series_id = torch.tensor(series_id, dtype=torch.int64)
        self._texts = texts
        self._n_targets = n_targets or self.num_variables
        self._targets = torch.arange(self._n_targets)

    def __len__(self) -> int:
        """Items: W with joint sampling, W * N with single."""
        return self.num_windows * (self.num_variables if self.channel_sampling == "single" else 1)

    def __getitem__(self, index: int) -> Batch:
        """Item ``index``; its start is the absolute row in the whole series."""
        if not 0 <= index < len(self):
            raise IndexError(f"window: expected 0 to {len(self) - 1}, found {index}")
        variable, window = divmod(index, self.num_windows)
        joint = self.channel_sampling == "joint"
        chosen = slice(None) if joint else slice(variable, variable + 1)
        wanted = slice(self.num_variables - self._n_targets, None) if joint else chosen
        start = self.split.begin + window * self.stride
        middle, end = start + self.seq_len, start + self.seq_len + self.pred_len
        targets = slice(None) if joint else chosen
        beside = {} if self.beside is None else self.beside.of_window(start, middle, end, targets)
        if self.floor is not None:
            beside["floor"] = self.floor[targets]
        item = Batch(
            x=self.values[start:middle, chosen],  # [L, N] or [L, 1]
            y=self.values[middle:end, wanted],  # [H, M] or [H, 1]
            x_mark=self.marks[start:middle],  # [L, F]
            y_mark=self.marks[middle:end],  # [H, F]
            start=torch.tensor(start),
            series_id=self._series_id,
            variable=self._targets if joint else self._targets[chosen],  # [M] or [1]
            **beside,
        )
        if self._texts is None:
            return item
        places, ages = (part[0] for part in self._texts.seen(torch.tensor([middle - 1])))  # [V, C]
        own = slice(None) if joint or len(places) == 1 else chosen
        return item._replace(text=self._texts.reading.of(places[own]), text_age=ages[own])


class TrainingWindows:
    """Random access to all windows of the training part (a `utils.types.WindowSource`).

    Row ``r`` is variable ``r // W`` of window ``r % W``, whatever sampling the training uses.
    """

    def __init__(
        self,
        values: Tensor,
        split: Split,
        *,
        seq_len: int,
        pred_len: int,
        series_id: int,
        marks: Tensor | None = None,
        beside: RowsBeside | None = None,
    ) -> None:
        """Keep views of the training rows of ``values`` [T, N] float32, standardised, and of their marks.

        ``beside`` is what is known beside the whole series.
        """
        self._beside = beside
        self.split, self.seq_len, self.pred_len, self.series_id = split, seq_len, pred_len, series_id
        self.num_windows = split.num_windows(seq_len, pred_len)
        self.num_variables = values.shape[1]
        self._marks = None if marks is None else marks[split.begin : split.end]
        part = values[split.begin : split.end]
        self._windows = part.unfold(0, seq_len + pred_len, 1)  # [W, N, L + H], a view
        self._lookbacks = part.unfold(0, seq_len, 1)  # [W + H, N, L], a view

    @property
    def num_rows(self) -> int:
        """``num_windows * num_variables``."""
        return self.num_windows * self.num_variables

    def rows(self, index: Tensor) -> WindowRows:
        """The rows with these numbers, ``index`` [R] int64 in [0, num_rows), on the CPU.

        Raises:
            IndexError: for a number outside.
        """
        index = index.to(self._windows.device)
        _check_range("row", index, 0, self.num_rows - 1)
        variable, window = index // self.num_windows, index % self.num_windows
        both = self._windows[window, variable]  # [R, L + H]
        return WindowRows(
            lookback=both[:, : self.seq_len].contiguous(),
            future=both[:, self.seq_len :].contiguous(),
            series_id=torch.full_like(index, self.series_id),
            variable=variable,
            start=window + self.split.begin,
            marks=None if self._marks is None else self._marks[window + self.seq_len - 1],
        )

    def covariates(self, index: Tensor) -> RowCovariates:
        """What is known beside these rows, ``index`` [R] as for `rows`."""
        assert self._beside is not None, "a source without covariates was asked for them"
        index = index.to(self._windows.device)
        start = index % self.num_windows + self.split.begin
        span = self.seq_len + self.pred_len
        return self._beside.of_rows(start, index // self.num_windows, seq_len=self.seq_len, span=span)

    def holds(self, series_id: Tensor) -> bool:
        """Whether all of these ids are this series'."""
        return not bool((series_id != self.series_id).any())

    def lookbacks(self, *, series_id: Tensor, variable: Tensor, start: Tensor) -> Tensor:
        """The lookbacks [R, L] that begin at these absolute positions of these variables.

        Args:
            series_id: [R] int64, this series' own.
            variable: [R] int64 in [0, N).
            start: [R] int64; the whole lookback must lie in the training part.

        Raises:
            IndexError: for another series, a variable that is not there or a lookback that leaves the part.
        """
        if not self.holds(series_id):
            raise IndexError(f"series_id: expected {self.series_id} alone, found another")
        variable, start = variable.to(self._lookbacks.device), start.to(self._lookbacks.device)
        _check_range("variable", variable, 0, self.num_variables - 1)
        _check_range("start", start, self.split.begin, self.split.end - self.seq_len)
        return self._lookbacks[start - self.split.begin, variable]


def _check_range(name: str, values: Tensor, low: int, high: int) -> None:
    """Raise IndexError at the first of ``values`` outside ``low`` to ``high``."""
    outside = values[(values < low) | (values > high)]
    if len(outside):
        raise IndexError(f"{name}: expected {low} to {high} in the training part, found {int(outside[0])}")
