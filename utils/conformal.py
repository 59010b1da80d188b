"""Split-conformal prediction intervals: forecast plus and minus a quantile of past errors.

Of n windows that the model was not fitted on, each with a score, the k-th smallest score with
k = ceil((n + 1) * level) bounds the score of one more window with probability ``level`` at least, and
less than ``level`` + 1 / (n + 1) where no two are equal, if the n + 1 windows are exchangeable. Windows
of a series are not quite: they overlap, and the series drifts. What was covered is therefore measured.

Sources: Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", 2005; Lei et al.,
"Distribution-Free Predictive Inference for Regression", JASA 2018 (section 2.2 the absolute error as
score, section 5.2 the error divided by an estimate of its spread); Bracher et al., "Evaluating epidemic
forecasts in an interval format", PLOS Computational Biology 2021 (the weighted interval score). Quantiles
of the windows right before the forecast, in place of a fixed part: Gibbs and Candes, "Adaptive Conformal
Inference Under Distribution Shift", NeurIPS 2021, compare that with adapting the level.

Shape legend: n windows calibrated on, B windows, H horizon, M variables forecast, Q stored ranks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from utils.errors import UserError

FloatArray = NDArray[np.floating[Any]]
Score = Literal["absolute", "scaled"]
SCORES: tuple[Score, ...] = get_args(Score)
STORED_LEVELS = (
    *(round(0.05 * i, 2) for i in range(1, 10)),
    *(round(0.01 * i, 2) for i in range(50, 100)),
    0.995,
    0.999,
)
"""A level between two of them takes the one above, so that its interval covers no less."""
CHOICE_LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""Over these the weighted interval score is close to the continuous ranked probability score."""


class LevelError(UserError):
    """A level that cannot be had; the message says why."""


def level_of(quantile: float) -> float:
    """The level of the central interval that ends at a quantile; 0 of the median, which is the forecast."""
    return round(abs(2 * quantile - 1), 9)


def rank_of(level: float, count: int) -> int:
    """The rank k = ceil((count + 1) * level) of the score that bounds one more; none does above ``count``."""
    return math.ceil(round((count + 1) * level, 9))


def windows_needed(level: float) -> int:
    """The smallest number of windows that bounds one more at ``level``."""
    return math.ceil(round(level / (1 - level), 9))


def check_level(level: float) -> None:
    """Raise `LevelError` unless 0 < level < 1.

    Raises:
        LevelError: it is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise LevelError(f"--levels: expected numbers between 0 and 1, such as 0.8 0.95, found {level:g}")


def check_windows(level: float, count: int) -> None:
    """Raise `LevelError` where ``count`` windows are too few for an interval at this level.

    Raises:
        LevelError: they are too few for the level.
    """
    if rank_of(level, count) > count:
        raise LevelError(
            f"--levels: {level:g} takes {windows_needed(level)} windows of calibration or more, found {count}"
        )


@dataclass(frozen=True, eq=False)
class Calibration:
    """What intervals at any level need: order statistics of the scores, by step and variable."""

    score: Score
    """absolute: the error; scaled: the error in deviations of the window's lookback."""
    count: int
    """Windows n calibrated on."""
    ranks: Tensor
    """[Q] int64, ascending, 1 to n."""
    values: Tensor
    """[Q, H, M] float32: the scores of these ranks."""

    def quantile(self, level: float) -> Tensor:
        """The score [H, M] that bounds one more window's at ``level``.

        Raises:
            LevelError: n windows are too few for that level.
        """
        check_level(level)
        check_windows(level, self.count)
        return self.values[int(torch.searchsorted(self.ranks, rank_of(level, self.count)))]

    def half_width(self, level: float, std: Tensor) -> Tensor:
        """Half the interval's width [B, H, M], of windows with these lookback ``deviation`` s [B, M]."""
        quantile = self.quantile(level).to(std)
        shape = (len(std), *quantile.shape)
        return quantile * std[:, None] if self.score == "scaled" else quantile.expand(shape)

    def state(self) -> dict[str, Any]:
        """As tensors and plain values."""
        return {"score": self.score, "count": self.count, "ranks": self.ranks, "values": self.values}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Calibration:
        """What `state` gave."""
        return cls(state["score"], int(state["count"]), state["ranks"], state["values"])


def calibrate(
    absolute: FloatArray, std: FloatArray, *, score: Score, levels: Iterable[float] = ()
) -> Calibration:
    """The calibration by the absolute errors [n, H, M] of windows with these lookback deviations [n, M].

    Stored are the ranks of `STORED_LEVELS` and of ``levels``.

    Raises:
        ValueError: there is no window, or an error is not finite.
    """
    scores = absolute / std[:, None] if score == "scaled" else absolute
    count = len(scores)
    if not count or not np.isfinite(scores).all():
        raise ValueError(f"calibration: expected finite errors of at least one window, found {count} windows")
    wanted = {rank_of(level, count) for level in (*STORED_LEVELS, *levels)} | {1, count}
    ranks = np.array(sorted(k for k in wanted if k <= count))
    values = np.stack([np.sort(scores[:, step], axis=0)[ranks - 1] for step in range(scores.shape[1])], 1)
    return Calibration(score, count, torch.from_numpy(ranks), torch.from_numpy(values))


def interval_score(absolute: FloatArray, half_width: FloatArray, level: float) -> float:
    """Mean width, plus 2 / (1 - level) times what lies outside: least for the true quantiles."""
    outside = np.maximum(absolute - half_width, 0)
    return float(np.mean(2 * half_width + 2 / (1 - level) * outside, dtype=np.float64))


def choose_score(absolute: FloatArray, std: FloatArray, start: NDArray[np.int64]) -> dict[Score, float]:
    """The weighted interval score of each kind of score, the best first; empty with too few windows.

    Windows begin at the rows ``start`` [n], ascending. The first half calibrates, the later half judges,
    without those windows whose future overlaps the first half's.
    """
    half = len(start) // 2
    horizon = absolute.shape[1]
    later = start >= start[half - 1] + horizon if half else np.zeros(len(start), dtype=bool)
    if half < windows_needed(max(CHOICE_LEVELS)) or not later.any():
        return {}
    found: dict[Score, float] = {}
    evaluated = torch.from_numpy(std[later])
    for score in SCORES:
        fitted = calibrate(absolute[:half], std[:half], score=score, levels=CHOICE_LEVELS)
        found[score] = float(
            np.mean(
                [
                    (1 - level) / 2
                    * interval_score(absolute[later], fitted.half_width(level, evaluated).numpy(), level)
                    for level in CHOICE_LEVELS
                ]
            )
        )  # fmt: skip
    return dict(sorted(found.items(), key=lambda item: item[1]))


def rolling_half_width(absolute: FloatArray, level: float, *, windows: int, count: int) -> FloatArray:
    """Half the width [count, H, M] of the last ``count`` windows' intervals, each by those before it.

    Args:
        absolute: errors [W, H, M] of successive windows, one row apart; what is still to come is NaN.
        level: of the intervals.
        windows: how many windows each interval is calibrated on: for step h those that began h to
            h + windows - 1 rows earlier, whose truth at that step is known when the window forecasts.
        count: number of windows that get an interval; W is count + windows + H - 1.

    Raises:
        LevelError: so many windows are too few for that level.
    """
    check_level(level)
    check_windows(level, windows)
    total, horizon, _ = absolute.shape
    assert total == count + windows + horizon - 1, (total, count, windows, horizon)
    rank = rank_of(level, windows)
    found = np.empty((count, *absolute.shape[1:]), dtype=absolute.dtype)
    for step in range(horizon):
        first = horizon - 1 - step  # the row h = step + 1 rows before, less windows - 1
        known = absolute[first : first + count + windows - 1, step]
        sliding = np.lib.stride_tricks.sliding_window_view(known, windows, axis=0)  # [count, M, windows]
        found[:, step] = np.partition(sliding, rank - 1, axis=-1)[..., rank - 1]
    return found
