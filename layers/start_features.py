"""What a solved start's maps read of a window: its lookback, its calendar, and what followed its neighbours.

Shape legend: S series or rows, L lookback, H horizon, C calendar columns, F kinds of neighbours, k neighbours
of all kinds.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from layers.calendar_columns import calendar_columns, calendar_width
from layers.retrieval.futures import KINDS, Kind, RetrievedFutures
from utils.config import KEY_SEASONS
from utils.errors import UserError
from utils.types import WindowSource
from utils.windows import floored_std


class StartFeatures(nn.Module):
    """Lookbacks [S, L], standardised, to features in deviations of the window from its mean."""

    calendar_mean: Tensor
    calendar_scale: Tensor

    def __init__(
        self,
        *,
        seq_len: int,
        horizon: int,
        season: int,
        retrieves: bool,
        marks: Sequence[str] = (),
        top_k: int | None = None,
        control: str = "none",
        draw: int = 0,
        one_calendar: bool = False,
        apart: int = 0,
    ) -> None:
        """An empty memory; no random number is drawn.

        Args:
            seq_len: L.
            horizon: H.
            season: rows of a season.
            retrieves: whether there is a memory.
            marks: names of the time marks, as `utils.frequency.mark_names` has them; none: no calendar.
            top_k: neighbours of each kind, in place of those of `layers.retrieval.futures.KINDS`.
            control: as ``--retrieval_control``.
            draw: which draw of random rows, for that.
            one_calendar: as for `RetrievedFutures`.
            apart: as for that.
        """
        super().__init__()
        self.seq_len, self.horizon, self.marks = seq_len, horizon, tuple(marks)
        self.retrieves = retrieves
        self.block = max(KEY_SEASONS * season, horizon)
        """Windows of a block for standard errors; fewer than a horizon's would share what they forecast."""
        kinds = KINDS if top_k is None else [Kind(top_k, kind.same_phase) for kind in KINDS]
        self.retrieved = RetrievedFutures(
            seq_len=seq_len,
            horizon=horizon,
            season=season,
            kinds=kinds,
            control=control,
            draw=draw,
            one_calendar=one_calendar,
            apart=apart,
        )
        self.calendar_width = calendar_width(marks)
        self.base_width = seq_len + self.calendar_width
        """L + C."""
        self.register_buffer("calendar_mean", torch.zeros(self.calendar_width))
        self.register_buffer("calendar_scale", torch.ones(self.calendar_width))

    @property
    def kinds(self) -> int:
        """F; 0 without retrieval."""
        return len(self.retrieved.kinds) if self.retrieves else 0

    def fill(self, source: WindowSource) -> None:
        """Remember the training rows, where there is retrieval."""
        if self.retrieves:
            self.retrieved.fill(source)

    def base(self, lookback: Tensor, marks: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised lookbacks and calendar columns [S, L + C], with their levels and deviations [S, 1].

        Columns are zeros without ``marks`` [S, F], those of each window's last known row.

        Raises:
            UserError: marks of another frequency.
        """
        mean, std = self.mean_and_std(lookback)
        normalised = (lookback.to(mean) - mean) / std
        if not self.calendar_width:
            return normalised, mean, std
        if marks is None:
            columns = normalised.new_zeros(len(normalised), self.calendar_width)
        elif marks.shape[1] == len(self.marks):
            columns = (calendar_columns(marks, self.marks) - self.calendar_mean) / self.calendar_scale
        else:
            raise UserError(
                f"the start reads {len(self.marks)} time marks ({', '.join(self.marks)}) of each window's "
                f"last row, found {marks.shape[1]}: forecast rows of the frequency that it was fitted on"
            )
        return torch.cat([normalised, columns.to(normalised)], dim=1), mean, std

    @staticmethod
    def mean_and_std(lookback: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and floored deviation of lookbacks [S, L], [S, 1] each, in float64 where there is that."""
        values = lookback if lookback.device.type == "mps" else lookback.double()
        return values.mean(dim=1, keepdim=True), floored_std(values)[:, None]

    def history(self, lookback: Tensor, mean: Tensor, std: Tensor, rows: Tensor) -> Tensor:
        """What followed the rows of each kind, moved to the lookback's last value, normalised: [S, F, H]."""
        moved = self.retrieved.means(rows).to(mean) + lookback[:, -1:, None].to(mean)
        return (moved - mean[..., None]) / std[..., None]
