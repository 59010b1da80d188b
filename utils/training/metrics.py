"""Scores by exact sums and counts, so that batches and processes of any size add up.

Shape legend: B windows, N variables, H horizon, S = B * N series.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from utils.trend import DIRECTIONS, MAGNITUDES, TrendLabel, direction_of, magnitude_of, trend_measure
from utils.types import Batch, ForecastState, TrendRecord
from utils.windows import per_series

_LEVELS = {"direction": (DIRECTIONS, direction_of), "magnitude": (MAGNITUDES, magnitude_of)}
_PLAIN = (
    "squared",
    "absolute",
    "values",
    "windows",
    "gate",
    "gate_square",
    "confidence",
    "matched",
    "series",
)
_SLOTS = (
    *_PLAIN,
    *(f"{level}_{kind}" for level in _LEVELS for kind in ("correct", "own_correct")),
    *(f"{level}_is_{i}" for level, (names, _) in _LEVELS.items() for i in range(len(names))),
)


class ScoreSums:
    """Sums over windows, one float64 vector; add batches, then reduce over processes, then read."""

    def __init__(self, device: torch.device, *, trend_label: TrendLabel) -> None:
        """Zeros on ``device`` (float32 pairs are not needed: sums of a batch are made in float64)."""
        self.sums = torch.zeros(len(_SLOTS), dtype=torch.float64, device=device)
        self.trend_label = trend_label

    def add(self, state: ForecastState, batch: Batch, *, new_windows: bool = True) -> None:
        """Count one batch; ``new_windows`` is False where others of its variables were counted before."""
        error = state.prediction.double() - batch.y.double()
        self._count(
            squared=error.square().sum(),
            absolute=error.abs().sum(),
            values=error.numel(),
            windows=len(error) if new_windows else 0,
        )
        if state.trend is not None:
            self._add_trend(state.trend, state.prediction.float(), batch.y)
        if state.retrieval is not None:
            gate = state.retrieval.gate.double()
            self._count(
                gate=gate.sum(),
                gate_square=gate.square().sum(),
                confidence=state.retrieval.confidence.double().sum(),
                matched=state.retrieval.matched.sum(),
                series=len(gate),
            )

    def _add_trend(self, record: TrendRecord, prediction: Tensor, y: Tensor) -> None:
        """Count classes: the true ones, those TAPR names, and those read off the forecast itself."""

        def measure(future: Tensor) -> Tensor:
            return trend_measure(
                per_series(future), reference=record.reference, scale=record.scale, kind=self.trend_label
            )

        truth, own = measure(y), measure(prediction)
        for level, (names, classify) in _LEVELS.items():
            logits: Tensor = getattr(record, f"{level}_logits")
            true_class = classify(truth, record.label_cuts)
            self._count(
                **{
                    f"{level}_correct": (logits.argmax(dim=-1) == true_class).sum(),
                    f"{level}_own_correct": (classify(own, record.label_cuts) == true_class).sum(),
                    **{f"{level}_is_{i}": (true_class == i).sum() for i in range(len(names))},
                }
            )

    def _count(self, **amounts: Tensor | float) -> None:
        for name, amount in amounts.items():
            self.sums[_SLOTS.index(name)] += amount

    def reduce(self, over_processes: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """The scores: mse, mae, windows, and where there is a trend or a gate, theirs.

        ``over_processes`` sums a tensor over all processes.
        """
        total = dict(zip(_SLOTS, over_processes(self.sums).tolist(), strict=True))
        if not total["values"]:
            raise ValueError("no window was scored: the split is empty")
        scores = {
            "mse": total["squared"] / total["values"],
            "mae": total["absolute"] / total["values"],
            "windows": total["windows"],
        }
        for level, (names, _) in _LEVELS.items():
            counts = [total[f"{level}_is_{i}"] for i in range(len(names))]
            if sum(counts):
                scores[f"{level}_accuracy"] = total[f"{level}_correct"] / sum(counts)
                scores[f"{level}_majority"] = max(counts) / sum(counts)
                scores[f"{level}_of_forecast"] = total[f"{level}_own_correct"] / sum(counts)
        if total["series"]:
            mean = total["gate"] / total["series"]
            scores["gate_mean"] = mean
            scores["gate_std"] = max(total["gate_square"] / total["series"] - mean**2, 0.0) ** 0.5
            scores["confidence_mean"] = total["confidence"] / total["series"]
            scores["matched_share"] = total["matched"] / total["series"]
        return scores


def module_text(scores: dict[str, float]) -> str:
    """What the modules did, for a line of the log.

    TAPR: direction and magnitude accuracy beside the majority class and the forecast's own class.
    GRA-M: the gate's mean and deviation, and the share of series for which anything was found.
    """
    parts = [
        f" | {level.title()[:3]} Acc: {scores[f'{level}_accuracy']:.1%}"
        f" (majority {scores[f'{level}_majority']:.1%}, forecast {scores[f'{level}_of_forecast']:.1%})"
        for level in _LEVELS
        if f"{level}_accuracy" in scores
    ]
    if "gate_mean" in scores:
        parts.append(
            f" | Gate: {scores['gate_mean']:.2f} +- {scores['gate_std']:.2f}"
            f" (matched {scores['matched_share']:.0%})"
        )
    return "".join(parts)
