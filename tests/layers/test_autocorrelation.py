"""Auto-correlation against its definition, in float64 and without any FFT."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from layers.autocorrelation import (
    AutoCorrelation,
    aggregate_delays,
    delay_correlation,
    delay_count,
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def correlation_by_definition(q: np.ndarray, k: np.ndarray) -> np.ndarray:
    """O(T^2): mean over channels of sum_t q[t + d] k[t], time taken as a circle."""
    length, width = q.shape
    found = np.zeros(length)
    for delay in range(length):
        for t in range(length):
            for c in range(width):
                found[delay] += q[(t + delay) % length, c] * k[t, c] / width
    return found


def attention_by_definition(q: np.ndarray, k: np.ndarray, v: np.ndarray, count: int) -> np.ndarray:
    """The best delays' rolled values, mixed by the softmax of their correlations."""
    correlation = correlation_by_definition(q, k)
    best = np.argsort(-correlation, kind="stable")[:count]
    weights = np.exp(correlation[best] - correlation[best].max())
    weights /= weights.sum()
    out = np.zeros_like(v)
    for weight, delay in zip(weights, best, strict=True):
        for t in range(len(v)):
            out[t] += weight * v[(t + delay) % len(v)]
    return out


@pytest.mark.parametrize("length", [1, 2, 7, 24, 33])
def test_correlation_by_fft_is_the_quadratic_definition(length):
    """A conjugate on the wrong side mirrors the delays; odd lengths break an irfft without n."""
    q, k = random(3, length, 4), random(3, length, 4, seed=1)
    expected = np.stack([correlation_by_definition(a.numpy(), b.numpy()) for a, b in zip(q, k, strict=True)])
    np.testing.assert_allclose(delay_correlation(q, k).numpy(), expected, atol=1e-10)


def test_the_whole_layer_is_its_definition_head_by_head():
    """Projections, heads, delays, weights and rolls together, against loops."""
    torch.manual_seed(0)
    layer = AutoCorrelation(d_model=6, n_heads=2, factor=1.5).double()
    x = random(2, 20, 6)
    count = int(1.5 * math.log(20))
    with torch.no_grad():
        q, k, v = (
            p(x).numpy() for p in (layer.query_projection, layer.key_projection, layer.value_projection)
        )
        merged = np.zeros_like(q)
        for window in range(2):
            for columns in (slice(0, 3), slice(3, 6)):
                one = [a[window, :, columns] for a in (q, k, v)]
                merged[window, :, columns] = attention_by_definition(one[0], one[1], one[2], count)
        expected = layer.out_projection(torch.from_numpy(merged))
        torch.testing.assert_close(layer(x, x), expected, rtol=1e-9, atol=1e-9)


def test_a_periodic_series_is_aggregated_over_whole_periods():
    """What the layer is for: the delays found are multiples of the period, so the series passes unchanged."""
    wave = torch.sin(2 * torch.pi * torch.arange(48, dtype=torch.float64) / 12)[None, :, None].repeat(1, 1, 3)
    mixed = aggregate_delays(wave, delay_correlation(wave, wave), count=3)
    torch.testing.assert_close(mixed, wave)


def test_a_longer_context_is_cut_and_a_shorter_one_filled_with_zeros():
    """Decoder and encoder differ in length; keys and values must be treated alike."""
    torch.manual_seed(0)
    layer = AutoCorrelation(d_model=4, n_heads=1, factor=1.0).double()
    queries, context = random(2, 16, 4), random(2, 30, 4, seed=1)
    torch.testing.assert_close(layer(queries, context), layer(queries, context[:, :16]))
    with torch.no_grad():
        for projection in (layer.key_projection, layer.value_projection):
            projection.bias.zero_()  # zeros stay zeros, so filling before and after is the same
    filled = torch.cat([context[:, :9], torch.zeros(2, 7, 4, dtype=torch.float64)], dim=1)
    torch.testing.assert_close(layer(queries, context[:, :9]), layer(queries, filled))


@pytest.mark.parametrize("training", [True, False])
def test_neighbours_in_the_batch_do_not_choose_a_windows_delays(training):
    """The published code shares the delays among a training batch's windows."""
    torch.manual_seed(0)
    layer = AutoCorrelation(d_model=4, n_heads=2, factor=1.0).train(training)
    x = random(5, 24, 4).float()
    torch.testing.assert_close(layer(x, x)[2:3], layer(x[2:3], x[2:3]))


@pytest.mark.parametrize(
    ("length", "factor", "expected"), [(1, 1, 1), (2, 1, 1), (512, 1, 6), (512, 3, 18), (4, 9, 4)]
)
def test_the_number_of_delays_is_within_the_series(length, factor, expected):
    assert delay_count(length, factor) == expected


def test_gradients_are_those_of_finite_differences():
    """Through the softmax weights and the rolled values; the choice of delays itself is constant."""
    q, k, v = (random(1, 6, 2, seed=s).requires_grad_() for s in range(3))
    assert torch.autograd.gradcheck(
        lambda a, b, c: aggregate_delays(c, delay_correlation(a, b), count=2), (q, k, v)
    )


def test_half_precision_is_lifted_for_the_fft():
    """An FFT of bfloat16 does not exist: under autocast the layer would fail."""
    torch.manual_seed(0)
    layer = AutoCorrelation(d_model=4, n_heads=1, factor=1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(random(2, 16, 4).float(), random(2, 16, 4).float())
    assert torch.isfinite(out).all()


def test_a_width_that_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="--d_model: expected a multiple of --n_heads"):
        AutoCorrelation(d_model=6, n_heads=4, factor=1.0)
