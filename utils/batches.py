"""Items of a data set as one batch, with the prompts that its windows are told of by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from utils.types import Batch, PromptMaker

WINDOWS_AT_ONCE = 256


def batched(items: Sequence[Batch], prompts: PromptMaker | None = None) -> Batch:
    """Items as one batch; ``prompts`` makes the token ids of its windows, on the CPU, where they lie."""
    batch: Batch = default_collate(list(items))
    if prompts is None:
        return batch
    texts = {"text": batch.text, "age": batch.text_age} if batch.text_age.numel() else {}
    return batch._replace(prompt=prompts(batch.x, batch.x_mark, batch.words, **texts))


def window_batches(
    windows: Dataset[Batch], *, chosen: Tensor | None = None, size: int = WINDOWS_AT_ONCE
) -> Iterator[Batch]:
    """The ``chosen`` windows, by default every one, in order, ``size`` at a time."""
    if chosen is None:
        chosen = torch.arange(len(windows))  # type: ignore[arg-type]  # torch's Dataset has no __len__
    for part in chosen.split(size):
        if len(part):
            yield batched([windows[i] for i in part.tolist()])
