"""Series whose structure is known: one that can be remembered, one whose direction shows in its lookback."""

from __future__ import annotations

import numpy as np

from data_provider.series import Series
from data_provider.synthetic import _series, _smooth_noise

NOISE = 0.1
"""Deviation of the white noise on top."""


def planted_recurrences(*, seed: int, seq_len: int, pred_len: int, motifs: int = 8) -> Series:
    """A series whose future can be remembered but not extrapolated.

    It is a chain of random curves from a bank of ``motifs``: the rest of a curve says nothing to who
    has not met it before, and is known up to noise to who has. The chain has 10 rounds, each of which
    plays every curve once in an order of its own, so that with the fractions 0.7/0.1/0.2 each occurs
    7 times in training, once in validation and twice in test. Windows at any offset are helped whose
    lookback shows enough of the curve that their future continues. Curves have mean 0 and deviation 1, and
    are 2 * (L + H) rows long: at L + H alone nearly every lookback mixes two, and neighbours that share
    only the older one win.
    """
    rng = np.random.default_rng(seed)
    # correlated over H / 12 rows: nothing local reaches far into the horizon
    bank = _smooth_noise((2 * (seq_len + pred_len), motifs), max(1.5, pred_len / 12), rng)
    order = np.concatenate([rng.permutation(motifs) for _ in range(10)])
    values = bank[:, order].T.reshape(-1, 1)
    return _series("planted_recurrences", values + NOISE * rng.standard_normal(values.shape), "h")


def planted_trends(*, seed: int, seq_len: int, pred_len: int, rows: int) -> Series:
    """A series whose level rises, stays or falls over the horizon, as its lookback shows.

    Straight ramps of one to two times ``seq_len + 2 * pred_len`` rows follow each other; each
    group of three holds one up, one flat and one down, equally long and in random order, so the
    three directions have equal shares and the level stays bounded. A ramp moves by about 1 per
    horizon; a daily season of amplitude 0.5 lies on top.
    """
    rng = np.random.default_rng(seed)
    shortest = seq_len + 2 * pred_len
    slopes: list[np.ndarray] = []
    while sum(map(len, slopes)) < rows:
        length = int(rng.integers(shortest, 2 * shortest))
        slope = rng.uniform(0.8, 1.2) / pred_len
        slopes += [np.full(length, sign * slope) for sign in rng.permutation([-1.0, 0.0, 1.0])]
    level = np.cumsum(np.concatenate(slopes)[:rows])
    cycle = 0.5 * np.sin(2 * np.pi * np.arange(rows) / 24 + rng.uniform(0, 2 * np.pi))
    values = (level + cycle + NOISE * rng.standard_normal(rows))[:, None]
    return _series("planted_trends", values, "h")
