"""What the micro-steps (forward and backward passes) of one optimizer step share."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class StepValue:
    """A trained value of one optimizer step: computed in its first micro-step, with its gradient in the last.

    Those between see a copy of their own, which gathers their gradients in float32 until the last one's
    backward pass adds them: the weights behind the value get one backward pass a step, and the gradient
    they would have had from one in every micro-step. Under DistributedDataParallel the last micro-step is
    the one that reduces gradients, so the weights' hooks run in it as they must.
    """

    def __init__(self) -> None:
        """Nothing is computed yet."""
        self._kept: tuple[Tensor, Tensor] | None = None

    def get(self, compute: Callable[[], Tensor], *, last: bool) -> Tensor:
        """The value for a micro-step; ``last``: its backward pass completes the gradients.

        ``compute`` gives the value, with its graph; it is called once.
        """
        if self._kept is None:
            value = compute()
            if last:
                return value
            self._kept = value, value.detach().float().requires_grad_()
        value, copy = self._kept
        if not last:
            return copy.to(value.dtype)
        self._kept = None
        if copy.grad is not None and value.requires_grad:
            gathered = copy.grad
            value.register_hook(lambda gradient: gradient + gathered.to(gradient.dtype))
        return value


class MicroStep(NamedTuple):
    """One of the passes of an optimizer step, handed to the model with its batch."""

    shared: StepValue
    """Of this optimizer step: all its micro-steps hand over the same."""
    last: bool
