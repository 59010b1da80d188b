"""A value shared by the passes of an optimizer step: computed once, with the gradient of them all."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from layers.step_value import StepValue

FACTORS = [torch.randn(4, 3, generator=torch.Generator().manual_seed(s)) for s in range(3)]


def weight() -> Tensor:
    return torch.arange(12.0).reshape(4, 3).requires_grad_()


def loss(value: Tensor, factor: Tensor) -> Tensor:
    return (value * factor).sin().sum()


def step(shared: StepValue, w: Tensor, calls: list[int], *, passes: int) -> None:
    def compute() -> Tensor:
        calls.append(1)
        return w.square()

    for i in range(passes):
        value = shared.get(compute, first=i == 0, last=i == passes - 1)
        loss(value, FACTORS[i]).backward()


@pytest.mark.parametrize("passes", [1, 2, 3])
def test_the_gradient_is_the_sum_over_passes_and_the_value_is_computed_once(passes: int) -> None:
    w, wanted = weight(), weight()
    calls: list[int] = []
    shared = StepValue()
    for _ in range(2):  # two optimizer steps: nothing is left over from the first
        w.grad = wanted.grad = None
        step(shared, w, calls, passes=passes)
        for factor in FACTORS[:passes]:
            loss(wanted.square(), factor).backward()
        torch.testing.assert_close(w.grad, wanted.grad)
    assert len(calls) == 2


def test_the_weights_get_their_gradient_in_the_last_pass_alone() -> None:
    """A data-parallel wrapper reduces it there."""
    w, shared = weight(), StepValue()
    loss(shared.get(w.square, first=True, last=False), FACTORS[0]).backward()
    assert w.grad is None
    loss(shared.get(w.square, first=False, last=True), FACTORS[1]).backward()
    assert w.grad is not None


def test_a_step_that_was_broken_off_leaves_nothing_behind() -> None:
    w, wanted, shared = weight(), weight(), StepValue()
    loss(shared.get(w.square, first=True, last=False), FACTORS[2]).backward()
    with torch.no_grad():
        w.add_(1), wanted.add_(1)
    step(shared, w, [], passes=2)
    for factor in FACTORS[:2]:
        loss(wanted.square(), factor).backward()
    torch.testing.assert_close(w.grad, wanted.grad)
