"""What the processes of a run agree on before the last backward pass of an optimizer step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from utils.errors import UserError
from utils.training.objective import Loss


class NonFiniteLossError(UserError):
    """The loss is inf or NaN; nothing was updated."""


def agree(
    accelerator: Accelerator, losses: Sequence[Loss], starts: Sequence[Tensor], *, stop: bool, step: int
) -> bool:
    """Whether any process was asked to ``stop``, once all have made sure that every loss is finite.

    One reduction and one look at a tensor per optimizer step, before its last backward pass, at whose end
    DeepSpeed moves the weights.

    Args:
        accelerator: of the run.
        losses: of this process's passes in this optimizer step.
        starts: where the windows of each pass begin.
        stop: whether this process was asked to.
        step: the optimizer step, from 1.

    Raises:
        NonFiniteLossError: in all processes alike; it names the windows.
    """
    wrong = (~torch.isfinite(torch.stack([loss.total.detach() for loss in losses]))).sum()
    flags = torch.stack([wrong, torch.full_like(wrong, int(stop))])
    wrong_passes, stops = accelerator.reduce(flags, "sum").tolist()
    if not wrong_passes:
        return bool(stops)
    own = [
        (loss.total.item(), start.tolist(), loss.not_finite())
        for loss, start in zip(losses, starts, strict=True)
        if not torch.isfinite(loss.total)
    ]
    every = gather_object(own)
    windows = "; ".join(dict.fromkeys(f"rows {rows}" for _, rows, _ in every))
    names = "; ".join(dict.fromkeys(name for _, _, name in every))
    raise NonFiniteLossError(
        f"the loss is {every[0][0]} at optimizer step {step} ({names}), nothing was updated and the "
        f"checkpoints saved before are good; windows that start at {windows}. Lower --learning_rate, set "
        "--max_grad_norm, or look for extreme values in these windows"
    )
