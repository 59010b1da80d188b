"""Patches expressed in the word-embedding space of a frozen LLM.

Shape legend: S series, P patches, D model width, E width per head, C source tokens, d_llm LLM width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layers.dropout_attention import attend_with_dropout


class ReprogrammingLayer(nn.Module):
    """Multi-head cross-attention of patch embeddings over source (text prototype) embeddings.

    Source: Jin et al., Time-LLM, ICLR 2024, section 3.1, "patch reprogramming". The attention's
    width per head is d_ff, as in the published code.
    """

    def __init__(self, *, d_model: int, n_heads: int, d_keys: int, d_llm: int, dropout: float) -> None:
        """``d_keys`` is the width E of one head; ``dropout`` acts on the attention weights."""
        super().__init__()
        self.n_heads, self._width = n_heads, d_keys
        self.dropout = dropout
        self.query_projection = nn.Linear(d_model, d_keys * n_heads)
        self.key_projection = nn.Linear(d_llm, d_keys * n_heads)
        self.value_projection = nn.Linear(d_llm, d_keys * n_heads)
        self.out_projection = nn.Linear(d_keys * n_heads, d_llm)

    def forward(self, patches: Tensor, source: Tensor) -> Tensor:
        """Patches [S, P, D] and source embeddings [C, d_llm] to [S, P, d_llm]."""
        n_series, n_patches, _ = patches.shape
        query, key = self._query_and_key(patches, source)
        value = self.value_projection(source).reshape(1, len(source), self.n_heads, -1).transpose(1, 2)
        attended = self._attend(query, key, value)
        joined = attended.transpose(1, 2).reshape(n_series, n_patches, -1)  # [S, P, h * E]
        return self.out_projection(joined)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[1, h, S * P, E] over [1, h, C, E]."""
        rate = self.dropout if self.training else 0.0
        if not rate or query.device.type != "cpu":
            return F.scaled_dot_product_attention(query, key, value, dropout_p=rate)
        return attend_with_dropout(query[0], key[0], value[0], rate)[None]

    @torch.no_grad()
    def attention(self, patches: Tensor, source: Tensor) -> Tensor:
        """How much each series looks at each source token, [S, C]: the mean over patches and heads, sum 1."""
        query, key = self._query_and_key(patches, source)
        scores = query.float() @ key.float().transpose(-2, -1) / query.shape[-1] ** 0.5  # [1, h, S * P, C]
        return scores.softmax(dim=-1).mean(dim=1)[0].unflatten(0, patches.shape[:2]).mean(dim=1)

    def _query_and_key(self, patches: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
        """[1, heads, S * P, E] and [1, heads, C, E].

        The source is the same for every series, so series and patches are one long query.
        """
        query = self.query_projection(patches).reshape(1, -1, self.n_heads, self._width).transpose(1, 2)
        key = self.key_projection(source).reshape(1, len(source), self.n_heads, -1).transpose(1, 2)
        return query, key
