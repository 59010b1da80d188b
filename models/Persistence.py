"""Persistence: the last row, repeated. Source: Hyndman and Athanasopoulos, Forecasting, section 5.2."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from models.base import ForecastModel


class Model(ForecastModel):
    """Windows [B, L, N] to [B, H, N]; there is nothing to fit."""

    name = "Persistence"
    channel_independent = True
    is_trainable = False

    def forward(self, x_enc: Tensor, *_: Any, **__: Any) -> Tensor:
        """[B, L, N] to [B, H, N]."""
        return x_enc[:, -1:].expand(-1, self.config.data.pred_len, -1)
