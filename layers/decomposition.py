"""Trend and seasonal part of a sequence of embeddings.

Shape legend: S series, T steps, D model width.
"""

from __future__ import annotations

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
