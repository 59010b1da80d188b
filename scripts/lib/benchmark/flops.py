"""Arithmetic of a training step on the plain path: written out, and counted.

An operation is a multiplication or an addition in a matrix product or a convolution; the rest of a
step is left out, as `torch.utils.flop_counter` leaves it out.

Shape legend: S series, T tokens (prompt and patches), P patches, D model width, d LLM width, C source
tokens, V vocabulary, h reprogramming heads, E their width, H horizon.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

CONVOLUTION = 3
"""Patches that the embedding's convolution reads at once."""


class Sizes(NamedTuple):
    """What the formula needs of a model and its batch."""

    series: int
    prompt: int
    patches: int
    patch_len: int
    d_model: int
    heads: int
    head_width: int
    source: int
    vocabulary: int
    d_llm: int
    horizon: int
    llm_layers: int
    llm_layer_weights: int
    """Entries of the weight matrices of one layer of the LLM."""
    llm_attention_width: int
    """Heads of the LLM's attention times their width."""


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


def published_step(sizes: Sizes) -> Flops:
    """Operations of the published forward and backward pass over one batch.

    A product [m, k] x [k, n] takes 2 m k n. Backward, a product whose factors both need a gradient
    takes twice that, one of whose factors only one does, once: the LLM's weights and its vocabulary
    are frozen, and the lookback needs none. Attention maps are full squares.
    """
    z = sizes
    tokens = z.series * (z.prompt + z.patches)
    products = 2.0 * z.llm_layer_weights * tokens
    attention = 2.0 * 2 * z.llm_attention_width * tokens * (z.prompt + z.patches)
    width = z.heads * z.head_width
    queries = z.series * z.patches
    once = {  # one factor needs a gradient
        "embedding": 2.0 * queries * CONVOLUTION * z.patch_len * z.d_model,
        "mapping": 2.0 * z.source * z.vocabulary * z.d_llm,
    }
    twice = {
        "query": 2.0 * queries * z.d_model * width,
        "key and value": 2 * 2.0 * z.source * z.d_llm * width,
        "attention": 2 * 2.0 * queries * z.source * width,
        "out": 2.0 * queries * width * z.d_llm,
        "head": 2.0 * z.series * z.patches * z.head_width * z.horizon,
    }
    return Flops(
        llm_forward=z.llm_layers * (products + attention),
        llm_backward=z.llm_layers * (products + 2 * attention),
        rest_forward=sum(once.values()) + sum(twice.values()),
        rest_backward=sum(once.values()) + 2 * sum(twice.values()),
    )


def sizes_of(model: Any, *, series: int, prompt: int) -> Sizes:
    """The sizes of a baseline model for ``series`` prompts of ``prompt`` tokens."""
    b, settings = model.config.backbone, model.llm_model.config
    words = model.llm_model.get_input_embeddings().weight
    heads = settings.num_attention_heads
    return Sizes(
        series=series,
        prompt=prompt,
        patches=model.config.patch_count,
        patch_len=b.patch_len,
        d_model=b.d_model,
        heads=b.n_heads,
        head_width=b.d_ff,
        source=b.num_tokens,
        vocabulary=words.shape[0],
        d_llm=words.shape[1],
        horizon=model.config.data.pred_len,
        llm_layers=settings.num_hidden_layers,
        llm_layer_weights=layer_weights(model.llm_model, settings.num_hidden_layers),
        llm_attention_width=heads * (getattr(settings, "head_dim", None) or words.shape[1] // heads),
    )


def layer_weights(llm: nn.Module, layers: int) -> int:
    """Entries of the weight matrices in one of the LLM's ``layers`` layers."""
    stack = next(m for m in llm.modules() if isinstance(m, nn.ModuleList) and len(m) == layers)
    return sum(p.numel() for p in stack[0].parameters() if p.dim() == 2)
