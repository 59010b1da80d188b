"""Attention of a frozen LLM on a CPU, by two matrix products and a softmax.

There the fused kernel is several times slower than the matrix products it is made of, above all in
half precision and in its backward pass. The function is handed to transformers through its own
registry of attentions, so that no model's code is touched.

Shape legend: S series, h heads, g of them share one head of keys, T queries, K keys, E width per head.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import MODEL_MAPPING, AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask, sdpa_mask

NAME = "matmul"
FUSED, PLAIN = "sdpa", "eager"
"""transformers' names for torch's fused attention, and for the one that knows soft caps."""
BLOCK_BYTES = 8 * 2**20
"""Of the scores that are held at once where no gradient keeps them."""


def usual_attention(settings: Any) -> str:
    """Which of transformers' attentions a model of these settings takes: the fused one, where it can.

    It knows no soft caps (Gemma 2), and not every architecture takes it.
    """
    capped = getattr(settings, "attn_logit_softcapping", None) is not None
    made: Any = MODEL_MAPPING.get(type(settings), None)
    first = made[0] if isinstance(made, tuple) else made
    takes_it = getattr(first, "_supports_sdpa", True)
    return FUSED if takes_it and not capped else PLAIN


@contextmanager
def masks_unseen() -> Iterator[None]:
    """Inside, transformers makes the masks of the fused attention without a look at their values.

    It would leave out those that mask nothing, for which it reads each: a GPU waits for that in every pass.
    """
    ALL_MASK_ATTENTION_FUNCTIONS[FUSED] = _whole_mask
    try:
        yield
    finally:
        del ALL_MASK_ATTENTION_FUNCTIONS[FUSED]


def _whole_mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """The mask that transformers makes, whatever it masks."""
    kwargs |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    mask: Tensor | None = sdpa_mask(*args, **kwargs)
    return mask


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention, as transformers calls it.

    Args:
        module: the attention that asks.
        query: [S, h, T, E].
        key: [S, h / g, K, E].
        value: like ``key``.
        attention_mask: added to the scores, [S, 1, T, K].
        scaling: of the scores; E ** -0.5 by default.
        dropout: must be 0; a frozen LLM has none.
        others: must not ask for anything that changes the result.

    Returns:
        [S, T, h, E], and no map.

    Raises:
        ValueError: dropout, or something that is not known here (soft caps, sinks, position biases).
    """
    asked = [n for n in ("softcap", "s_aux", "position_bias") if others.get(n) is not None]
    if dropout or asked:
        raise ValueError(f"{NAME} attention: expected no dropout and no {asked}, found dropout {dropout}")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return products(query * scale, key, value, attention_mask).contiguous(), None


def products(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attention [S, T, h, E] of queries that are scaled already; otherwise as `attend` has them."""
    if torch.is_grad_enabled():
        return _attend(query, key, value, mask)
    row = query.shape[1] * query.shape[2] * key.shape[2] * query.element_size()
    block = max(1, BLOCK_BYTES // row)
    masks = [None] * len(query) if mask is None else mask.split(block)
    parts = zip(query.split(block), key.split(block), value.split(block), masks, strict=False)
    return torch.cat([_attend(*part) for part in parts])


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """[S, T, h, E]; heads that share their keys are one long query."""
    series, heads, queries, width = query.shape
    grouped = query.reshape(series, key.shape[1], -1, width)
    attended: Tensor = _Products.apply(grouped, key, value, mask)
    return attended.view(series, heads, queries, width).transpose(1, 2)


class _Products(torch.autograd.Function):
    """softmax(query key^T + mask) value, which keeps one map for its gradients and makes none beside it.

    Autograd of the same products holds the scores beside their softmax in both passes.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Query [S, h / g, g T, E], key and value [S, h / g, K, E], mask [S, 1, T, K]: like the query."""
        maps = query @ key.transpose(-1, -2)
        if mask is not None:
            maps.unflatten(2, (-1, mask.shape[2])).add_(mask[:, :, None])
        torch.softmax(maps, dim=-1, out=maps)
        attended = maps @ value
        ctx.save_for_backward(query, key, value, maps, attended)
        return attended

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Of query, key and value, where they are asked for."""
        query, key, value, maps, attended = ctx.saved_tensors
        of_query, of_key, of_value = ctx.needs_input_grad[:3]
        found: list[Tensor | None] = [None, None, None, None]
        if of_value:
            found[2] = maps.transpose(-1, -2) @ gradient
        if of_query or of_key:
            # of the softmax: its row times (what came less the row's mean of it), a mean over values too
            mean = (gradient * attended).sum(-1, keepdim=True)
            of_scores = (gradient @ value.transpose(-1, -2)).sub_(mean).mul_(maps)
            found[0] = of_scores @ key if of_query else None
            found[1] = of_scores.transpose(-1, -2) @ query if of_key else None
        return tuple(found)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, eager_mask)
