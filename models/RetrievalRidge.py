"""RetrievalRidge: a linear map of the lookback and of what followed the training windows most like it.

Two joint ridges, one for each kind of neighbours in `layers.retrieved_futures.KINDS`, are solved in closed
form and averaged, which makes one map: no form is chosen. Windows enter centred and divided by their
deviation, and count by it. The penalty of each is validation's. Nothing is learned by steps, so what it gains
over `models.Ridge` is what retrieval gains.

Shape legend: B windows, N variables, S = B * N series, R rows, L lookback, H horizon, F kinds of neighbours,
A = L + H features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from logging import getLogger
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from layers.retrieval_search import Rows
from layers.retrieved_futures import KINDS, RetrievedFutures
from models.base import ForecastModel
from models.TimeLLM import DEFAULT_SEASON
from models.TimeLLM_Enhanced import query_rows
from utils.config import Config
from utils.errors import UserError
from utils.types import Batch, ForecastState, WindowSource
from utils.windows import floored_deviation, per_series

log = getLogger(__name__)
PENALTIES = (1.0, 10.0, 100.0, 1e3, 3e3, 1e4, 3e4, 1e5)
"""Tried for a sum of squares over all training rows (56,231 on ETTh1, horizon 96), of mean weight 1."""
ROWS_AT_ONCE = 4096
WINDOWS_AT_ONCE = 256


class Model(ForecastModel):
    """Windows [B, L, N] to [B, H, N] float64; the lookback's mean until it is fitted."""

    name = "RetrievalRidge"
    channel_independent = True
    takes_steps = False
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
        x_mark_enc: Tensor | None = None,
        x_dec: Tensor | None = None,
        x_mark_dec: Tensor | None = None,
        *,
        start: Tensor | None = None,
        series_id: Tensor | None = None,
        variable: Tensor | None = None,
        target: Tensor | None = None,
        prompt: Tensor | None = None,
        return_state: bool = False,
    ) -> Tensor | ForecastState:
        """Forecast [B, H, N] of windows [B, L, N]; ``start`` and ``series_id`` as in `TimeLLM_Enhanced`."""
        query = query_rows(x_enc[:, 0], start=start, series_id=series_id, variable=variable)
        with torch.autocast(x_enc.device.type, enabled=False):
            lookback = per_series(x_enc).float()
            mean, deviation = _level_and_deviation(lookback)
            features = self._features(lookback, query)  # [F, S, A]
            forecast = (features @ self.coefficients).mean(dim=0) * deviation + mean
        prediction = forecast.unflatten(0, (len(x_enc), -1)).transpose(1, 2)
        return ForecastState(prediction, None, None) if return_state else prediction

    def _features(self, lookback: Tensor, query: Rows) -> Tensor:
        """Lookback and retrieved future of each kind, centred and divided: [F, S, A] float64."""
        mean, deviation = _level_and_deviation(lookback)
        futures = self.retrieved(lookback, query).transpose(0, 1).double()  # [F, S, H]
        joined = torch.cat([lookback.double().expand(len(KINDS), -1, -1), futures], dim=-1)
        return (joined - mean) / deviation

    @torch.no_grad()
    def fit_closed_form(self, training: WindowSource, validation: Dataset[Batch]) -> None:
        """Fill the memory with the training windows and solve for the maps; penalties by validation.

        Raises:
            UserError: there are no training or no validation windows, or a value is not finite.
        """
        self.retrieved.fill(training)
        fitted = self._moments(_training_rows(training), power=1.0, part="training")
        judged = self._moments(_validation_rows(validation), power=2.0, part="validation")
        for kind, (train, valid) in enumerate(zip(fitted, judged, strict=True)):
            coefficients, penalty = solve(train, valid, PENALTIES)
            self.coefficients[kind].copy_(coefficients)
            self.penalties[kind].fill_(penalty)
            log.info(
                "retrieval ridge: %d neighbours%s: penalty %g has the least error on the validation windows",
                KINDS[kind].neighbours, " of the same phase" if KINDS[kind].same_phase else "", penalty,
            )  # fmt: skip

    def _moments(
        self, blocks: Iterator[tuple[Tensor, Tensor, Rows]], *, power: float, part: str
    ) -> list[Moments]:
        """What determines the error of each kind's map, rows weighed by a power of their deviation."""
        d = self.config.data
        found = [Moments(d.seq_len + d.pred_len, d.pred_len) for _ in KINDS]
        for lookback, future, query in blocks:
            mean, deviation = _level_and_deviation(lookback)
            y = (future.double() - mean) / deviation
            for moments, x in zip(found, self._features(lookback, query), strict=True):
                moments.add(x, y, deviation**power)
        if not found[0].rows:
            raise UserError(f"retrieval ridge: expected {part} windows, found none")
        if not found[0].gram.isfinite().all():
            raise UserError(f"retrieval ridge: expected finite {part} values, found NaN or infinity")
        return found


class Moments:
    """Sums that determine the weighted squared error of a linear map [A, H], gathered block by block."""

    def __init__(self, features: int, horizon: int) -> None:
        """Nothing is counted yet."""
        self.gram = torch.zeros(features, features, dtype=torch.float64)
        self.cross = torch.zeros(features, horizon, dtype=torch.float64)
        self.energy = self.weight = 0.0
        self.rows = 0

    def add(self, x: Tensor, y: Tensor, weight: Tensor) -> None:
        """Count rows x [R, A] with their futures y [R, H] and weights [R, 1], all float64."""
        weighed = x * weight
        self.gram += (weighed.T @ x).cpu()
        self.cross += (weighed.T @ y).cpu()
        self.energy += float((weight * y.square()).sum())
        self.weight += float(weight.sum())
        self.rows += len(x)

    def error(self, coefficients: Tensor) -> float:
        """Weighted sum of squares that the map [A, H] leaves."""
        explained = 2 * (coefficients * self.cross).sum() - (coefficients * (self.gram @ coefficients)).sum()
        return self.energy - float(explained)


def solve(train: Moments, valid: Moments, penalties: Sequence[float]) -> tuple[Tensor, float]:
    """The ridge map [A, H] of the training rows with the penalty that errs least on the validation rows.

    Weights count relative to their mean. One decomposition serves every penalty:
    (G + a I)^-1 C = V (e + a)^-1 V'C.
    """
    scale = train.rows / train.weight
    eigenvalues, vectors = torch.linalg.eigh(train.gram * scale)
    rotated = vectors.T @ (train.cross * scale)
    maps = [vectors @ (rotated / (eigenvalues.clamp(min=0.0) + p)[:, None]) for p in penalties]
    best = min(range(len(maps)), key=lambda i: valid.error(maps[i]))
    return maps[best], penalties[best]


def _level_and_deviation(lookback: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and floored deviation of lookbacks [S, L], [S, 1] float64 each."""
    values = lookback.double()
    return values.mean(dim=1, keepdim=True), floored_deviation(values)[:, None]


def _training_rows(source: WindowSource) -> Iterator[tuple[Tensor, Tensor, Rows]]:
    """Lookbacks [R, L], futures [R, H] and places of every training row."""
    for index in torch.arange(source.num_rows).split(ROWS_AT_ONCE):
        rows = source.rows(index)
        yield rows.lookback, rows.future, Rows(rows.series_id, rows.variable, rows.start)


def _validation_rows(windows: Dataset[Batch]) -> Iterator[tuple[Tensor, Tensor, Rows]]:
    """The same of every validation window."""
    count = len(windows)  # type: ignore[arg-type]  # torch's Dataset does not declare __len__
    for begin in range(0, count, WINDOWS_AT_ONCE):
        items = [windows[i] for i in range(begin, min(begin + WINDOWS_AT_ONCE, count))]
        x, y, start, series_id, variable = (
            torch.stack([getattr(item, name) for item in items])
            for name in ("x", "y", "start", "series_id", "variable")
        )
        query = query_rows(y[:, 0], start=start, series_id=series_id, variable=variable)
        yield per_series(x[..., -y.shape[-1] :]), per_series(y), query
