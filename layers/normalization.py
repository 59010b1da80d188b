"""Instance normalisation (RevIN without affine part, as Time-LLM uses it).

Shape legend: B windows, L rows, N variables.
"""

from __future__ import annotations

from torch import Tensor, nn

from utils.types import InstanceStatistics

EPSILON = 1e-5
"""Added to a variance before its root is divided by, where the deviation has no other floor."""


class InstanceNorm(nn.Module):
    """Window [B, L, N] to the same with mean 0 and deviation 1 per window and variable.

    The statistics are returned and handed back to `denormalize`; nothing is kept on the module. By default
    the deviation's floor is the root of `EPSILON`, 0.0032: a constant window becomes zeros, and one whose own
    deviation is far below the floor stays close to zero, so that rounding noise is not taken for a pattern.
    Source: Kim et al., RevIN, ICLR 2022; Jin et al., Time-LLM, ICLR 2024, section 3.1.
    """

    def __init__(self, floor: float | None = None) -> None:
        """``floor``: smallest deviation that is divided by, where another than the root of `EPSILON`."""
        super().__init__()
        self.floor = floor

    def forward(self, x: Tensor, observed: Tensor | None = None) -> tuple[Tensor, InstanceStatistics]:
        """The normalised window [B, L, N] and what was taken out of it, without gradient.

        ``observed`` [B, L, 1] is 1 where a row exists and 0 elsewhere: those rows become 0 and count in
        no statistic.
        """
        detached = x.detach()
        if observed is not None:
            count = observed.sum(dim=1, keepdim=True)
            mean = (detached * observed).sum(dim=1, keepdim=True) / count
            variance = ((detached - mean).square() * observed).sum(dim=1, keepdim=True) / count
            std = self._std(variance)
            return (x - mean) / std * observed, InstanceStatistics(mean, std)
        mean = detached.mean(dim=1, keepdim=True)  # [B, 1, N]
        # A mean of large values is off by some units in their last place, which would make a constant
        # window look like one off its mean: taken again around itself, it is right to the last place.
        mean = mean + (detached - mean).mean(dim=1, keepdim=True)
        variance = (detached - mean).square().mean(dim=1, keepdim=True)
        std = self._std(variance)
        return (x - mean) / std, InstanceStatistics(mean, std)

    def _std(self, variance: Tensor) -> Tensor:
        if self.floor is None:
            return (variance + EPSILON).sqrt()
        return variance.sqrt().clamp(min=self.floor)

    def denormalize(self, y: Tensor, statistics: InstanceStatistics) -> Tensor:
        """Back from normalised units, [B, H, N] to [B, H, N]."""
        return y * statistics.std + statistics.mean
