"""Auto-correlation: attention over delays of a whole series instead of single steps.

Source: Wu et al., "Autoformer: Decomposition Transformers with Auto-Correlation for Long-Term Series
Forecasting", NeurIPS 2021, section 3.2.

Shape legend: B windows, T steps of the queries, U steps of keys and values, D model width, A heads,
G = B * A heads of windows, E = D / A width of a head, k delays.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.errors import UserError


def delay_correlation(queries: Tensor, keys: Tensor) -> Tensor:
    """Circular correlation [G, T] of queries and keys, both [G, T, E], at each delay, mean over E.

    Entry d is the mean over channels of sum_t queries[t + d] * keys[t]. Computed by FFT (the
    Wiener-Khinchin theorem) in O(T log T), without the paper's factor 1 / T, as in the published code.
    """
    length = queries.shape[1]
    spectrum = torch.fft.rfft(queries, dim=1) * torch.fft.rfft(keys, dim=1).conj()
    return torch.fft.irfft(spectrum, n=length, dim=1).mean(dim=-1)


def delay_count(length: int, factor: float) -> int:
    """How many delays of a series of ``length`` steps are kept: floor(factor * ln(length)), 1 or more."""
    return min(length, max(1, int(factor * math.log(length))))


def aggregate_delays(values: Tensor, correlation: Tensor, *, count: int) -> Tensor:
    """Values [G, T, E] rolled by the ``count`` best delays and mixed by softmax, [G, T, E].

    A delay d brings step t + d to step t (the paper's time delay aggregation). Of equal correlations
    the shorter delay wins.
    """
    length = values.shape[1]
    ranked = correlation.sort(dim=1, descending=True, stable=True)
    weights = ranked.values[:, :count].softmax(dim=1)  # [G, k]
    delays = ranked.indices[:, :count]
    steps = torch.arange(length, device=values.device)
    mixed = torch.zeros_like(values)
    for i in range(count):
        source = (steps + delays[:, i : i + 1]) % length  # [G, T]
        rolled = values.gather(1, source.unsqueeze(-1).expand_as(values))
        mixed = mixed + weights[:, i, None, None] * rolled
    return mixed


class AutoCorrelation(nn.Module):
    """Queries [B, T, D] and context [B, U, D] to [B, T, D], each head by its own delays.

    A context of another length is cut to its first T steps or filled up with zeros, as published.
    Deviations from the published code, for which it has only reasons of speed: each window keeps its
    own delays in training too (there a training batch shares them, so a forecast would depend on its
    neighbours), and each head its own (there all heads share them; the paper's multi-head version lets
    each choose).
    """

    def __init__(self, *, d_model: int, n_heads: int, factor: float) -> None:
        """``d_model`` a multiple of ``n_heads``; ``factor`` of `delay_count`.

        Raises:
            ValueError: the heads do not divide the width.
        """
        super().__init__()
        if d_model % n_heads:
            raise UserError(f"--d_model: expected a multiple of --n_heads ({n_heads}), found {d_model}")
        self.n_heads = n_heads
        self.factor = factor
        self.query_projection = nn.Linear(d_model, d_model)
        self.key_projection = nn.Linear(d_model, d_model)
        self.value_projection = nn.Linear(d_model, d_model)
        self.out_projection = nn.Linear(d_model, d_model)

    def forward(self, queries: Tensor, context: Tensor) -> Tensor:
        """[B, T, D] and [B, U, D] to [B, T, D]."""
        length = queries.shape[1]
        q = self._heads(self.query_projection(queries))
        k, v = (
            _with_length(self._heads(projection(context)), length)
            for projection in (self.key_projection, self.value_projection)
        )
        with torch.autocast(queries.device.type, enabled=False):  # an FFT has no half precision
            mixed = aggregate_delays(v, delay_correlation(q, k), count=delay_count(length, self.factor))
        merged = mixed.unflatten(0, (-1, self.n_heads)).transpose(1, 2).flatten(2)  # [B, T, D]
        return self.out_projection(merged)

    def _heads(self, x: Tensor) -> Tensor:
        """[B, T, D] to [G, T, E], in single precision or better."""
        heads = x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2).flatten(0, 1)
        return heads.to(torch.promote_types(x.dtype, torch.float32))


def _with_length(x: Tensor, length: int) -> Tensor:
    """[G, U, E] cut to the first ``length`` steps, or with zeros behind."""
    return F.pad(x[:, :length], (0, 0, 0, max(0, length - x.shape[1])))
