"""Attention with dropout on its weights, on a CPU.

torch writes it out there, keeps five maps of every head for the backward pass, and draws each weight's
fate from a number of its own, which takes longer than both matrix products. Here one head's map is
there at a time, a number decides on four weights, and the backward pass computes map and fates again.

Shape legend: h heads, Q queries, C keys, E width per head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LEVELS = 2**16
"""The rate is a whole number of these: of a weight's share of a drawn number, 16 bits."""
LOWEST = -(2**63)


def attend_with_dropout(query: Tensor, key: Tensor, value: Tensor, rate: float) -> Tensor:
    """Scaled dot-product attention whose weights are dropped, the kept ones scaled up.

    Args:
        query: [h, Q, E].
        key: [h, C, E].
        value: [h, C, E].
        rate: share of weights dropped, within [0, 1), to the nearest 1 / 65536.

    Returns:
        [h, Q, E]. What is dropped follows torch's default generator, from which one number is taken.
    """
    attended: Tensor = _DroppedAttention.apply(query, key, value, round(rate * LEVELS))
    return attended


def _kept(rows: int, columns: int, dropped: int, generator: torch.Generator) -> Tensor:
    """Which weights stay, a boolean [rows, columns]."""
    numbers = torch.empty(-(-rows * columns // 4), dtype=torch.int64).random_(
        LOWEST, None, generator=generator
    )
    shares = numbers.view(torch.int16)[: rows * columns]
    return shares.view(rows, columns) >= dropped - LEVELS // 2


def _weights_(out: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """Softmax of the scaled scores, in place: [Q, C]."""
    torch.mm(query, key.t() * query.shape[-1] ** -0.5, out=out)
    return torch.softmax(out, dim=-1, out=out)


class _DroppedAttention(torch.autograd.Function):
    """See `attend_with_dropout`; the rate comes in levels."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, dropped: int) -> Tensor:
        ctx.seed, ctx.dropped = int(torch.randint(2**63 - 1, ())), dropped
        generator = torch.Generator().manual_seed(ctx.seed)
        attended = torch.empty_like(query)
        maps = query.new_empty(query.shape[1], key.shape[1])
        scaled = value * (LEVELS / (LEVELS - dropped))
        for q, k, v, out in zip(query, key, scaled, attended, strict=True):
            _weights_(maps, q, k).mul_(_kept(query.shape[1], key.shape[1], dropped, generator))
            torch.mm(maps, v, out=out)
        ctx.save_for_backward(query, key, scaled, attended)
        return attended

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, scaled, attended = ctx.saved_tensors
        generator = torch.Generator().manual_seed(ctx.seed)
        maps = query.new_empty(query.shape[1], key.shape[1])
        of_maps = torch.empty_like(maps)
        of_query, of_key, of_value = (torch.empty_like(t) for t in (query, key, scaled))
        # the softmax takes from a row of its gradient its mean, which is the same over the values
        means = (gradient * attended).sum(-1, keepdim=True)
        for head, of_out in enumerate(gradient):
            kept = _kept(query.shape[1], key.shape[1], ctx.dropped, generator)
            _weights_(maps, query[head], key[head])
            torch.mm(of_out, scaled[head].t(), out=of_maps)
            of_maps.mul_(kept).sub_(means[head]).mul_(maps)
            torch.mm(of_maps, key[head], out=of_query[head])
            torch.mm(of_maps.t(), query[head], out=of_key[head])
            torch.mm(maps.mul_(kept).t(), of_out, out=of_value[head])
        scale = query.shape[-1] ** -0.5
        return of_query.mul_(scale), of_key.mul_(scale), of_value.mul_(LEVELS / (LEVELS - ctx.dropped)), None
