"""Items of a data set as one batch, with the prompts that its windows are told of by."""

from __future__ import annotations

from collections.abc import Sequence

from torch.utils.data import default_collate

from utils.types import Batch, PromptMaker


def batched(items: Sequence[Batch], prompts: PromptMaker | None = None) -> Batch:
    """Items as one batch; ``prompts`` makes the token ids of its windows, on the CPU, where they lie."""
    batch: Batch = default_collate(list(items))
    return batch if prompts is None else batch._replace(prompt=prompts(batch.x, batch.x_mark))
