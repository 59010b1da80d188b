from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler

from data_provider import scaling


def sample() -> np.ndarray:
    return np.random.default_rng(0).normal([5.0, -1e4, 3.0], [2.0, 1e-3, 100.0], (500, 3))


def test_agrees_with_scikit_learn_in_float64():
    values = sample()
    reference = StandardScaler().fit(values)
    statistics = scaling.fit(torch.from_numpy(values))
    assert statistics.mean.dtype == statistics.std.dtype == torch.float64
    np.testing.assert_allclose(statistics.mean, reference.mean_, rtol=1e-12)
    np.testing.assert_allclose(statistics.std, reference.scale_, rtol=1e-9)
    scaled = scaling.transform(torch.from_numpy(values), statistics)
    np.testing.assert_allclose(scaled, reference.transform(values), atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inverse_takes_transform_back(dtype):
    values = torch.from_numpy(sample())
    statistics = scaling.fit(values)
    scaled = scaling.transform(values, statistics).to(dtype).reshape(5, 100, 3)
    torch.testing.assert_close(
        scaling.inverse(scaled, statistics), values.reshape(5, 100, 3), rtol=1e-6, atol=1e-5
    )


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e8])
def test_a_constant_column_becomes_zero(constant):
    """Its rounding error as a deviation blows the column up to 1e16."""
    values = torch.full((333, 1), constant, dtype=torch.float64)
    statistics = scaling.fit(values)
    assert statistics.std.item() == 1.0
    assert torch.equal(scaling.transform(values, statistics), torch.zeros_like(values))


def test_another_number_of_columns_is_an_error():
    """Broadcasting would scale a single variable by the statistics of all."""
    statistics = scaling.fit(torch.from_numpy(sample()))
    with pytest.raises(ValueError, match="expected 3 columns as fitted, found 1"):
        scaling.inverse(torch.zeros(4, 1), statistics)
    with pytest.raises(ValueError, match=r"\[T, N\]"):
        scaling.fit(torch.zeros(0, 3))
