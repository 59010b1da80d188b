"""Trend and seasonal part of a sequence of embeddings, and scales of it that keep their places in time.

Shape legend: S series, T steps, K steps of a coarser scale, D model width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SeriesDecomposition(nn.Module):
    """Sequence [S, T, D] to (seasonal, trend), each [S, T, D], that sum to it.

    The trend is a centred moving average with the ends repeated.
    Source: Wu et al., Autoformer, NeurIPS 2021, section 3.1.
    """

    def __init__(self, kernel_size: int) -> None:
        """``kernel_size`` in steps; made odd, and cut to the sequence where that is shorter."""
        super().__init__()
        self.kernel_size = kernel_size - (kernel_size % 2 == 0)

    def forward(self, sequence: Tensor) -> tuple[Tensor, Tensor]:
        """(seasonal, trend), each of the shape of ``sequence``."""
        length = sequence.shape[1]
        width = min(self.kernel_size, length - (length % 2 == 0))
        side = (width - 1) // 2
        padded = F.pad(sequence.transpose(1, 2), (side, side), mode="replicate")  # [S, D, T + width - 1]
        trend = F.avg_pool1d(padded, width, stride=1).transpose(1, 2)  # [S, T, D]
        return sequence - trend, trend


def pool(sequence: Tensor, width: int) -> Tensor:
    """Means over ``width`` steps each of a sequence [S, T, D], the last over what is left: [S, K, D]."""
    if width == 1:
        return sequence
    pooled = F.avg_pool1d(sequence.transpose(1, 2), width, ceil_mode=True, count_include_pad=False)
    return pooled.transpose(1, 2)


def pool_places(length: int, width: int, *, parts: int = 1, device: torch.device | None = None) -> Tensor:
    """Where the pools of `pool` lie, in steps of the ``length`` T: their centres [K], ascending.

    With ``parts`` the centres of that many equal parts of each pool, [K * parts].
    """
    first = torch.arange(0, length, width, device=device)
    size = (first + width).clamp(max=length) - first  # [K]
    middle = (torch.arange(parts, device=device) + 0.5) / parts
    return (first[:, None] - 0.5 + middle * size[:, None]).flatten()


def read_at(sequence: Tensor, centres: Tensor, places: Tensor) -> Tensor:
    """A sequence [S, K, D] whose steps lie at ``centres`` [K], read at ``places`` [T]: [S, T, D].

    Along the straight line through the two nearest centres, beyond the outer ones too: a ramp comes back as
    that ramp, ends included. A single step has no slope: it is read everywhere.
    """
    if len(centres) == 1:
        return sequence.expand(-1, len(places), -1)
    upper = torch.searchsorted(centres, places).clamp(1, len(centres) - 1)
    lower = upper - 1
    share = (places - centres[lower]) / (centres[upper] - centres[lower])  # [T], below 0 and above 1 outside
    low, high = sequence[:, lower], sequence[:, upper]
    return low + share[:, None].to(sequence.dtype) * (high - low)
