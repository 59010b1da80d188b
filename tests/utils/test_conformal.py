"""Intervals against what split-conformal prediction promises, and against plain loops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.conformal import (
    CHOICE_LEVELS,
    STORED_LEVELS,
    Calibration,
    FloatArray,
    LevelError,
    calibrate,
    check_windows,
    choose_score,
    interval_score,
    rank_of,
    rolling_half_width,
    windows_needed,
)

levels = st.integers(1, 999).map(lambda i: i / 1000)


def errors(*shape: int, seed: int = 0) -> FloatArray:
    return np.abs(np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def ones(rows: int, variables: int) -> FloatArray:
    return np.ones((rows, variables), dtype=np.float32)


def half(calibration: Calibration, level: float, std: FloatArray) -> FloatArray:
    return calibration.half_width(level, torch.from_numpy(std)).numpy()


# The rank


@given(st.integers(1, 5000), st.integers(1, 999))
def test_the_rank_is_that_of_exact_arithmetic(count, thousandths):
    """0.95 * 20 in floating point is above 19: one rank too many, and no interval from 19 windows."""
    exact = math.ceil(Fraction(thousandths, 1000) * (count + 1))
    assert rank_of(thousandths / 1000, count) == exact


@given(levels)
def test_the_windows_needed_are_the_fewest_that_bound_one_more(level):
    needed = windows_needed(level)
    assert rank_of(level, needed) <= needed
    assert needed == 1 or rank_of(level, needed - 1) > needed - 1
    check_windows(level, needed)


# What is promised


@pytest.mark.parametrize("level", [0.2, 0.5, 0.6, 0.8])
def test_the_coverage_of_exchangeable_windows_is_exact(level):
    """Over all orders of n + 1 distinct errors the last is covered k / (n + 1) of the time, no more, no less.

    That is the finite-sample statement itself, counted, not sampled.
    """
    values = np.array([0.3, 1.1, 2.0, 5.0, 7.5], dtype=np.float32)
    covered = []
    for order in permutations(values):
        *known, last = order
        errors_known = np.array(known, dtype=np.float32).reshape(-1, 1, 1)
        found = calibrate(errors_known, ones(4, 1), score="absolute", levels=[level])
        covered.append(last <= half(found, level, ones(1, 1)).item())
    share = Fraction(sum(covered), len(covered))
    assert share == Fraction(rank_of(level, 4), 5)
    assert (
        Fraction(level).limit_denominator(100)
        <= share
        < Fraction(level).limit_denominator(100) + Fraction(1, 5)
    )


@given(st.integers(5, 60), st.lists(levels, min_size=2, max_size=5))
@settings(max_examples=50, deadline=None)
def test_a_higher_level_is_never_narrower(count, asked):
    found = calibrate(errors(count, 2, 3, seed=count), ones(count, 3), score="absolute")
    possible = sorted(level for level in asked if rank_of(level, count) <= count)
    widths = [found.quantile(level) for level in possible]
    assert all(bool((low <= high).all()) for low, high in zip(widths, widths[1:], strict=False))


@given(st.integers(1, 200), levels)
@settings(max_examples=80, deadline=None)
def test_a_level_that_is_not_stored_takes_the_next_stored_rank(count, level):
    """Interpolating between two ranks would cover less than was asked for."""
    known = errors(count, 1, 1, seed=count)
    found = calibrate(known, ones(count, 1), score="absolute")
    exact = np.sort(known[:, 0, 0])
    rank = rank_of(level, count)
    if rank > count:
        with pytest.raises(LevelError, match=f"takes {windows_needed(level)} windows .* found {count}"):
            found.quantile(level)
        return
    value = found.quantile(level).item()
    assert value >= exact[rank - 1] and value in exact
    if level in STORED_LEVELS:
        assert value == exact[rank - 1]


def test_asked_levels_keep_their_exact_rank_whatever_the_grid():
    known = errors(5000, 1, 1)
    exact = np.sort(known[:, 0, 0])[rank_of(0.8765, 5000) - 1]
    with_level = calibrate(known, ones(5000, 1), score="absolute", levels=[0.8765])
    without = calibrate(known, ones(5000, 1), score="absolute")
    assert with_level.quantile(0.8765).item() == exact < without.quantile(0.8765).item()


def test_what_is_stored_is_small_whatever_the_windows():
    """All scores of a run of 321 variables would be 700 MB."""
    found = calibrate(errors(4000, 3, 2), ones(4000, 2), score="absolute", levels=[0.8, 0.95])
    assert len(found.values) <= len(STORED_LEVELS) + 4 and found.values.dtype == torch.float32


# Scaled by the window's deviation


def test_scaled_intervals_widen_with_the_window():
    std = np.array([[0.5], [2.0]], dtype=np.float32)
    found = calibrate(errors(40, 3, 1), ones(40, 1), score="scaled")
    low, high = half(found, 0.8, std)
    np.testing.assert_allclose(high, 4 * low, rtol=1e-6)


def test_scaled_scores_do_not_change_with_the_units():
    """Errors and deviations in other units: the same intervals in those units."""
    known, std = errors(50, 4, 2), 1 + errors(50, 2, seed=1)
    plain = half(calibrate(known, std, score="scaled"), 0.8, std)
    scaled = half(calibrate(8 * known, 8 * std, score="scaled"), 0.8, 8 * std)
    np.testing.assert_allclose(scaled, 8 * plain, rtol=1e-6)


def test_absolute_intervals_do_not_read_the_deviation():
    found = calibrate(errors(40, 3, 2), errors(40, 2), score="absolute")
    widths = half(found, 0.8, np.array([[1, 5], [7, 0.1]], dtype=np.float32))
    assert widths.shape == (2, 3, 2) and (widths[0] == widths[1]).all()


# The choice


def drawn(spread: Sequence[float], horizon: int = 2, seed: int = 0) -> FloatArray:
    """Errors [n, H, 1] whose spread differs from window to window."""
    return errors(len(spread), horizon, 1, seed=seed) * np.array(spread, dtype=np.float32)[:, None, None]


def test_the_score_that_follows_the_errors_is_chosen():
    """Where errors grow with the window's deviation, and where they do not."""
    std = 0.1 + 3 * errors(400, 1, seed=2)
    start = np.arange(400)
    assert next(iter(choose_score(drawn(std[:, 0].tolist()), std, start))) == "scaled"
    assert next(iter(choose_score(drawn([1.0] * 400), std, start))) == "absolute"


def test_the_windows_that_judge_share_no_future_with_those_that_calibrate():
    """An error of 1e6 in a window that overlaps both halves must move nothing."""
    known, std, start = drawn([1.0] * 200, horizon=8), ones(200, 1), np.arange(200)
    spoiled = known.copy()
    spoiled[100:107] = 1e6  # begins before row 99 + 8
    assert choose_score(spoiled, std, start) == choose_score(known, std, start)
    spoiled[107] = 1e6
    assert choose_score(spoiled, std, start) != choose_score(known, std, start)


def test_too_few_windows_choose_nothing():
    assert choose_score(errors(37, 1, 1), ones(37, 1), np.arange(37)) == {}
    assert choose_score(errors(39, 30, 1), ones(39, 1), np.arange(39)) == {}
    assert len(choose_score(errors(40, 1, 1), ones(40, 1), np.arange(40))) == 2
    assert choose_score(errors(1, 1, 1), ones(1, 1), np.arange(1)) == {}


@pytest.mark.parametrize("level", [0.5, 0.8, 0.95])
def test_the_interval_score_is_least_at_the_true_quantile(level):
    """A proper score: no width but the level's own is rewarded."""
    known = errors(20_000, 1, 1)
    true = np.quantile(known, level)

    def scored(width: float) -> float:
        return interval_score(known, np.full_like(known, width), level)

    assert scored(true) < min(scored(0.8 * true), scored(1.25 * true))
    by_hand = np.mean([2 * true + 2 / (1 - level) * max(e - true, 0) for e in known[:, 0, 0].astype(float)])
    assert scored(true) == pytest.approx(by_hand, rel=1e-5)


def test_the_choice_is_by_the_mean_over_its_levels():
    known, std, start = drawn([1.0, 2.0] * 40), 1 + errors(80, 1), np.arange(80)
    found = choose_score(known, std, start)
    fitted = calibrate(known[:40], std[:40], score="scaled", levels=CHOICE_LEVELS)
    later = slice(41, None)  # 39 + horizon
    by_hand = [
        (1 - p) / 2 * interval_score(known[later], half(fitted, p, std[later]), p) for p in CHOICE_LEVELS
    ]
    assert found["scaled"] == pytest.approx(np.mean(by_hand), rel=1e-6)


# Rolling


def test_rolling_intervals_are_those_of_a_plain_loop():
    """Window w's step h is calibrated on the windows whose step h is known when w forecasts."""
    horizon, windows, count = 4, 6, 5
    known = errors(count + windows + horizon - 1, horizon, 2)
    found = rolling_half_width(known, 0.8, windows=windows, count=count)
    for j in range(count):
        w = windows + horizon - 1 + j
        for step in range(horizon):
            h = step + 1
            used = known[w - h - windows + 1 : w - h + 1, step]
            expected = np.sort(used, axis=0)[rank_of(0.8, windows) - 1]
            assert (found[j, step] == expected).all()


# What cannot be had


@pytest.mark.parametrize("level", [0.0, 1.0, -0.5, 80.0, math.nan])
def test_a_level_outside_0_to_1_is_refused(level):
    found = calibrate(errors(10, 1, 1), ones(10, 1), score="absolute")
    with pytest.raises(LevelError, match="--levels: expected numbers between 0 and 1"):
        found.quantile(level)
    with pytest.raises(LevelError, match="--levels: expected numbers between 0 and 1"):
        rolling_half_width(errors(10, 1, 1), level, windows=5, count=5)


def test_too_few_rolling_windows_are_refused():
    with pytest.raises(LevelError, match="0.95 takes 19 windows of calibration or more, found 18"):
        rolling_half_width(errors(20, 1, 1), 0.95, windows=18, count=2)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_errors_that_are_not_finite_are_refused(bad):
    """Sorted to the end, they would make every high level infinite, silently."""
    known = errors(10, 2, 2)
    known[3, 1, 0] = bad
    with pytest.raises(ValueError, match="expected finite errors"):
        calibrate(known, ones(10, 2), score="absolute")
    with pytest.raises(ValueError, match="at least one window, found 0"):
        calibrate(known[:0], ones(0, 2), score="absolute")


def test_a_calibration_comes_back_from_a_file_of_plain_values(tmp_path):
    found = calibrate(errors(30, 2, 2), ones(30, 2), score="scaled", levels=[0.77])
    torch.save(found.state(), tmp_path / "state")
    again = Calibration.from_state(torch.load(tmp_path / "state", weights_only=True))
    assert (again.score, again.count) == ("scaled", 30)
    assert torch.equal(again.ranks, found.ranks) and torch.equal(again.values, found.values)
