"""A value shared by the passes of an optimizer step: computed once, with the gradient of them all."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from utils.micro_step import StepValue

FACTORS = [torch.randn(4, 3, generator=torch.Generator().manual_seed(s)) for s in range(3)]


def weight() -> Tensor:
    return torch.arange(12.0).reshape(4, 3).requires_grad_()


def loss(value: Tensor, factor: Tensor) -> Tensor:
    return (value * factor).sin().sum()


def step(w: Tensor, calls: list[int], *, passes: int) -> None:
    shared = StepValue()

    def compute() -> Tensor:
        calls.append(1)
        return w.square()

    for i in range(passes):
        value = shared.get(compute, last=i == passes - 1)
        loss(value, FACTORS[i]).backward()


@pytest.mark.parametrize("passes", [1, 2, 3])
def test_the_gradient_is_the_sum_over_passes_and_the_value_is_computed_once(passes: int) -> None:
    w, wanted = weight(), weight()
    calls: list[int] = []
    for _ in range(2):  # two optimizer steps: nothing is left over from the first
        w.grad = wanted.grad = None
        step(w, calls, passes=passes)
        for factor in FACTORS[:passes]:
            loss(wanted.square(), factor).backward()
        torch.testing.assert_close(w.grad, wanted.grad)
    assert len(calls) == 2


def test_the_weights_get_their_gradient_in_the_last_pass_alone() -> None:
    """A data-parallel wrapper reduces it there."""
    w, shared = weight(), StepValue()
    loss(shared.get(w.square, last=False), FACTORS[0]).backward()
    assert w.grad is None
    loss(shared.get(w.square, last=True), FACTORS[1]).backward()
    assert w.grad is not None
