"""Attention with dropout on a CPU against formulas in which the fate of every weight is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from layers import dropout_attention
from layers.dropout_attention import LEVELS, attend_with_dropout

HEADS, Q, C, E = 3, 5, 7, 4


def drawn(*, trained: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(HEADS, Q, E, generator=generator, dtype=torch.float64)
    key, value = torch.randn(2, HEADS, C, E, generator=generator, dtype=torch.float64)
    return (
        query.requires_grad_(trained),
        key.clone().requires_grad_(trained),
        value.clone().requires_grad_(trained),
    )


def fates(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What is kept, head by head, as it is drawn."""
    seen: list[Tensor] = []
    draw = dropout_attention._kept

    def kept(*args: object) -> Tensor:
        seen.append(draw(*args))  # type: ignore[arg-type]
        return seen[-1]

    monkeypatch.setattr(dropout_attention, "_kept", kept)
    return seen


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_forecast_and_gradients_are_autograd_s_of_the_formula(
    rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = fates(monkeypatch)
    found_of, wanted_of = drawn(trained=True), drawn(trained=True)
    found = attend_with_dropout(*found_of, rate)
    query, key, value = wanted_of
    weights = (query @ key.transpose(1, 2) / E**0.5).softmax(-1) * torch.stack(seen) / (1 - rate)
    wanted = weights @ value
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)  # the rate is a whole number of levels
    exact = weights * (1 - rate) * LEVELS / (LEVELS - round(rate * LEVELS)) @ value
    torch.testing.assert_close(found, exact)
    by = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (found * by).sum().backward(), (exact * by).sum().backward()
    for own, other in zip(found_of, wanted_of, strict=True):
        torch.testing.assert_close(own.grad, other.grad)
    forward, backward = seen[:HEADS], seen[HEADS:]
    assert all(torch.equal(a, b) for a, b in zip(forward, backward, strict=True))


def test_gradients_are_those_of_finite_differences() -> None:
    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        torch.manual_seed(3)  # the same fates for every call
        return attend_with_dropout(query, key, value, 0.3)

    assert torch.autograd.gradcheck(attend, drawn(trained=True))


@pytest.mark.parametrize("rate", [0.1, 0.15, 0.5])
def test_the_share_of_dropped_weights_is_the_rate_and_their_places_have_no_pattern(rate: float) -> None:
    rows, columns = 1000, 1001
    kept = dropout_attention._kept(rows, columns, round(rate * LEVELS), torch.Generator().manual_seed(0))
    dropped = (~kept).double()
    std = (rate * (1 - rate)) ** 0.5
    assert abs(dropped.mean().item() - rate) < 4 * std / (rows * columns) ** 0.5
    for values in (dropped.mean(0), dropped.mean(1)):  # no column, and no row, stands out
        assert (values - rate).abs().max() < 5 * std / rows**0.5
    flat = dropped.flatten() - rate
    for step in (1, 2, 3, 4, columns):  # neighbours, the shares of one number, rows
        correlation = (flat[step:] * flat[:-step]).mean() / std**2
        assert abs(correlation.item()) < 4 / flat.numel() ** 0.5


def test_what_is_dropped_follows_torch_s_generator_and_differs_between_calls_and_heads() -> None:
    tensors = drawn()
    torch.manual_seed(5)
    first, second = attend_with_dropout(*tensors, 0.5), attend_with_dropout(*tensors, 0.5)
    torch.manual_seed(5)
    assert torch.equal(first, attend_with_dropout(*tensors, 0.5)) and not torch.equal(first, second)
    query, key, value = (t[:1].expand(2, -1, -1).contiguous() for t in tensors)
    one, other = attend_with_dropout(query, key, value, 0.5)
    assert not torch.equal(one, other)


def test_half_precision_stays_near() -> None:
    tensors = drawn()
    torch.manual_seed(1)
    wanted = attend_with_dropout(*tensors, 0.1)
    torch.manual_seed(1)
    query, key, value = (t.bfloat16() for t in tensors)
    found = attend_with_dropout(query, key, value, 0.1)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), wanted, rtol=0.05, atol=0.05)
