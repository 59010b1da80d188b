"""Arithmetic of a training step on the plain path: written out, and counted.

An operation is a multiplication or an addition in a matrix product or a convolution; the rest of a
step is left out, as `torch.utils.flop_counter` leaves it out.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

from utils.reporting.peak_memory import sizes_of

CONVOLUTION = 3
"""Patches that the embedding's convolution reads at once."""


class Flops(NamedTuple):
    """Operations of one step, by part, forward and backward."""

    llm_forward: float
    llm_backward: float
    rest_forward: float
    rest_backward: float

    @property
    def llm(self) -> float:
        """In the LLM."""
        return self.llm_forward + self.llm_backward

    @property
    def total(self) -> float:
        """In all."""
        return sum(self)


def published_step(model: Any, *, series: int, prompt: int) -> Flops:
    """Operations of the published forward and backward pass of a baseline over one batch.

    A product [m, k] x [k, n] takes 2 m k n. Backward, a product whose factors both need a gradient
    takes twice that, one of whose factors only one does, once: the LLM's weights and its vocabulary
    are frozen, and the lookback needs none. Attention maps are full squares.

    Args:
        model: has the sizes.
        series: of the batch.
        prompt: tokens of each series' prompt.
    """
    config, b = model.config, model.config.backbone
    llm = sizes_of(model, config=config, forecast=1).llm
    assert llm is not None
    stack = next(
        m for m in model.llm_model.modules() if isinstance(m, nn.ModuleList) and len(m) == llm.layers
    )
    matrices = sum(p.numel() for p in stack[0].parameters() if p.dim() == 2)
    tokens = series * (prompt + config.patch_count)
    products = 2.0 * matrices * tokens
    attention = 2.0 * 2 * llm.attention * tokens * (prompt + config.patch_count)
    width = b.n_heads * b.d_ff
    queries = series * config.patch_count
    once = {  # one factor needs a gradient
        "embedding": 2.0 * queries * CONVOLUTION * b.patch_len * b.d_model,
        "mapping": 2.0 * b.num_tokens * llm.vocabulary * llm.width,
    }
    twice = {
        "query": 2.0 * queries * b.d_model * width,
        "key and value": 2 * 2.0 * b.num_tokens * llm.width * width,
        "attention": 2 * 2.0 * queries * b.num_tokens * width,
        "out": 2.0 * queries * width * llm.width,
        "head": 2.0 * queries * b.d_ff * config.data.pred_len,
    }
    return Flops(
        llm_forward=llm.layers * (products + attention),
        llm_backward=llm.layers * (products + 2 * attention),
        rest_forward=sum(once.values()) + sum(twice.values()),
        rest_backward=sum(once.values()) + 2 * sum(twice.values()),
    )
