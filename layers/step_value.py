"""A trained value that all forward passes of one optimizer step share."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


class StepValue:
    """Computed in the first pass of an optimizer step; its gradient flows back in the last one.

    The passes between see a copy of their own, which gathers their gradients in float32 until the
    last pass's backward adds them: the weights behind the value get one backward pass a step, and
    the gradient they would have had from one in every pass. Under DistributedDataParallel the last
    pass is the one that reduces gradients, so the weights' hooks run in it as they must.
    """

    def __init__(self) -> None:
        """Nothing is held between steps."""
        self._held: Tensor | None = None
        self._copy: Tensor | None = None

    def get(self, compute: Callable[[], Tensor], *, first: bool, last: bool) -> Tensor:
        """The value for a pass that is the ``first`` or the ``last`` of its step, or both.

        Args:
            compute: gives the value, with its graph; called in the first pass.
            first: forget what a step that was broken off may have left.
            last: this pass's backward completes the gradients.
        """
        if first:
            self._held = self._copy = None
        if first and last:
            return compute()
        if self._held is None or self._copy is None:
            self._held = compute()
            self._copy = self._held.detach().float().requires_grad_()
        if not last:
            return self._copy.to(self._held.dtype)
        held, copy = self._held, self._copy
        self._held = self._copy = None
        if copy.grad is not None and held.requires_grad:
            gathered = copy.grad
            held.register_hook(lambda gradient: gradient + gathered.to(gradient.dtype))
        return held
