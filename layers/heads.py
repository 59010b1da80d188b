"""From the LLM's last states to a forecast.

Shape legend: S series, P patches, d_ff features read from each state, H horizon.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FlattenHead(nn.Module):
    """States [S, P, d_ff] to a forecast [S, H]: flatten, dropout, one linear map.

    Dropout comes before the last linear map; the published code puts it behind, on the forecast.
    """

    def __init__(self, *, n_features: int, horizon: int, dropout: float) -> None:
        """``n_features`` is P * d_ff."""
        super().__init__()
        self.flatten = nn.Flatten(start_dim=-2)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(n_features, horizon)

    def begin_at_zero(self) -> None:
        """Forecast zero until trained: what is added to another forecast begins without effect."""
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, states: Tensor) -> Tensor:
        """[S, P, d_ff] to [S, H]."""
        return self.linear(self.dropout(self.flatten(states.transpose(1, 2))))


def follow(ahead: Tensor, states: Tensor, to_share: nn.Linear) -> Tensor:
    """What series with ``states`` [S, P, d_ff] make of features of the future ``ahead`` [B, H, W]: [S, H].

    A series' states decide, by a linear map to W numbers, how much of each feature it follows.
    """
    share = to_share(states.mean(dim=1)).unflatten(0, (len(ahead), -1))  # [B, M, W]
    return torch.einsum("bhw,bmw->bmh", ahead, share).flatten(0, 1)
