"""Linear: instance normalisation and one linear map, shared by all variables.

Source: the RLinear of Li et al., "Revisiting Long-term Time Series Forecasting", 2023. With
``--linear_path ridge`` it is that path alone, the control of the models that have it beside an LLM.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from layers.linear_path import LinearPath
from layers.normalization import InstanceNorm
from models.base import ForecastModel
from models.closed_form import begin_at_ridge
from utils.config import Config
from utils.types import FitSource


class Model(ForecastModel):
    """Windows [B, L, N] to [B, H, N]."""

    name = "Linear"
    channel_independent = True
    own_settings = frozenset({"input_dropout", "linear_path"})

    def __init__(self, args: Config | Any) -> None:
        """``--input_dropout`` acts on the normalised lookback."""
        super().__init__(args)
        d, b = self.config.data, self.config.backbone
        self.normalize_layers = InstanceNorm()
        if b.linear_path == "none":
            self.dropout = nn.Dropout(b.input_dropout)
            self.linear = nn.Linear(d.seq_len, d.pred_len)
        else:
            self.linear_path = LinearPath(seq_len=d.seq_len, horizon=d.pred_len, dropout=b.input_dropout)

    def fit_statistics(self, source: FitSource) -> None:
        """The linear path begins at the ridge solution, its penalty chosen by validation."""
        if self.config.backbone.linear_path != "none" and not source.weights_given:
            begin_at_ridge(self.linear_path, source)

    def forward(self, x_enc: Tensor, x_mark_enc: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
        """[B, L, N] to [B, H, N]."""
        normalised, statistics = self.normalize_layers(x_enc, self.insample_mask(x_mark_enc))
        windows = normalised.transpose(1, 2)  # [B, N, L]
        if self.config.backbone.linear_path == "none":
            forecast = self.linear(self.dropout(windows))
        else:
            forecast = self.linear_path(windows)
        return self.normalize_layers.denormalize(forecast.transpose(1, 2), statistics)
