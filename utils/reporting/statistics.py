"""What a comparison of two configurations shows: an exact test over seeds, intervals over seeds and windows.

Shape legend: R paired runs (seeds), W test windows in order of time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

BLOCK = 168
"""Windows in a block of the bootstrap: a week of hourly data, longer than a horizon of 96 reaches."""
RESAMPLES = 2000
LEVEL = 0.95
MOST_EXACT = 16
"""Most pairs of which every assignment of signs is counted (65,536)."""


class Interval(NamedTuple):
    """A mean with an interval of confidence `LEVEL`."""

    low: float
    mean: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside."""
        return self.low > 0 or self.high < 0


def sign_flip_p(differences: ArrayLike) -> float:
    """Two-sided p of paired differences [R] that are symmetric around 0: every assignment of signs counted.

    Its smallest value is 2 / 2**R: with five pairs it cannot fall below 0.05.
    Source: Fisher, The Design of Experiments, 1935, section 21.

    Raises:
        ValueError: for less than two pairs, or more than `MOST_EXACT`.
    """
    values = np.asarray(differences, dtype=np.float64)
    if not 2 <= len(values) <= MOST_EXACT:
        raise ValueError(f"differences: expected 2 to {MOST_EXACT} pairs, found {len(values)}")
    if not values.any():
        return 1.0
    found = stats.permutation_test(
        (values,), np.mean, permutation_type="samples", vectorized=True, n_resamples=np.inf
    )
    return float(found.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p values, in the order given: the family's error rate holds at each of them.

    Source: Holm, A simple sequentially rejective multiple test procedure, Scand. J. Stat. 1979.
    """
    adjusted, reached = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        reached = max(reached, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = reached
    return adjusted


def seed_interval(differences: ArrayLike) -> Interval:
    """Mean of paired differences [R] with Student's interval over seeds; infinite for one pair.

    It tells what other seeds would give on the same test windows.
    """
    values = np.asarray(differences, dtype=np.float64)
    mean = float(values.mean())
    if len(values) < 2:
        return Interval(-np.inf, mean, np.inf)
    return _around(mean, float(values.std(ddof=1)) / len(values) ** 0.5, len(values) - 1)


def block_interval(differences: ArrayLike, *, block: int = BLOCK, seed: int = 0) -> Interval:
    """Mean of paired differences with an interval over test windows, by a circular block bootstrap.

    It tells what another stretch of the series would give with the same weights. Neighbouring windows
    share most of their hours, so blocks of them are drawn, not single ones. The bootstrap's deviation
    is used with Student's quantile for the number of blocks, of which there are few.
    Source: Politis and Romano, A circular block-resampling procedure for stationary data, 1992.

    Args:
        differences: [R, W], one row a seed, or [W]; the mean over seeds is resampled.
        block: windows in a block.
        seed: of the resampling.

    Raises:
        ValueError: fewer than two blocks of windows.
    """
    values = np.atleast_2d(np.asarray(differences, dtype=np.float64)).mean(axis=0)
    blocks = len(values) // block
    if blocks < 2:
        raise ValueError(f"differences: expected two blocks of {block} windows at least, found {len(values)}")
    starts = np.random.default_rng(seed).integers(len(values), size=(RESAMPLES, blocks))
    means = _block_means(values, block)[starts].mean(axis=1)
    std = float(means.std(ddof=1)) * (blocks / (blocks - 1)) ** 0.5
    return _around(float(values.mean()), std, blocks - 1)


def _block_means(values: NDArray[np.float64], block: int) -> NDArray[np.float64]:
    """Mean of the block that begins at each window, the end joined to the beginning, [W]."""
    sums = np.concatenate([[0.0], np.cumsum(np.concatenate([values, values[: block - 1]]))])
    return (sums[block:] - sums[:-block]) / block


def _around(mean: float, std: float, freedom: int) -> Interval:
    reach = float(stats.t.ppf((1 + LEVEL) / 2, freedom)) * std
    return Interval(mean - reach, mean, mean + reach)
