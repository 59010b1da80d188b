"""What a solved start's maps read of a window: lookback, covariates, calendar, neighbours' futures.

Covariates enter linearly, in deviations of the window as all else: over the lookback, and of the horizon
those that are known for it. What a known one does at its own time may differ from group to group (what the
statics say, and which variable it is): it is taken out of lookback and future before, and put in behind.

Shape legend: S series or rows, L lookback, H horizon, C calendar columns, X columns of covariates, K known
covariates, G groups, F kinds of neighbours, k neighbours of all kinds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layers.calendar_columns import calendar_columns, calendar_width
from layers.retrieval.futures import KINDS, Kind, RetrievedFutures
from utils.config import KEY_SEASONS
from utils.errors import UserError
from utils.types import RowCovariates, WindowSource
from utils.windows import floored_std

MOST_OWN = 512
"""Numbers G * K above which groups have no effects of their own: they are solved for together."""


class CovariateSizes(NamedTuple):
    """How much is known beside a variable's window."""

    known: int = 0
    """K."""
    past: int = 0
    static: int = 0
    """Columns of coded statics."""
    variables: int = 1
    """How many are forecast."""

    def width(self, seq_len: int, horizon: int) -> int:
        """X."""
        rows = self.known * (seq_len + horizon) + self.past * seq_len
        return rows + (self.static + 1 if self.static else 0)

    @property
    def apart(self) -> bool:
        """Whether each variable is a group."""
        return self.variables > 1 and (self.static + self.variables) * self.known <= MOST_OWN

    @property
    def groups(self) -> int:
        """G: the statics' columns and the variables, as far as they are not too many; 0 of one variable."""
        groups = self.static + self.variables if self.apart else self.static
        return groups if 0 < groups * self.known <= MOST_OWN else 0

    @property
    def taken_together(self) -> list[str]:
        """Kinds of groups that known covariates act alike in, as there are too many."""
        kinds = {
            "variables": self.variables > 1 and not self.apart,
            "statics": self.static and not self.groups,
        }
        return [name for name, all_of_it in kinds.items() if all_of_it and self.known]


class StartFeatures(nn.Module):
    """Lookbacks [S, L], standardised, to features in deviations of the window from its mean."""

    calendar_mean: Tensor
    calendar_scale: Tensor
    effects: Tensor
    """[G, K], what known covariates do at their own time."""

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
        covariates: CovariateSizes | None = None,
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
            covariates: what is known beside a window; nothing by default.
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
        self.beside = covariates or CovariateSizes()
        self.dated_from = seq_len + self.beside.width(seq_len, horizon)
        """L + X, before the calendar's columns."""
        self.base_width = self.dated_from + self.calendar_width
        """L + X + C."""
        if self.beside.groups:
            self.register_buffer("effects", torch.zeros(self.beside.groups, self.beside.known))
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

    def base(
        self,
        lookback: Tensor,
        marks: Tensor | None,
        covariates: RowCovariates | None = None,
        variable: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised lookbacks, covariates and calendar [S, L + X + C], with levels and deviations [S, 1].

        Where groups have effects of their own, these are taken out; ``variable`` [S] is read for that.

        The calendar's are zeros without ``marks`` [S, F], those of each window's last known row.

        Raises:
            UserError: marks of another frequency, or no covariates where they are read.
        """
        mean, std = self.mean_and_std(lookback)
        normalised = (lookback.to(mean) - mean) / std
        if self.dated_from > self.seq_len:
            columns = self._beside(covariates, mean, std)
            if self.beside.groups:
                normalised = normalised - self.effect(covariates, variable, std)[:, : self.seq_len]
            normalised = torch.cat([normalised, columns], dim=1)
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

    def _beside(self, covariates: RowCovariates | None, mean: Tensor, std: Tensor) -> Tensor:
        """Covariates [S, X], each less its mean over the lookback, in deviations of the window."""
        known, past, static = _given(covariates)
        length, moved = self.seq_len, []
        for values in (known.to(mean), past.to(mean)):
            moved.append((values - values[:, :length].mean(dim=1, keepdim=True)).transpose(1, 2).flatten(1))
        if self.beside.static:
            moved += [static.to(mean), mean]
        return torch.cat(moved, dim=1) / std

    def moved(self, covariates: RowCovariates | None) -> Tensor:
        """Known covariates less their mean over the lookback, [S, L + H, K]."""
        known = _given(covariates).known
        return known - known[:, : self.seq_len].mean(dim=1, keepdim=True)

    def group(self, covariates: RowCovariates | None, variable: Tensor | None) -> Tensor:
        """How much each row is of each group, [S, G]."""
        static = _given(covariates).static
        if not self.beside.apart:
            return static
        assert variable is not None
        return torch.cat([static, F.one_hot(variable, self.beside.variables).to(static)], dim=1)

    def effect(self, covariates: RowCovariates | None, variable: Tensor | None, std: Tensor) -> Tensor:
        """What known covariates do at their own time, in deviations of the window: [S, L + H]."""
        share = self.group(covariates, variable).to(std) @ self.effects.to(std)  # [S, K]
        return torch.einsum("stk,sk->st", self.moved(covariates).to(std), share) / std

    @staticmethod
    def mean_and_std(lookback: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and floored deviation of lookbacks [S, L], [S, 1] each, in float64 where there is that."""
        values = lookback if lookback.device.type == "mps" else lookback.double()
        return values.mean(dim=1, keepdim=True), floored_std(values)[:, None]

    def history(self, lookback: Tensor, mean: Tensor, std: Tensor, rows: Tensor) -> Tensor:
        """What followed the rows of each kind, moved to the lookback's last value, normalised: [S, F, H]."""
        moved = self.retrieved.means(rows).to(mean) + lookback[:, -1:, None].to(mean)
        return (moved - mean[..., None]) / std[..., None]


def _given(covariates: RowCovariates | None) -> RowCovariates:
    if covariates is None:
        raise UserError("the start reads covariates: expected those of each window, found none")
    return covariates
