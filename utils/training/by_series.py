"""A panel's test errors series by series, and in all: MSE, MAE, RMSE, MASE, RMSSE, weighted quantile loss.

MASE (Hyndman and Koehler 2006) and RMSSE (as of utilsforecast) divide a series' mean absolute error, and the
root of its mean squared one, by those of the seasonal naive forecast on its rows before the test; in all they
are means over series. A series that has no such scale, because those rows do not change or are no
more than a season, is named and left out of those means. The weighted quantile loss (as of GluonTS) is twice
the pinball loss over the sum of absolute values, its mean over quantiles; in all, of all series' sums.

Shape legend: B windows, H horizon, S series, Q quantiles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from utils.conformal import Calibration, LevelError, level_of
from utils.types import Batch, ForecastState, PanelTable, Standardisation
from utils.windows import floored_std, per_series

QUANTILES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Of the weighted quantile loss; those but the median are bounds of conformal intervals."""
NAMED = 20
"""Series that are named in the results, of each kind that has no scale."""
_MEDIAN = 0.5


class SeriesSums:
    """Sums of errors by series; every process its share."""

    def __init__(
        self, table: PanelTable, scales: Standardisation, calibration: Mapping[str, Any] | None = None
    ) -> None:
        """Zeros.

        Args:
            table: of the panel.
            scales: of its series, [S].
            calibration: behind the quantiles, as a checkpoint keeps it; without one the median is alone.
        """
        self.table, self.std, self.mean = table, scales.std, scales.mean
        self.known, self.order = table.series_id.sort()
        self.calibration = None if calibration is None else Calibration.from_state(calibration)
        self.quantiles = tuple(q for q in QUANTILES if q == _MEDIAN or self._has(q))
        self.sums = torch.zeros(len(table.ids), 4 + len(self.quantiles), dtype=torch.float64)

    def _has(self, quantile: float) -> bool:
        """Whether there are windows enough for a quantile."""
        if self.calibration is None:
            return False
        try:
            self.calibration.quantile(level_of(quantile))
        except LevelError:
            return False
        return True

    def add(self, state: ForecastState, batch: Batch) -> None:
        """Count one batch of forecasts [B, H, 1]."""
        row = self.order[torch.searchsorted(self.known, batch.series_id.cpu())]
        y, forecast = (part.detach().cpu().double()[..., 0] for part in (batch.y, state.prediction))  # [B, H]
        error = forecast - y
        lookback = floored_std(per_series(batch.x))[:, None].cpu()
        columns = [torch.ones_like(y), error.square(), error.abs()]
        columns.append((y * self.std[row][:, None] + self.mean[row][:, None]).abs())
        for quantile in self.quantiles:
            below = y - forecast - self._shift(quantile, lookback)
            columns.append(torch.maximum(quantile * below, (quantile - 1) * below))
        self.sums.index_add_(0, row, torch.stack([column.sum(dim=1) for column in columns], dim=1))

    def _shift(self, quantile: float, std: Tensor) -> Tensor:
        """How far a quantile lies above the forecast, [B, H], by the deviation [B, 1] of each lookback."""
        if quantile == _MEDIAN or self.calibration is None:
            return torch.zeros(1, 1, dtype=torch.float64)
        half = self.calibration.half_width(level_of(quantile), std)[..., 0].double()
        return half if quantile > _MEDIAN else -half

    def reduce(
        self, over_processes: Callable[[Tensor], Tensor], *, device: torch.device
    ) -> tuple[pd.DataFrame, dict[str, Any]]:
        """The scores of each series that was tested, and those in all.

        ``over_processes`` sums a tensor on ``device``.
        """
        sums = over_processes(self.sums.to(device)).cpu().numpy()
        tested = np.flatnonzero(sums[:, 0] > 0)
        sums, std = sums[tested], self.std.numpy()[tested]
        count, squared, absolute, size = sums[:, :4].T
        pinball = 2 * sums[:, 4:] * std[:, None]
        own = {"mse": squared / count, "mae": absolute / count}
        frame = pd.DataFrame(
            {"series": np.array(self.table.ids, dtype=object)[tested], "values": count.astype(int)}
        )
        for suffix, scale in (("", std), ("_standardised", np.ones_like(std))):
            frame[f"mse{suffix}"] = own["mse"] * scale**2
            frame[f"mae{suffix}"] = own["mae"] * scale
            frame[f"rmse{suffix}"] = np.sqrt(own["mse"]) * scale
        absolute_change, squared_change = (
            part.numpy()[tested] for part in (self.table.absolute_change, self.table.squared_change)
        )
        scaled = absolute_change > 0
        with np.errstate(divide="ignore", invalid="ignore"):
            frame["mase"] = np.where(scaled, frame["mae"] / absolute_change, np.nan)
            frame["rmsse"] = np.where(scaled, frame["rmse"] / np.sqrt(squared_change), np.nan)
            frame["wql"] = np.where(size > 0, pinball.mean(axis=1) / size, np.nan)
        whole: dict[str, Any] = {"series": len(tested), "values": int(count.sum())}
        for suffix in ("", "_standardised"):
            for name in ("mse", "mae"):
                whole[name + suffix] = float(np.average(frame[name + suffix], weights=count))
            whole["rmse" + suffix] = whole["mse" + suffix] ** 0.5
        if scaled.any():
            whole |= {name: float(frame[name][scaled].mean()) for name in ("mase", "rmsse")}
        if size.sum() > 0:
            whole["wql"] = float(pinball.mean(axis=1).sum() / size.sum())
            whole["quantiles"] = list(self.quantiles)
        for reason, odd in (("flat", absolute_change == 0), ("short", np.isnan(absolute_change))):
            if odd.any():
                whole[reason] = int(odd.sum())
                whole[f"{reason}_series"] = frame["series"][odd][:NAMED].tolist()
        return frame, whole


def series_lines(whole: Mapping[str, Any]) -> Iterator[str]:
    """The scores in all, for the log, and which series are left out of the scaled ones."""
    scores = ", ".join(
        f"{name} {whole[name]:.4f}"
        for name in ("mase", "rmsse", "wql", "mse", "mae", "rmse")
        if name in whole
    )
    yield f"  {whole['series']} series, in their own units: {scores}"
    for reason, text in (
        ("flat", "do not change before the test"),
        ("short", "have no more rows before the test than a season"),
    ):
        if reason in whole:
            names = ", ".join(map(repr, whole[f"{reason}_series"][:3])) + (
                ", ..." if whole[reason] > 3 else ""
            )
            yield f"  {whole[reason]} series {text}, and are left out of mase and rmsse: {names}"
