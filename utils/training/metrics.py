"""Scores by exact sums and counts, so that batches and processes of any size add up.

Shape legend: B windows, N variables, H horizon, S = B * N series.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from utils.m4_scores import owa
from utils.trend import DIRECTIONS, MAGNITUDES, TrendLabel, direction_of, magnitude_of, trend_measure
from utils.types import Batch, ForecastState, RetrievalRecord, SeriesReference, TrendRecord
from utils.windows import per_series

_LEVELS = {"direction": (DIRECTIONS, direction_of), "magnitude": (MAGNITUDES, magnitude_of)}
_COMPETITION = ("smape", "mase", "naive2_smape", "naive2_mase", "judged", "scaled")
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
    "chosen",
    "gate_right",
    "history_helped",
    *_COMPETITION,
)
_SLOTS = (
    *_PLAIN,
    *(f"{level}_{kind}" for level in _LEVELS for kind in ("correct", "own_correct")),
    *(f"{level}_is_{i}" for level, (names, _) in _LEVELS.items() for i in range(len(names))),
)


class ScoreSums:
    """Sums over windows, one float64 vector; add batches, then reduce over processes, then read."""

    def __init__(
        self, device: torch.device, *, trend_label: TrendLabel, reference: SeriesReference | None = None
    ) -> None:
        """Zeros on ``device`` (float32 pairs are not needed: sums of a batch are made in float64).

        ``reference`` adds M4's measures, for series that it holds.
        """
        self.reference = None if reference is None else SeriesReference(*(t.to(device) for t in reference))
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
        if self.reference is not None:
            self._add_competition(self.reference, state.prediction, batch)
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
            if state.retrieval.plain.shape[1]:
                self._add_choice(state.retrieval, per_series(batch.y))

    def _add_choice(self, record: RetrievalRecord, future: Tensor) -> None:
        """Count on which side of 0.5 the gate is, and which of its two forecasts of futures [S, H] errs less.

        Of series that found something and where the two err differently; at 0.5 it is on neither side.
        """
        plain, joint = (
            (made - future).double().square().mean(dim=1) for made in (record.plain, record.joint)
        )
        decides = record.matched & (plain != joint)
        gate = record.gate.double().squeeze(1)
        right = torch.where(joint < plain, gate < 0.5, gate > 0.5)
        self._count(
            chosen=decides.sum(),
            gate_right=(decides & right).sum(),
            history_helped=(decides & (joint < plain)).sum(),
        )

    def _add_competition(self, reference: SeriesReference, prediction: Tensor, batch: Batch) -> None:
        """Count M4's measures of forecasts [B, H, 1], and the benchmark's beside them."""
        row = torch.searchsorted(reference.series_id, batch.series_id)
        scale, y = reference.scale[row], batch.y[..., 0].double()
        scaled = scale > 0
        amounts: dict[str, Tensor | float] = {"judged": len(y), "scaled": scaled.sum()}
        for prefix, forecast in (("", prediction[..., 0].double()), ("naive2_", reference.naive2[row])):
            error, size = (forecast - y).abs(), forecast.abs() + y.abs()
            amounts[f"{prefix}smape"] = (200 * error / size.clamp(min=1e-300)).mean(dim=1).sum()
            relative = error.mean(dim=1) / torch.where(scaled, scale, 1.0)
            amounts[f"{prefix}mase"] = torch.where(scaled, relative, 0.0).sum()
        self._count(**amounts)

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

        Raises:
            ValueError: no window was scored.
        """
        total = dict(zip(_SLOTS, over_processes(self.sums).tolist(), strict=True))
        if not total["values"]:
            raise ValueError("no window was scored: the split is empty")
        scores = {
            "mse": total["squared"] / total["values"],
            "mae": total["absolute"] / total["values"],
            "windows": total["windows"],
        }
        if total["judged"]:
            scores |= _competition_scores(total)
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
        if total["chosen"]:
            for name in ("gate_right", "history_helped"):
                scores[name] = total[name] / total["chosen"]
        return scores


def _competition_scores(total: dict[str, float]) -> dict[str, float]:
    """M4's measures from their sums: means over series, and the overall weighted average of those."""
    scores = {name: total[name] / total["judged"] for name in ("smape", "naive2_smape")}
    if total["scaled"]:
        scores |= {name: total[name] / total["scaled"] for name in ("mase", "naive2_mase")}
        scores["owa"] = owa(
            scores["smape"],
            scores["mase"],
            naive2_smape=scores["naive2_smape"],
            naive2_mase=scores["naive2_mase"],
        )
    return scores


def selection_metric(scores: dict[str, float]) -> tuple[str, float]:
    """The score that chooses the best weights, by name: SMAPE for M4, otherwise the squared error."""
    name = "smape" if "smape" in scores else "mse"
    return name, scores[name]


def score_text(scores: dict[str, float]) -> str:
    """The errors of a test, for a line of the log."""
    if "smape" not in scores:
        return f"mse {scores['mse']:.4f} mae {scores['mae']:.4f}"
    return ", ".join(
        f"{name} {scores[name]:.4f}"
        for name in ("smape", "mase", "owa", "naive2_smape", "naive2_mase")
        if name in scores
    )


def module_text(scores: dict[str, float]) -> str:
    """What the modules did, for a line of the log.

    TAPR: direction and magnitude accuracy beside the majority class and the forecast's own class.
    GRA-M: the gate's mean and deviation, the share of series for which anything was found, and of those how
    often the gate sides with the forecast that errs less, beside how often that is the one with history.
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
    if "gate_right" in scores:
        parts.append(f" right {scores['gate_right']:.0%} (history helps {scores['history_helped']:.0%})")
    return "".join(parts)
