"""The test's errors variable by variable, and what those whose training part is constant do to the mean.

Shape legend: B windows, H horizon, M variables forecast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from utils.types import Batch, ForecastState


class VariableSums:
    """Sums of squared and absolute errors by variable; every process its share."""

    def __init__(self, variables: int) -> None:
        """Zeros for so many variables."""
        self.sums = torch.zeros(3, variables, dtype=torch.float64)  # squared, absolute, how many

    def add(self, state: ForecastState, batch: Batch) -> None:
        """Count one batch."""
        error = (state.prediction.double() - batch.y.double()).cpu()  # [B, H, M]
        squared, absolute = error.square().sum(dim=(0, 1)), error.abs().sum(dim=(0, 1))
        self.sums += torch.stack([squared, absolute, torch.full_like(squared, error[..., 0].numel())])

    def reduce(
        self, over_processes: Callable[[Tensor], Tensor], *, names: Sequence[str], device: torch.device
    ) -> dict[str, dict[str, float]]:
        """``{variable: {"mse", "mae"}}`` in the units of the scores; a table of its own, so any name will do.

        ``over_processes`` sums a tensor on ``device``.
        """
        squared, absolute, count = over_processes(self.sums.to(device)).cpu()
        return {
            name: {"mse": mse, "mae": mae}
            for name, mse, mae in zip(
                names, (squared / count).tolist(), (absolute / count).tolist(), strict=True
            )
        }


def constant_lines(scores: Mapping[str, Mapping[str, float]], constant: Sequence[str]) -> Iterator[str]:
    """Beside the scores: the errors of each variable constant in training, and the mean of the others."""
    evaluated = [name for name in constant if name in scores]
    for name in evaluated:
        own = scores[name]
        yield f"  of it {name!r}, constant in the training part: mse {own['mse']:.4f} mae {own['mae']:.4f}"
    others = [own for name, own in scores.items() if name not in evaluated]
    if evaluated and others:
        mse, mae = (sum(own[key] for own in others) / len(others) for key in ("mse", "mae"))
        yield f"  the other {len(others)} of {len(scores)} variables: mse {mse:.4f} mae {mae:.4f}"
