"""A map that goes on under absolute errors: what it is to reach, and that it moves nothing else."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.linear_model import QuantileRegressor

from layers import start_refining
from layers.start_refining import refined


def test_it_reaches_least_absolute_errors_where_nothing_drops_out(monkeypatch):
    """Against scikit-learn's median regression, on futures with a few wild values that squares follow."""
    monkeypatch.setattr(start_refining, "DROPOUT", 0.0)
    monkeypatch.setattr(start_refining, "EPOCHS", 400)
    monkeypatch.setattr(start_refining, "RATE", 0.02)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 3))
    y = x @ np.array([[1.0], [-2.0], [0.5]]) + 0.1 * rng.normal(size=(400, 1))
    y[:20] += 30
    solved = np.linalg.lstsq(x, y, rcond=None)[0]
    reference = QuantileRegressor(quantile=0.5, alpha=0.0, fit_intercept=False).fit(x, y[:, 0])
    given = torch.from_numpy(x).float(), torch.from_numpy(y).float()
    found = refined(*given, torch.from_numpy(solved), lookback=3)
    np.testing.assert_allclose(found[:, 0], reference.coef_, atol=0.02)
    assert np.abs(solved[:, 0] - reference.coef_).max() > 0.3, "squares would have done"


def test_it_is_repeatable_and_leaves_rows_and_the_generator_as_they_were():
    torch.manual_seed(3)
    features, future, solved = torch.randn(50, 6), torch.randn(50, 2), torch.randn(6, 2).double()
    before, state = (features.clone(), solved.clone()), torch.get_rng_state()
    found = [refined(features, future, solved, lookback=4) for _ in range(2)]
    assert torch.equal(*found) and found[0].dtype == torch.float64 and not torch.equal(found[0], solved)
    assert torch.equal(features, before[0]) and torch.equal(solved, before[1])
    assert torch.equal(torch.get_rng_state(), state)
