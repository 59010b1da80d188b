"""What a trend is: the measure, its classes, and the cuts between them.

Order of the classes, everywhere: from down to up. Shape legend: S series, H horizon.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from utils.config import STD_FLOOR

DIRECTIONS = ("down", "flat", "up")
MAGNITUDES = ("strong down", "weak down", "weak up", "strong up")
RELATIVE_CUTS = (-0.02, -0.005, 0.0, 0.005, 0.02)
"""The original design's thresholds, for ``--trend_label relative``."""
CUT_QUANTILES = (1 / 4, 1 / 3, 1 / 2, 2 / 3, 3 / 4)
THRESHOLD_CUTS = (0, 1, 3, 4)
"""Which of the five cuts bound the bins of the ordinal loss (the median does not)."""
ORDINAL_BINS = len(THRESHOLD_CUTS) + 1

TrendLabel = Literal["level", "relative"]


def trend_measure(y: Tensor, *, reference: Tensor, scale: Tensor, kind: TrendLabel) -> Tensor:
    """The trend [S] of futures ``y`` [S, H], in standardised units.

    ``level``: (mean of y - ``reference``) / ``scale``, with the mean of the lookback's last season
    and the lookback's floored deviation, each [S]. ``relative``: (last - first) / |first| of y, with
    |first| floored too: one path that starts near 0 would outweigh all others.
    """
    if kind == "level":
        return (y.mean(dim=-1) - reference) / scale
    first = y[:, 0]
    return (y[:, -1] - first) / first.abs().clamp(min=STD_FLOOR)


def direction_of(measure: Tensor, cuts: Tensor) -> Tensor:
    """0 down (below the second cut), 1 flat, 2 up (above the fourth), [S] int64."""
    return (measure >= cuts[1]).long() + (measure > cuts[3]).long()


def magnitude_of(measure: Tensor, cuts: Tensor) -> Tensor:
    """0 strong down (below the first cut), 1 weak down (below the third), 2 weak up, 3 strong up."""
    return (measure >= cuts[0]).long() + (measure >= cuts[2]).long() + (measure > cuts[4]).long()


def ordinal_bin_of(measure: Tensor, cuts: Tensor) -> Tensor:
    """Which of the five bins between the cuts 1/4, 1/3, 2/3 and 3/4, [S] int64 from 0 to 4."""
    bounds = torch.stack([cuts[i] for i in THRESHOLD_CUTS])  # a list as the index would be copied to a GPU
    return torch.bucketize(measure.contiguous(), bounds, right=True)


def fit_cuts(measure: Tensor, kind: TrendLabel) -> Tensor:
    """The five cuts [5] for these training measures [R]: quantiles, or the fixed relative ones."""
    if kind == "relative":
        return torch.tensor(RELATIVE_CUTS)
    # numpy's quantile has no limit on the number of rows; torch's stops at 16 million.
    values = measure.double().cpu().numpy()
    return torch.as_tensor(np.quantile(values, CUT_QUANTILES), dtype=torch.float32)


def magnitude_given_direction(measure: Tensor, cuts: Tensor) -> Tensor:
    """P(magnitude | direction) [3, 4] counted over training measures [R].

    A direction that never occurs gets the uniform row.
    """
    pairs = direction_of(measure, cuts) * len(MAGNITUDES) + magnitude_of(measure, cuts)
    counts = torch.bincount(pairs, minlength=len(DIRECTIONS) * len(MAGNITUDES))
    table = counts.reshape(len(DIRECTIONS), len(MAGNITUDES)).double()
    total = table.sum(dim=1, keepdim=True)
    return torch.where(total > 0, table / total.clamp(min=1), 1 / len(MAGNITUDES)).float()


def ordinal_scale(cuts: Tensor) -> Tensor:
    """Scale of the logistic whose quartiles are the outer cuts: (c4 - c0) / (2 ln 3), floored."""
    return ((cuts[-1] - cuts[0]) / (2 * math.log(3))).clamp(min=STD_FLOOR)


def ordinal_probabilities(measure: Tensor, thresholds: Tensor, cuts: Tensor) -> Tensor:
    """P(bin) [S, 5] of trend measures [S] between ordered ``thresholds`` [4], by a cumulative link.

    P(bin <= j) = sigmoid((threshold_j - measure) / s), with s fixed by the label cuts [5]: the model of the
    ordinal loss. Source: McCullagh, Regression Models for Ordinal Data, JRSS B 1980.
    """
    below = torch.sigmoid((thresholds - measure[:, None]) / ordinal_scale(cuts))
    return F.pad(F.pad(below, (0, 1), value=1.0), (1, 0)).diff(dim=-1)
