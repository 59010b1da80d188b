"""The test's errors as the forecast grows part by part: what the solved start had, and what each part added.

Shape legend: B windows, H horizon, M variables forecast.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise

import torch
from torch import Tensor

from utils.types import Batch, ForecastParts, ForecastState

ALL = "all"
"""The whole forecast, with what behind the LLM is left, such as the trend's correction."""
NAMES = (*ForecastParts._fields, ALL)
_WORDS = {"plain": "solved map", "joint": "history", "llm": "LLM", ALL: "trend and others"}


class PartSums:
    """Sums of squared and absolute errors by part; every process its share."""

    def __init__(self) -> None:
        """Zeros."""
        self.sums = torch.zeros(3, len(NAMES), dtype=torch.float64)  # squared, absolute, how many

    def add(self, state: ForecastState, batch: Batch) -> None:
        """Count one batch, where its forecast has parts."""
        if state.parts is None:
            return
        for place, forecast in enumerate((*state.parts, state.prediction)):
            error = forecast.double() - batch.y.double()
            found = [error.square().sum(), error.abs().sum(), torch.tensor(float(error.numel()))]
            self.sums[:, place] += torch.stack([one.cpu().double() for one in found])

    def reduce(
        self, over_processes: Callable[[Tensor], Tensor], *, device: torch.device
    ) -> dict[str, dict[str, float]]:
        """``{part: {"mse", "mae"}}``, each with all before it; empty where forecasts have no parts."""
        squared, absolute, count = over_processes(self.sums.to(device)).cpu().tolist()
        return {
            name: {"mse": s / n, "mae": a / n}
            for name, s, a, n in zip(NAMES, squared, absolute, count, strict=True)
            if n
        }


def part_line(scores: Mapping[str, Mapping[str, float]]) -> str:
    """How much each part added to the errors, as a line."""
    first, last = scores[NAMES[0]], scores[ALL]
    added = [
        f"{_WORDS[name]} {scores[name]['mse'] - scores[before]['mse']:+.4f} "
        f"{scores[name]['mae'] - scores[before]['mae']:+.4f}"
        for before, name in pairwise(NAMES)
    ]
    return (
        f"  part by part (mse mae): {_WORDS['plain']} {first['mse']:.4f} {first['mae']:.4f}, "
        f"{', '.join(added)}, together {last['mse']:.4f} {last['mae']:.4f}"
    )
