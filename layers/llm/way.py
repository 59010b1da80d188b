"""How a frozen LLM is passed through: which shortened pass, where padding stands, how positions are counted.

Shape legend: S series, T_f and T_t tokens of front and tail (see `layers.llm.forward`), d width of a token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

MIDDLE, LEFT, BY_LENGTH = "middle", "left", "by length"


class Way(NamedTuple):
    """What `layers.llm.check` finds to give what transformers alone gives, for one LLM."""

    kind: str = "plain"
    """``causal`` and ``bidirectional`` skip what is not read, ``plain`` is the model's own forward pass."""
    padding: str = MIDDLE
    """``middle``: masked, behind what all prompts begin with, which then needs its keys and values once;
    ``left``: masked, before everything; ``by length``: none, prompts of one length pass together."""
    first_position: int | None = 0
    """Of the tokens that count; None leaves positions to the model."""
    multiplier: float = 1.0
    """What the model multiplies its own words by, and not tokens that it is given."""
    attention: str | None = None
    """On a CPU; None: the usual one."""
    is_fused: bool = False
    """Whether `layers.llm.blocks` computes its layers on a CPU."""
    width: int = 0
    """Of a state; 0 where nobody has looked."""
    why: str = ""
    """What a better way was off by."""

    @property
    def reuses_prefix(self) -> bool:
        """Whether what every sequence begins with can be computed once."""
        return self.kind == "causal" and self.padding == MIDDLE

    @property
    def passes_differ(self) -> bool:
        """Whether how many passes a batch takes hangs on its prompts."""
        return self.padding == BY_LENGTH

    def text(self) -> str:
        """In words, for the log: the way, what it costs, and why."""
        kind = {
            "causal": "shortened (causal)",
            "bidirectional": "shortened in its last layer (bidirectional)",
            "plain": "its own forward pass, at full cost",
        }[self.kind]
        padding = {
            MIDDLE: "padding masked in the middle",
            LEFT: "padding at the far left",
            BY_LENGTH: "no padding, a pass for each length of the prompts in a batch",
        }[self.padding]
        kept = "the prompts' common start computed once" if self.reuses_prefix else "no part kept"
        why = f"; since {self.why}" if self.why else ""
        return f"{kind}, {padding}, {kept}{why}"


def to_the_left(front: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Front [S, T_f, d] and mask [S, T_f + T_t] with what is masked before all that counts, in its order."""
    size = front.shape[1]
    order = mask[:, :size].argsort(dim=1, stable=True)  # [S, T_f]
    moved = front.gather(1, order.unsqueeze(-1).expand_as(front))
    return moved, torch.cat([mask[:, :size].gather(1, order), mask[:, size:]], dim=1)


def by_length(front: Tensor, tail: Tensor, mask: Tensor, run: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """States [S, T_t, d] of ``run(front, tail)`` over series with as many tokens that count, no others.

    The values of the mask [S, T_f + T_t] are read.
    """
    counts = mask[:, : front.shape[1]].bool()
    lengths = counts.sum(dim=1)
    places, parts = [], []
    for length in lengths.unique().tolist():
        rows = (lengths == length).nonzero().squeeze(1)
        kept = front[rows][counts[rows]].view(len(rows), length, front.shape[-1])
        places.append(rows)
        parts.append(run(kept, tail[rows]))
    return torch.cat(parts)[torch.cat(places).argsort()]
