"""RetrievalRidge: a linear map of the lookback and of what followed the training windows most like it.

Two joint ridges, one for each kind of neighbours in `layers.retrieval.futures.KINDS`, are solved in closed
form and averaged, which makes one map: no form is chosen. Windows enter centred and divided by their
deviation, and count by it; `models.Ridge` has them undivided. The penalty of each is validation's. Nothing is
learned by steps.

Shape legend: B windows, N variables, S = B * N series, R rows, L lookback, H horizon, F kinds of neighbours,
A = L + H features.
"""

from __future__ import annotations

from collections.abc import Iterator
from logging import getLogger
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from layers.retrieval.futures import KINDS, RetrievedFutures
from layers.retrieval.search import Rows, query_rows
from models.base import ForecastModel
from models.closed_form import Moments, row_blocks, solve, window_batches
from models.TimeLLM import DEFAULT_SEASON
from utils.config import Config
from utils.types import Batch, ForecastState, WindowSource
from utils.windows import floored_std, per_series

log = getLogger(__name__)
PENALTIES = (1.0, 10.0, 100.0, 1e3, 3e3, 1e4, 3e4, 1e5)
"""Tried for a sum of squares over all training rows (56,231 on ETTh1, horizon 96), of mean weight 1."""


class Model(ForecastModel):
    """Windows [B, L, N] to [B, H, N] float64; the lookback's mean until it is fitted."""

    name = "RetrievalRidge"
    channel_independent = True
    is_trainable = False
    coefficients: Tensor
    penalties: Tensor

    def __init__(self, args: Config | Any) -> None:
        """The map [F, A, H] in float64, its penalties and the memory are part of the checkpoint."""
        super().__init__(args)
        d = self.config.data
        season = min(d.season or DEFAULT_SEASON, d.seq_len)
        self.retrieved = RetrievedFutures(seq_len=d.seq_len, horizon=d.pred_len, season=season)
        shape = (len(KINDS), d.seq_len + d.pred_len, d.pred_len)
        self.register_buffer("coefficients", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("penalties", torch.full((len(KINDS),), torch.nan, dtype=torch.float64))

    def forward(
        self,
        x_enc: Tensor,
        *_: Any,
        start: Tensor | None = None,
        series_id: Tensor | None = None,
        variable: Tensor | None = None,
        return_state: bool = False,
        **__: Any,
    ) -> Tensor | ForecastState:
        """Forecast [B, H, N] of windows [B, L, N]; ``start`` and ``series_id`` as in `TimeLLM_Enhanced`."""
        query = query_rows(x_enc[:, 0], start=start, series_id=series_id, variable=variable)
        with torch.autocast(x_enc.device.type, enabled=False):
            lookback = per_series(x_enc).float()
            mean, std = _level_and_std(lookback)
            features = self._features(lookback, query)  # [F, S, A]
            forecast = (features @ self.coefficients).mean(dim=0) * std + mean
        prediction = forecast.unflatten(0, (len(x_enc), -1)).transpose(1, 2)
        return ForecastState(prediction, None, None) if return_state else prediction

    def _features(self, lookback: Tensor, query: Rows) -> Tensor:
        """Lookback and retrieved future of each kind, centred and divided: [F, S, A] float64."""
        mean, std = _level_and_std(lookback)
        futures = self.retrieved(lookback, query).transpose(0, 1).double()  # [F, S, H]
        joined = torch.cat([lookback.double().expand(len(KINDS), -1, -1), futures], dim=-1)
        return (joined - mean) / std

    @torch.no_grad()
    def fit_closed_form(self, training: WindowSource, validation: Dataset[Batch]) -> None:
        """Fill the memory with the training windows and solve for the maps; penalties by validation.

        Raises:
            UserError: there are no training or no validation windows, or a value is not finite.
        """
        self.retrieved.fill(training)
        fitted = self._moments(_training_rows(training), power=1.0, part="training")
        evaluated = self._moments(_validation_rows(validation), power=2.0, part="validation")
        for i, (kind, train, valid) in enumerate(zip(KINDS, fitted, evaluated, strict=True)):
            coefficients, penalty = solve(train, valid, PENALTIES)
            self.coefficients[i].copy_(torch.from_numpy(coefficients))
            self.penalties[i].fill_(penalty)
            which = f"{kind.neighbours} neighbours{' of the same phase' if kind.same_phase else ''}"
            log.info("%s: penalty %g has the least error on the validation windows", which, penalty)

    def _moments(
        self, blocks: Iterator[tuple[Tensor, Tensor, Rows]], *, power: float, part: str
    ) -> list[Moments]:
        """What determines the error of each kind's map, rows weighed by a power of their deviation."""
        found = [Moments(*self.coefficients.shape[1:]) for _ in KINDS]
        for lookback, future, query in blocks:
            mean, std = _level_and_std(lookback)
            y = ((future.double() - mean) / std).numpy()
            device = self.coefficients.device
            features = self._features(lookback.to(device), Rows(*(column.to(device) for column in query)))
            for moments, x in zip(found, features.cpu(), strict=True):
                moments.add(x.numpy(), y, (std**power).numpy())
        for moments in found:
            moments.require(part)
        return found


def _level_and_std(lookback: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and floored deviation of lookbacks [S, L], [S, 1] float64 each."""
    values = lookback.double()
    return values.mean(dim=1, keepdim=True), floored_std(values)[:, None]


def _training_rows(source: WindowSource) -> Iterator[tuple[Tensor, Tensor, Rows]]:
    """Lookbacks [R, L], futures [R, H] and places of every training row."""
    for rows in row_blocks(source):
        yield rows.lookback, rows.future, Rows(rows.series_id, rows.variable, rows.start)


def _validation_rows(windows: Dataset[Batch]) -> Iterator[tuple[Tensor, Tensor, Rows]]:
    """The same of every validation window."""
    for batch in window_batches(windows):
        query = query_rows(
            batch.y[:, 0], start=batch.start, series_id=batch.series_id, variable=batch.variable
        )
        yield per_series(batch.x[..., -batch.y.shape[-1] :]), per_series(batch.y), query
