"""A linear map from lookback to forecast beside the LLM, which then forecasts what the map leaves.

Linear maps are hard to beat on the benchmarks of the field (Zeng et al., "Are Transformers Effective for
Time Series Forecasting?", AAAI 2023; Toner and Darlow, "An Analysis of Linear Time Series Forecasting
Models", ICML 2024), and an LLM reaches their errors late, through its word space.

Shape legend: L lookback, H horizon.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LinearPath(nn.Module):
    """Lookbacks [..., L] to forecasts [..., H]: fixed coefficients, and a trained change of them.

    The change begins at zero, and divided by the root of L: an optimizer step of one size for every
    weight then moves the forecast as little as it does elsewhere.
    """

    coefficients: Tensor

    def __init__(self, *, seq_len: int, horizon: int, dropout: float) -> None:
        """All zeros; no random number is drawn. ``dropout`` acts on the lookback."""
        super().__init__()
        self.register_buffer("coefficients", torch.zeros(horizon, seq_len))
        self.change = nn.Parameter(torch.zeros(horizon, seq_len))
        self.dropout = nn.Dropout(dropout)

    def forward(self, lookback: Tensor) -> Tensor:
        """[..., L] to [..., H], in float32 whatever the precision around it."""
        with torch.autocast(lookback.device.type, enabled=False):
            weight = self.coefficients + self.change / math.sqrt(self.change.shape[1])
            return F.linear(self.dropout(lookback.float()), weight)
