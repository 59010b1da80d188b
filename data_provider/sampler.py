"""The order of the training windows, a function of seed and epoch alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

AT_ONCE = 65536
"""Indices that are Python's numbers at once."""


class EpochSampler(Sampler[int]):
    """The first ``taken`` of a random permutation of ``range(length)``, another in each epoch.

    It depends on seed and epoch alone: not on the global random state, which it does not touch,
    nor on how many epochs this process has run. A resumed run therefore sees the order it would
    have seen. Iterating does not advance the epoch; the training loop calls `set_epoch`.
    """

    def __init__(self, length: int, seed: int, *, taken: int | None = None) -> None:
        """Start at epoch 0; ``taken`` None takes all.

        Raises:
            ValueError: for more than there are.
        """
        if taken is not None and not 0 <= taken <= length:
            raise ValueError(f"taken: expected 0 to {length}, the number of items, found {taken}")
        self.length = length
        self.seed = seed
        self.taken = length if taken is None else taken
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation of this epoch, from the next iteration on."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Number of indices in an epoch."""
        return self.taken

    def __iter__(self) -> Iterator[int]:
        """The permutation of the current epoch."""
        # SeedSequence mixes the two, so (seed 1, epoch 0) and (seed 0, epoch 1) are unrelated
        mixed = np.random.SeedSequence((self.seed, self.epoch)).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(mixed >> np.uint64(1)))
        for part in self._order(generator).split(AT_ONCE):
            yield from part.tolist()

    def _order(self, generator: torch.Generator) -> Tensor:
        """The indices of an epoch."""
        return torch.randperm(self.length, generator=generator)[: self.taken]


class SeriesSampler(EpochSampler):
    """Draws a series and then one of its windows: every series as often as any other, however long.

    All series have had a turn before one has its next.
    """

    def __init__(self, counts: Tensor, seed: int, *, taken: int) -> None:
        """``counts`` [S]: the windows of each series, numbered behind each other."""
        super().__init__(int(counts.sum()), seed, taken=taken)
        self.counts = counts

    def _order(self, generator: torch.Generator) -> Tensor:
        first = self.counts.cumsum(0) - self.counts
        drawn = (self.counts > 0).nonzero().squeeze(1)
        rounds = -(-self.taken // len(drawn))
        turns = [drawn[torch.randperm(len(drawn), generator=generator)] for _ in range(rounds)]
        series = torch.cat(turns)[: self.taken]
        share = torch.rand(len(series), generator=generator, dtype=torch.float64)
        return first[series] + (share * self.counts[series]).long()
