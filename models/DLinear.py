"""DLinear: one linear map for the trend and one for the rest, shared by all variables.

Source: Zeng et al., "Are Transformers Effective for Time Series Forecasting?", AAAI 2023.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from layers.decomposition import SeriesDecomposition
from models.base import ForecastModel
from utils.config import Config


class Model(ForecastModel):
    """Windows [B, L, N] to [B, H, N]."""

    name = "DLinear"
    channel_independent = True
    own_settings = frozenset({"moving_avg"})

    def __init__(self, args: Config | Any) -> None:
        """Both maps start as the mean over the lookback, as published; ``--moving_avg`` splits the window."""
        super().__init__(args)
        length, horizon = self.config.data.seq_len, self.config.data.pred_len
        self.decomposition = SeriesDecomposition(self.config.baseline.moving_avg)
        self.seasonal = nn.Linear(length, horizon)
        self.trend = nn.Linear(length, horizon)
        for part in (self.seasonal, self.trend):
            nn.init.constant_(part.weight, 1 / length)

    def forward(self, x_enc: Tensor, *_: Any, **__: Any) -> Tensor:
        """[B, L, N] to [B, H, N]."""
        seasonal, trend = self.decomposition(x_enc)
        summed = self.seasonal(seasonal.transpose(1, 2)) + self.trend(trend.transpose(1, 2))
        return torch.transpose(summed, 1, 2)
