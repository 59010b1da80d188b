"""What a study puts in the place of a frozen LLM's layers, to see what these contribute.

Source: Tan et al., "Are Language Models Actually Useful for Time Series Forecasting?", NeurIPS 2024,
whose questions these are. Here the word embeddings stay in every case but ``random``.

Shape legend: S series, T_f and T_t tokens of front and tail (see `layers.llm.forward`), d_llm hidden size.
"""

from __future__ import annotations

import copy
import hashlib
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from layers.llm.check import CheckTokens, checked_pass
from layers.llm.forward import LLMPass, Prefix
from layers.llm.load import FrozenLLM
from layers.llm.way import Way
from utils.config import Config, LLMConfig
from utils.types import LLMIdentity

HEADS = 8
"""Heads of the trained attention layer, or the most below that divide the LLM's width."""
NOTES = {
    "random": "random frozen weights in place of the pretrained ones",
    "attention": "one trained attention layer in place of its layers",
    "none": "its layers left out",
}


class TokenAttention(nn.Module):
    """Tokens [S, T, d_llm] to states [S, T, d_llm]: one attention layer with a residual, pre-normalised.

    Every token sees every other that counts.
    """

    def __init__(self, width: int) -> None:
        """Drawn from the global random state."""
        super().__init__()
        heads = max(n for n in range(1, HEADS + 1) if width % n == 0)
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """States of ``tokens``; ``mask`` [S, T] is 1 where a token counts."""
        tokens = tokens.to(self.norm.weight.dtype)
        normed = self.norm(tokens)
        found, _ = self.attention(normed, normed, normed, key_padding_mask=mask == 0, need_weights=False)
        return tokens + found


class StandInPass:
    """In the place of `layers.llm.forward.LLMPass`: states at the tail by one layer, or by none."""

    way = Way()
    kind = way.kind
    reuses_prefix = False

    def __init__(self, layer: TokenAttention | None) -> None:
        """None hands the tail through."""
        self.layer = layer

    def plain(self) -> StandInPass:
        """Itself: there is nothing that it shortens."""
        return self

    def __call__(self, front: Tensor, tail: Tensor, *, mask: Tensor, prefix: Prefix | None = None) -> Tensor:
        """States [S, T_t, d_llm] at the tail; arguments as `LLMPass`'s, without a prefix."""
        assert prefix is None
        if self.layer is not None:
            return self.layer(torch.cat([front, tail], dim=1), mask)[:, front.shape[1] :]
        if front.requires_grad:  # each trained parameter keeps a gradient (of zero), as DDP demands
            return tail + 0 * front.mean()
        return tail


def pass_through(
    llm: FrozenLLM, layer: TokenAttention | None, config: Config, *, tokens: CheckTokens
) -> LLMPass | StandInPass:
    """The way from tokens to states: what ``--llm_ablation`` asks for, layers computed as the flags say.

    ``tokens`` are those of the run's sequences.
    """
    if config.llm.llm_ablation in ("attention", "none"):
        return StandInPass(layer)
    taken = checked_pass(
        llm.model,
        tokens=tokens,
        content_hash=llm.identity.content_hash,
        name=llm.identity.name,
        files=llm.files,
    )
    if config.training.gradient_checkpointing:
        taken.recompute_layers()
    return taken


def ablated(llm: FrozenLLM, config: LLMConfig, *, seed: int) -> FrozenLLM:
    """``llm`` with what ``--llm_ablation`` changes of its weights, and an identity that says it.

    Random weights are the architecture's own initial ones, drawn in float32 on the CPU from ``seed``
    alone; the global random state stays.
    """
    kind = config.llm_ablation
    if kind == "pretrained":
        return llm
    note = "; ".join(part for part in (llm.identity.note, NOTES[kind]) if part)
    if kind != "random":
        return llm._replace(identity=replace(llm.identity, layers=0, note=note))
    architecture: Any = type(llm.model)
    with torch.random.fork_rng(), torch.device("cpu"):
        torch.manual_seed(seed)
        drawn = architecture(copy.deepcopy(llm.model.config))
    identity: LLMIdentity = replace(llm.identity, content_hash=_weights_hash(drawn), note=NOTES[kind])
    model = drawn.to(device=llm.model.device, dtype=llm.model.dtype).requires_grad_(False).eval()
    return llm._replace(model=model, identity=identity)


def drawn_attention(width: int, *, seed: int) -> TokenAttention:
    """A `TokenAttention` drawn from ``seed`` alone; the global random state stays."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TokenAttention(width)


def _weights_hash(model: nn.Module) -> str:
    """sha256 over the names and values of all weights."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
