"""How the modules' conclusions enter the forecast, in instance-normalised units.

Shape legend: S series, H horizon, C trend classes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LARGEST_SHARE = 0.5
"""Most of the forecast's distance from the last value that the trend may add or take away."""


class ConfidenceGate(nn.Module):
    """Confidence [S, 1] in [0, 1] to a gate [S, 1] in (0, 1) that never falls as it rises."""

    def __init__(self) -> None:
        """Starts at sigmoid(-1 + 2 * confidence)."""
        super().__init__()
        self.offset = nn.Parameter(torch.tensor(-1.0))
        self.raw_slope = nn.Parameter(torch.tensor(1.8545865))  # softplus of it is 2

    def forward(self, confidence: Tensor) -> Tensor:
        """[S, 1] to [S, 1]."""
        return torch.sigmoid(self.offset + F.softplus(self.raw_slope) * confidence)


def class_confidence(probabilities: Tensor) -> Tensor:
    """1 - entropy / log C of class probabilities [S, C], as [S, 1]: 0 uniform, 1 certain."""
    # A probability that underflows to 0 has an infinite slope of entropy: 0 * inf would be NaN.
    positive = probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny)
    entropy = torch.special.entr(positive).sum(dim=-1, keepdim=True)
    return 1 - entropy / math.log(probabilities.shape[-1])


class TrendFusion(nn.Module):
    """Trend path [S, H] and class probabilities [S, C] to a direction of correction in (-1, 1).

    With ``n_bins``, the trend of the forecast itself, as probabilities of ordered bins, adds a learned
    correction per bin. Both begin at zero, so an untrained model's forecast is the one without fusion.
    """

    def __init__(self, *, horizon: int, n_classes: int, width: int, n_bins: int = 0) -> None:
        """``width`` of the hidden layer."""
        super().__init__()
        self.hidden = nn.Linear(horizon + n_classes, width)
        self.out = nn.Linear(width, horizon)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        if n_bins:
            self.bin_corrections = nn.Parameter(torch.zeros(n_bins, horizon))

    def forward(self, path: Tensor, probabilities: Tensor, bins: Tensor | None = None) -> Tensor:
        """[S, H], [S, C] and [S, n_bins] to [S, H]."""
        direction = self.out(F.gelu(self.hidden(torch.cat([path, probabilities], dim=-1))))
        if bins is not None:
            direction = direction + bins @ self.bin_corrections
        return torch.tanh(direction)


def trend_bound(forecast: Tensor, last: Tensor, gate: Tensor, trend_gate: Tensor) -> Tensor:
    """The most the trend may move a forecast [S, H] at each step, [S, H].

    0.5 * (h / H) * gate * trend_gate * |forecast_h - last|, with ``last`` [S, 1] the lookback's
    last value and both gates [S, 1]: nothing at the origin, most at the far end.
    """
    horizon = forecast.shape[-1]
    ramp = torch.arange(1, horizon + 1, device=forecast.device, dtype=forecast.dtype) / horizon
    return LARGEST_SHARE * ramp * gate * trend_gate * (forecast - last).abs()


class RetrievalFusion(nn.Module):
    """Moves a forecast [S, H] towards the retrieved one, by a learned share per step.

    The shares start at zero. With ``trust`` 0 (nothing retrieved) the forecast is unchanged.
    """

    def __init__(self, horizon: int) -> None:
        """One share per step of the horizon."""
        super().__init__()
        self.share = nn.Parameter(torch.zeros(horizon))

    def forward(self, forecast: Tensor, retrieved: Tensor, trust: Tensor) -> Tensor:
        """Forecast and retrieved forecast [S, H], trust [S, 1] in [0, 1], to [S, H]."""
        return forecast + torch.tanh(self.share) * trust * (retrieved - forecast)


@torch.no_grad()
def begin_as_a_word(embed: nn.Linear, words: Tensor, *, scale: float) -> None:
    """Give the token of half a confidence, ``embed`` of 0.5, the mean length of the LLM's words.

    As drawn it is several words long (five of SmolLM2's), and outweighs them in every attention.

    Args:
        embed: [1] to [d_llm].
        words: the LLM's embedding table, [V, d_llm].
        scale: what the LLM multiplies its embeddings by.
    """
    length = scale * words.float().norm(dim=1).mean()
    drawn = (0.5 * embed.weight[:, 0] + embed.bias).norm()
    for parameter in (embed.weight, embed.bias):
        parameter.mul_((length / drawn).to(parameter.device))
