"""Linear: instance normalisation and one linear map, shared by all variables.

Source: the RLinear of Li et al., "Revisiting Long-term Time Series Forecasting", 2023.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from layers.normalization import InstanceNorm
from models.base import ForecastModel
from utils.config import Config


class Model(ForecastModel):
    """Windows [B, L, N] to [B, H, N]."""

    name = "Linear"
    channel_independent = True
    own_settings = frozenset({"input_dropout"})

    def __init__(self, args: Config | Any) -> None:
        """``--input_dropout`` acts on the normalised lookback."""
        super().__init__(args)
        d = self.config.data
        self.normalize_layers = InstanceNorm()
        self.dropout = nn.Dropout(self.config.backbone.input_dropout)
        self.linear = nn.Linear(d.seq_len, d.pred_len)

    def forecast(self, x_enc: Tensor, x_mark_enc: Tensor | None, x_mark_dec: Tensor | None) -> Tensor:
        """[B, L, N] to [B, H, N]."""
        normalised, statistics = self.normalize_layers(x_enc, self.insample_mask(x_mark_enc))
        windows = normalised.transpose(1, 2)  # [B, N, L]
        forecast = self.linear(self.dropout(windows)).transpose(1, 2)
        return self.normalize_layers.denormalize(forecast, statistics)
