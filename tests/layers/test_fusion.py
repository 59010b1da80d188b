"""Fusion layers: bounds, zero starts and directions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from layers.fusion import (
    ConfidenceGate,
    class_confidence,
    trend_bound,
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def shake(module: torch.nn.Module, size: float) -> None:
    """Weights far from their start."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * size)


def test_confidence_is_one_minus_relative_entropy() -> None:
    """The documented ends: 0 for a uniform distribution, 1 for a certain one."""
    probabilities = torch.cat([torch.full((1, 4), 0.25), torch.eye(4)[:1], draw(6, 4).softmax(-1)])
    p = probabilities.double()
    reference = 1 + (p * p.clamp(min=1e-300).log()).sum(-1) / torch.tensor(4.0).double().log()
    found = class_confidence(probabilities)
    assert found.shape == (8, 1)
    torch.testing.assert_close(found[:, 0].double(), reference, rtol=0, atol=1e-6)


@pytest.mark.parametrize("lead", [10.0, 100.0, 200.0, 1e4])
def test_confidence_of_a_certain_class_has_a_finite_gradient(lead: float) -> None:
    """A probability that underflows to 0 made every gradient of the model NaN."""
    logits = torch.tensor([[lead, 0.0, 0.0, -1.0]], requires_grad=True)
    confidence = class_confidence(logits.softmax(-1))
    confidence.sum().backward()
    assert 0 <= confidence.item() <= 1
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("size", [0.0, 1.0, 30.0])
def test_confidence_opens_the_gate_monotonically(size: float) -> None:
    """A free slope could learn that a confident trend counts less, against the document."""
    gate = ConfidenceGate()
    if size:
        shake(gate, size)
    opened = gate(torch.linspace(0, 1, 50)[:, None])
    assert ((opened >= 0) & (opened <= 1)).all()
    assert (opened.diff(dim=0) >= 0).all()


def test_confidence_gate_starts_where_it_says() -> None:
    """sigmoid(-1 + 2 c): a start that is shut has no gradient, one that is open is no gate."""
    confidence = torch.linspace(0, 1, 5)[:, None]
    torch.testing.assert_close(ConfidenceGate()(confidence), torch.sigmoid(-1 + 2 * confidence))


def test_trend_bound_is_its_formula() -> None:
    """0.5 (h / H) gate trend_gate |forecast_h - last|, h from 1: nothing is changed at the origin."""
    forecast, last = draw(3, 7), draw(3, 1, seed=1)
    gate, opened = torch.rand(3, 1), torch.rand(3, 1)
    found = trend_bound(forecast, last, gate, opened)
    for s in range(3):
        for h in range(7):
            distance = abs(forecast[s, h].item() - last[s].item())
            reference = 0.5 * (h + 1) / 7 * gate[s].item() * opened[s].item() * distance
            assert found[s, h].item() == pytest.approx(reference, abs=1e-6)
