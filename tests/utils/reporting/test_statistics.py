"""The statistics of the studies, against plain formulas, other libraries and simulations."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from utils.reporting.statistics import (
    BLOCK,
    block_interval,
    holm,
    seed_interval,
    sign_flip_p,
)

NUMBERS = st.lists(st.integers(-50, 50), min_size=2, max_size=8)


def enumerated(values: list[int]) -> float:
    """Share of the assignments of signs whose mean is as far from 0 as the one found."""
    sums = [sum(s * v for s, v in zip(signs, values, strict=True)) for signs in signs_of(len(values))]
    return float(np.mean([abs(s) >= abs(sum(values)) for s in sums]))


def signs_of(count: int) -> list[tuple[int, ...]]:
    return list(itertools.product((-1, 1), repeat=count))


@given(NUMBERS)
@settings(max_examples=60, deadline=None)
def test_the_sign_flip_test_counts_every_assignment(values):
    """Whole numbers: ties are exact, as they must be counted."""
    assert sign_flip_p(values) == pytest.approx(enumerated(values), abs=1e-12)


def test_eight_pairs_can_show_what_five_cannot():
    assert sign_flip_p([-1.0] * 8) == pytest.approx(2 / 256)
    assert sign_flip_p([-0.3, -0.1, -0.2, -0.4, -0.5]) == pytest.approx(2 / 32) and 2 / 32 > 0.05
    assert sign_flip_p([0.0] * 8) == 1.0
    assert sign_flip_p([1, -2, 3, 1]) == sign_flip_p([-1, 2, -3, -1])
    for wrong in ([], [0.1], [0.1] * 17):
        with pytest.raises(ValueError, match="pairs"):
            sign_flip_p(wrong)


def test_holm_is_the_published_example_and_the_definition():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.2]) == [0.2] and holm([0.9, 0.8]) == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_holm_rejects_what_the_step_down_procedure_rejects(values):
    """Step by step: the smallest p against level / m, the next against level / (m - 1), until one fails."""
    adjusted = holm(values)
    for level in (0.013, 0.051, 0.2001):
        rejected = set()
        for rank, i in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
            if values[i] * (len(values) - rank) > level:
                break
            rejected.add(i)
        assert rejected == {i for i, p in enumerate(adjusted) if p <= level}


def test_the_interval_over_seeds_is_students():
    values = np.array([0.1, -0.2, 0.05, 0.3])
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert seed_interval(values) == pytest.approx((low, values.mean(), high))
    one = seed_interval([0.5])
    assert one.mean == 0.5 and np.isinf(one.low) and not one.excludes_zero
    assert seed_interval([1.0, 1.1]).excludes_zero and not seed_interval([1.0, -1.0]).excludes_zero


def overlapping(generator: np.random.Generator, windows: int, horizon: int = 96) -> np.ndarray:
    """Differences of windows that share their hours: a moving mean of hourly ones that wander by the day."""
    hours = (
        generator.normal(size=windows + horizon)
        + np.repeat(generator.normal(size=(windows + horizon) // 24 + 1), 24)[: windows + horizon]
    )
    return np.convolve(hours, np.ones(horizon) / horizon, mode="valid")[:windows]


def test_the_interval_over_windows_holds_the_truth_as_often_as_it_says():
    """Single windows drawn at random would hold it a third of the time: they are no independent draws."""
    generator = np.random.default_rng(4)
    series = [overlapping(generator, 2785) for _ in range(200)]
    held = [not block_interval(one).excludes_zero for one in series]
    naive = [not block_interval(one, block=1).excludes_zero for one in series[:40]]
    assert 0.91 <= np.mean(held) <= 0.985
    assert np.mean(naive) < 0.5


def test_the_interval_over_windows_is_that_of_a_plain_block_bootstrap():
    values = overlapping(np.random.default_rng(5), 2785)
    generator, blocks = np.random.default_rng(9), 2785 // BLOCK
    means = []
    for _ in range(2000):
        rows = [(s + np.arange(BLOCK)) % 2785 for s in generator.integers(2785, size=blocks)]
        means.append(values[np.concatenate(rows)].mean())
    reach = stats.t.ppf(0.975, blocks - 1) * np.std(means) * (blocks / (blocks - 1)) ** 0.5
    found = block_interval(values)
    assert found.mean == pytest.approx(values.mean())
    assert found.high - found.mean == pytest.approx(reach, rel=0.06)


def test_the_interval_over_windows_is_paired_and_repeatable():
    """What both sides share cancels before anything is drawn."""
    generator = np.random.default_rng(6)
    hard = overlapping(generator, 1000) * 100
    ours, theirs = hard - 0.5, hard + generator.normal(0, 0.1, (3, 1000))
    found = block_interval(ours - theirs)
    assert found == block_interval(ours - theirs) and found.excludes_zero and found.high < 0
    with pytest.raises(ValueError, match="two blocks"):
        block_interval(np.zeros(BLOCK))
