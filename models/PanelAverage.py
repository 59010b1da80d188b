"""PanelAverage: of many short series, the weighted average of one ridge, what a memory gives, and Theta.

The ridge and the memory are of all series together: the logarithms of a window's last rows, less the mean of
its last season, in their deviations. Theta (`layers.theta`) is each series' own, of its whole lookback.
Weights and penalty are chosen on the validation windows, which are the holdout of a competition's training
part; then ridge and memory take these windows in too. Nothing is learned by steps.

Measured on M3 monthly: averaging helps where a joint fit does not, and Theta is the one to beat.

Shape legend: B windows, S series or rows, L lookback, R of its rows read, W of them compared, H horizon, M
rows of the memory, A = 2 R features.
"""

from __future__ import annotations

from itertools import product
from logging import getLogger
from typing import Any, NamedTuple

import torch
from torch import Tensor

from layers.retrieval.futures import thinned_rows
from layers.retrieval.memory import make_room
from layers.retrieval.search import smallest
from layers.ridge import Moments, solve, solve_at
from layers.start_fitting import FITTED_AT_ONCE, PENALTIES
from layers.theta import theta_forecasts
from models.base import ForecastModel
from models.TimeLLM import DEFAULT_SEASON
from utils.batches import window_batches
from utils.config import Config
from utils.types import Batch, FitSource, ForecastState
from utils.windows import per_series

log = getLogger(__name__)
NEIGHBOURS = 300
"""Of the memory; source: measured on M3 monthly, 300 and 1,000 alike."""
SMALLEST_STD = 0.03
"""Of a window's logarithms: one that hardly changes is not blown up to noise."""
SMALLEST_VALUE = 1e-3
"""Of a window, as a share of its mean: logarithms of less are taken of this."""
SHARES = 12
"""Weights are multiples of one in so many."""
PARTS = ("ridge", "memory", "theta")
COMPARED_AT_ONCE = 2**23
MEMORY = ("keys", "futures", "series", "cut")
"""What a row of the memory is made of; a window's future begins at its cut."""


class Normalised(NamedTuple):
    """Windows as ridge and memory read them."""

    rows: Tensor
    """[S, R], 0 where the series has not begun."""
    mask: Tensor
    """[S, R]."""
    centre: Tensor
    """[S, 1]."""
    std: Tensor
    """[S, 1]."""


class Model(ForecastModel):
    """Windows [B, L, N] to [B, H, N]; the lookback's last season's mean until it is fitted."""

    name = "PanelAverage"
    channel_independent = True
    is_trainable = False
    own_settings = frozenset({"top_k"})
    map: Tensor
    weights: Tensor
    logarithms: Tensor
    keys: Tensor
    futures: Tensor
    series: Tensor
    cut: Tensor

    def __init__(self, args: Config | Any) -> None:
        """The map, the weights and the memory are part of the checkpoint."""
        super().__init__(args)
        d = self.config.data
        self.season = min(d.season or DEFAULT_SEASON, d.seq_len)
        self.read = min(d.seq_len, max(3 * self.season, 2 * d.pred_len))
        self.compared = min(self.read, max(2 * self.season, d.pred_len))
        self.horizon = d.pred_len
        self.top_k = self.config.gram.top_k or NEIGHBOURS
        self.register_buffer("map", torch.zeros(2 * self.read, self.horizon, dtype=torch.float64))
        self.register_buffer("weights", torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64))
        self.register_buffer("logarithms", torch.tensor(False))
        self.register_buffer("keys", torch.empty(0, self.compared))
        self.register_buffer("futures", torch.empty(0, self.horizon))
        for name in MEMORY[2:]:
            self.register_buffer(name, torch.empty(0, dtype=torch.int64))

    @torch.no_grad()
    def forward(
        self,
        x_enc: Tensor,
        x_mark_enc: Tensor | None = None,
        *_: Any,
        start: Tensor | None = None,
        series_id: Tensor | None = None,
        return_state: bool = False,
        **__: Any,
    ) -> Tensor | ForecastState:
        """Forecast [B, H, N] of windows [B, L, N]; ``x_mark_enc``: the mask of series without dates."""
        lookback, mask = self._series(x_enc, x_mark_enc)
        each = x_enc.shape[2]
        begins, ids = (
            lookback.new_full((len(lookback),), -1, dtype=torch.int64)
            if known is None
            else known.repeat_interleave(each)
            for known in (start, series_id)
        )
        parts = self._parts(lookback, mask, begins + lookback.shape[1], ids)  # [3, S, H]
        found = (parts * self.weights[:, None, None]).sum(dim=0)
        prediction = found.unflatten(0, (-1, each)).transpose(1, 2).to(x_enc)
        return ForecastState(prediction, None, None) if return_state else prediction

    def _series(self, x: Tensor, x_mark: Tensor | None) -> tuple[Tensor, Tensor]:
        """Windows [B, L, N] as series and their masks, [S, L] float64 each."""
        lookback = per_series(x).double()
        mask = self.insample_mask(x_mark)
        if mask is None:
            return lookback, torch.ones_like(lookback)
        return lookback, mask[..., 0].repeat_interleave(x.shape[2], dim=0).double()

    def _normalised(self, lookback: Tensor, mask: Tensor) -> Normalised:
        """The last rows of lookbacks [S, L], float64."""
        rows, mask = lookback[:, -self.read :], mask[:, -self.read :]
        count = mask.sum(dim=1, keepdim=True)
        if self.logarithms:
            least = SMALLEST_VALUE * (rows.abs() * mask).sum(dim=1, keepdim=True) / count
            rows = torch.maximum(rows, least.clamp(min=torch.finfo(rows.dtype).tiny)).log()
        mean = (rows * mask).sum(dim=1, keepdim=True) / count
        std = (
            ((rows - mean).square() * mask).sum(dim=1, keepdim=True).div(count).sqrt().clamp(min=SMALLEST_STD)
        )
        recent = mask[:, -self.season :]
        centre = (rows[:, -self.season :] * recent).sum(dim=1, keepdim=True) / recent.sum(dim=1, keepdim=True)
        return Normalised((rows - centre) / std * mask, mask, centre, std)

    def _taken(self, future: Tensor, own: Normalised) -> Tensor:
        """Futures [S, H] in the units of their normalised windows."""
        if self.logarithms:
            least = SMALLEST_VALUE * own.centre.exp()
            future = torch.maximum(future, least).log()
        return (future - own.centre) / own.std

    def _given(self, forecast: Tensor, own: Normalised) -> Tensor:
        """Forecasts [S, H] in those units, in the data's."""
        found = forecast.double() * own.std + own.centre
        return found.clamp(max=700).exp() if self.logarithms else found

    def _parts(self, lookback: Tensor, mask: Tensor, cut: Tensor, ids: Tensor) -> Tensor:
        """The forecasts of the three parts, [3, S, H] float64; zeros of one that has no weight."""
        own = self._normalised(lookback, mask)
        parts = torch.zeros(
            len(PARTS), len(lookback), self.horizon, dtype=torch.float64, device=lookback.device
        )
        if self.weights[0]:
            parts[0] = self._given(torch.cat([own.rows, own.mask], dim=1) @ self.map, own)
        if self.weights[1]:
            parts[1] = self._given(self._remembered(own, cut, ids), own)
        if self.weights[2]:
            known = [row[there > 0].numpy() for row, there in zip(lookback.cpu(), mask.cpu(), strict=True)]
            parts[2] = torch.from_numpy(theta_forecasts(known, self.horizon, self.season)).to(parts)
        return parts

    def _remembered(self, own: Normalised, cut: Tensor, ids: Tensor) -> Tensor:
        """The mean future of the nearest windows [S, H]; in the own series, of those that had ended."""
        key, found = own.rows[:, -self.compared :].float(), []
        squares = self.keys.square().sum(dim=1)
        for part in torch.arange(len(key)).split(max(1, COMPARED_AT_ONCE // max(1, len(self.keys)))):
            distance = torch.addmm(squares, key[part], self.keys.T, alpha=-2)
            later = (self.cut + self.horizon > cut[part][:, None]) & (self.series == ids[part][:, None])
            column = smallest(distance.masked_fill_(later, torch.inf), self.top_k)[1]
            found.append(self.futures[column].mean(dim=1))
        return torch.cat(found)

    def fit_statistics(self, source: FitSource) -> None:
        """Solve for the map, fill the memory, choose the weights; then take the validation windows in."""
        if not source.weights_given:
            source.once(self, None, lambda: self._fit(source))

    @torch.no_grad()
    def _fit(self, source: FitSource) -> None:
        training = [
            self._training_rows(source, index)
            for index in thinned_rows(source.training).split(FITTED_AT_ONCE)
        ]
        validation = [self._validation_rows(batch) for batch in window_batches(source.validation)]
        self.logarithms.fill_(
            all(bool((part[0][part[1] > 0] > 0).all()) for part in (*training, *validation))
        )
        sums = [self._sums(blocks) for blocks in (training, validation)]
        sums[0].require("training")
        sums[1].require("validation")
        coefficients, penalty = solve(sums[0], sums[1], PENALTIES)
        self.map.copy_(coefficients)
        self._remember(training)
        self.weights.copy_(self._chosen_weights(validation))
        both = [*training, *validation]
        self.map.copy_(solve_at(self._sums(both), penalty))
        self._remember(both)

    def _training_rows(self, source: FitSource, index: Tensor) -> tuple[Tensor, ...]:
        """Lookbacks [S, R], masks, futures, cuts, ids of training rows with a season and a horizon known."""
        rows = source.training.rows(index)
        length = rows.lookback.shape[1]
        known = (
            (rows.start + length).clamp(max=length)
            if rows.marks is None
            else torch.full_like(rows.start, length)
        )
        mask = (torch.arange(length) >= length - known[:, None]).double()
        chosen = known >= min(length, max(self.season + 1, self.horizon))
        return tuple(
            part[chosen]
            for part in (
                rows.lookback[:, -self.read :].double(),
                mask[:, -self.read :],
                rows.future.double(),
                rows.start + length,
                rows.series_id,
            )
        )

    def _validation_rows(self, batch: Batch) -> tuple[Tensor, ...]:
        """The same of validation windows, whose lookbacks and masks are whole: [S, L]."""
        variables = batch.y.shape[2]
        cut, ids = (
            part.repeat_interleave(variables) for part in (batch.start + batch.x.shape[1], batch.series_id)
        )
        lookback, mask = self._series(batch.x[..., -variables:], batch.x_mark)
        return lookback, mask, per_series(batch.y).double(), cut, ids

    def _sums(self, blocks: list[tuple[Tensor, ...]]) -> Moments:
        """Of rows weighed by their deviation."""
        sums = Moments(2 * self.read, self.horizon)
        for lookback, mask, future, *_ in blocks:
            own = self._normalised(lookback, mask)
            sums.add(torch.cat([own.rows, own.mask], dim=1), self._taken(future, own), own.std)
        return sums

    def _remember(self, blocks: list[tuple[Tensor, ...]]) -> None:
        """Fill the memory with these rows."""
        parts: list[tuple[Tensor, ...]] = []
        for lookback, mask, future, cut, ids in blocks:
            own = self._normalised(lookback, mask)
            parts.append((own.rows[:, -self.compared :].float(), self._taken(future, own).float(), ids, cut))
        for name, column in zip(MEMORY, zip(*parts, strict=True), strict=True):
            setattr(self, name, torch.cat(column))

    def _chosen_weights(self, validation: list[tuple[Tensor, ...]]) -> Tensor:
        """The weights [3] of least relative and scaled errors together, each beside the best part's."""
        self.weights.fill_(1.0)
        scores = []
        shares = [s for s in product(range(SHARES + 1), repeat=len(PARTS)) if sum(s) == SHARES]
        grid = torch.tensor(shares, dtype=torch.float64) / SHARES  # [G, 3]
        for lookback, mask, future, cut, ids in validation:
            parts = self._parts(lookback, mask, cut, ids)
            change = (lookback[:, self.season :] - lookback[:, : -self.season]).abs() * mask[
                :, : -self.season
            ]
            scale = change.sum(dim=1) / mask[:, : -self.season].sum(dim=1)
            scaled = torch.isfinite(scale) & (scale > 0)
            for weights in grid:
                forecast = (parts * weights[:, None, None]).sum(dim=0)
                error, size = (forecast - future).abs(), forecast.abs() + future.abs()
                relative = (error / size.clamp(min=1e-12)).mean(dim=1).sum()
                scores.append(torch.stack([relative, (error.mean(dim=1) / scale)[scaled].sum()]))
        summed = torch.stack(scores).unflatten(0, (-1, len(grid))).sum(dim=0)  # [G, 2]
        alone = summed[(grid == 1).any(dim=1)].amin(dim=0).clamp(min=1e-12)
        chosen = grid[int((summed / alone).sum(dim=1).argmin())]
        log.info(
            "average: %s", ", ".join(f"{n} {w:.2f}" for n, w in zip(PARTS, chosen.tolist(), strict=True))
        )
        return chosen

    @property
    def closed_form_facts(self) -> dict[str, Any]:
        """The weights, and how much is remembered."""
        return {
            "weights": dict(zip(PARTS, self.weights.tolist(), strict=True)),
            "logarithms": bool(self.logarithms),
            "memory_rows": len(self.cut),
        }

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take a memory of any number of rows."""
        make_room(self, MEMORY, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)
