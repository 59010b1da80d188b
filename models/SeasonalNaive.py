"""Seasonal naive: the last season, repeated. Source: Hyndman and Athanasopoulos, Forecasting, section 5.2."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.base import ForecastModel
from models.TimeLLM import DEFAULT_SEASON
from utils.config import Config, ConfigError
from utils.config_checks import season_problem


class Model(ForecastModel):
    """Windows [B, L, N] to [B, H, N]; there is nothing to fit."""

    name = "SeasonalNaive"
    channel_independent = True
    is_trainable = False
    reads_whole_season = True

    def __init__(self, args: Config | Any) -> None:
        """The season is ``--season``; a run takes it from its data.

        Raises:
            ConfigError: it is longer than the lookback.
        """
        super().__init__(args)
        d = self.config.data
        self.season = d.season or DEFAULT_SEASON
        if self.season > d.seq_len:
            raise ConfigError([season_problem(self.season, d.seq_len, self.name)])

    def forward(self, x_enc: Tensor, *_: Any, **__: Any) -> Tensor:
        """[B, L, N] to [B, H, N]."""
        phase = torch.arange(self.config.data.pred_len, device=x_enc.device) % self.season
        return x_enc[:, -self.season :][:, phase]
