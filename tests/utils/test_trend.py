"""Trend labels against plain restatements."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from utils.trend import (
    CUT_QUANTILES,
    DIRECTIONS,
    MAGNITUDES,
    RELATIVE_CUTS,
    TrendLabel,
    direction_of,
    fit_cuts,
    magnitude_given_direction,
    magnitude_of,
    ordinal_bin_of,
    ordinal_scale,
    trend_measure,
)
from utils.windows import floored_std, per_series

CUTS = (-0.5, -0.3, 0.1, 0.4, 0.9)
MEASURES = torch.randn(3000, generator=torch.Generator().manual_seed(0))


def plain_direction(t: float, cuts: tuple[float, ...]) -> str:
    return "down" if t < cuts[1] else "up" if t > cuts[3] else "flat"


def plain_magnitude(t: float, cuts: tuple[float, ...]) -> str:
    if t < cuts[0]:
        return "strong down"
    if t < cuts[2]:
        return "weak down"
    return "strong up" if t > cuts[4] else "weak up"


def test_measures_are_their_formulas() -> None:
    """A label of (last - first) / |first| on standardised data is a sign in disguise."""
    y = torch.randn(5, 7, generator=torch.Generator().manual_seed(1))
    reference, scale = torch.randn(5), torch.rand(5) + 0.1
    level = trend_measure(y, reference=reference, scale=scale, kind="level")
    relative = trend_measure(y, reference=reference, scale=scale, kind="relative")
    for s in range(5):
        values = y[s].tolist()
        expected = (sum(values) / 7 - reference[s].item()) / scale[s].item()
        assert level[s].item() == pytest.approx(expected, rel=1e-5)
        assert relative[s].item() == pytest.approx(
            (values[-1] - values[0]) / max(abs(values[0]), 0.1), rel=1e-5
        )


def test_relative_measure_of_a_zero_start_is_finite() -> None:
    """A standardised future that begins at exactly 0 divided by zero."""
    y = torch.tensor([[0.0, 1.0], [0.0, -1.0], [0.0, 0.0]])
    found = trend_measure(y, reference=torch.zeros(3), scale=torch.ones(3), kind="relative")
    assert found.isfinite().all()
    assert found.sign().tolist() == [1, -1, 0]


def test_classes_are_their_definitions_from_down_to_up() -> None:
    """The document orders the classes up/down/flat in one place and down to up in another."""
    cuts = torch.tensor(CUTS)
    values = torch.cat([MEASURES, torch.tensor([-9.0, 9.0])])
    directions = [DIRECTIONS[i] for i in direction_of(values, cuts)]
    magnitudes = [MAGNITUDES[i] for i in magnitude_of(values, cuts)]
    assert directions == [plain_direction(t, CUTS) for t in values.tolist()]
    assert magnitudes == [plain_magnitude(t, CUTS) for t in values.tolist()]
    assert DIRECTIONS == ("down", "flat", "up")
    assert MAGNITUDES == ("strong down", "weak down", "weak up", "strong up")


def test_ordinal_bins_leave_the_median_out() -> None:
    """Four thresholds bound five bins; with the median there would be six."""
    bounds = [CUTS[i] for i in (0, 1, 3, 4)]
    found = ordinal_bin_of(MEASURES, torch.tensor(CUTS))
    assert found.tolist() == [sum(t >= b for b in bounds) for t in MEASURES.tolist()]
    assert set(found.tolist()) == {0, 1, 2, 3, 4}


def test_level_cuts_are_quantiles_and_relative_cuts_the_documents() -> None:
    """Cuts fitted on anything but the training measures move the labels."""
    found = fit_cuts(MEASURES, "level")
    reference = np.quantile(MEASURES.double().numpy(), CUT_QUANTILES)
    np.testing.assert_allclose(found.numpy(), reference, rtol=1e-6)
    assert fit_cuts(MEASURES, "relative").tolist() == pytest.approx([-0.02, -0.005, 0.0, 0.005, 0.02])
    assert RELATIVE_CUTS == (-0.02, -0.005, 0.0, 0.005, 0.02)


def test_fitted_classes_are_a_third_and_a_quarter_each() -> None:
    """With the document's cuts 97% of ETTh1 was strong up or strong down."""
    cuts = fit_cuts(MEASURES, "level")
    directions = torch.bincount(direction_of(MEASURES, cuts)) / len(MEASURES)
    magnitudes = torch.bincount(magnitude_of(MEASURES, cuts)) / len(MEASURES)
    torch.testing.assert_close(directions, torch.full((3,), 1 / 3), rtol=0, atol=2e-3)
    torch.testing.assert_close(magnitudes, torch.full((4,), 1 / 4), rtol=0, atol=2e-3)


@pytest.mark.parametrize("kind", ["level", "relative"])
def test_table_counts_magnitudes_in_each_direction(kind: TrendLabel) -> None:
    """The consistency loss pulls towards this table: a wrong row teaches contradictions."""
    measures = MEASURES if kind == "level" else MEASURES * 0.02
    cuts = fit_cuts(measures, kind)
    found = magnitude_given_direction(measures, cuts)
    plain = tuple(cuts.tolist())
    for d, direction in enumerate(DIRECTIONS):
        inside = [t for t in measures.tolist() if plain_direction(t, plain) == direction]
        for m, magnitude in enumerate(MAGNITUDES):
            share = sum(plain_magnitude(t, plain) == magnitude for t in inside) / len(inside)
            assert found[d, m].item() == pytest.approx(share, abs=1e-6)
    assert found[0, 3] == 0  # down, yet strong up
    assert found[2, 0] == 0


def test_direction_that_never_occurs_has_a_uniform_row() -> None:
    """0 / 0 made the consistency loss NaN."""
    found = magnitude_given_direction(torch.full((10,), 5.0), torch.tensor(CUTS))
    assert found[:2].tolist() == [[0.25] * 4] * 2
    assert found[2].tolist() == [0, 0, 0, 1]


def test_ordinal_scale_puts_the_outer_cuts_at_the_quartiles() -> None:
    """A logistic of the wrong width makes every bin but the outer ones impossible."""
    cuts = torch.tensor([-1.0, -0.6, 0.0, 0.6, 1.0])
    scale = ordinal_scale(cuts)
    assert torch.sigmoid(cuts[0] / scale).item() == pytest.approx(0.25, abs=1e-6)
    assert scale.item() == pytest.approx(2 / (2 * math.log(3)), rel=1e-6)
    assert ordinal_scale(torch.tensor(RELATIVE_CUTS)).item() == pytest.approx(0.1)  # the floor


def test_variables_are_folded_window_by_window() -> None:
    """Folded in another order, labels belong to other series, and every loss is still finite."""
    windows = torch.arange(2 * 5 * 3.0).reshape(2, 5, 3)
    found = per_series(windows)
    assert found.shape == (6, 5)
    for b in range(2):
        for n in range(3):
            assert found[3 * b + n].tolist() == windows[b, :, n].tolist()
    assert per_series(windows[:, :1]).tolist() == [[v] for v in windows[:, 0].flatten().tolist()]


def test_deviation_of_a_nearly_constant_series_is_floored() -> None:
    """Divided by its own deviation, a constant window outweighs all others."""
    series = torch.randn(3, 9, generator=torch.Generator().manual_seed(2)) * 4
    series[1] = 2.0
    series[2] *= 1e-3
    found = floored_std(series)
    assert found[0].item() == pytest.approx(float(np.std(series[0].double().numpy())), rel=1e-6)
    assert found[1:].tolist() == pytest.approx([0.1, 0.1])
