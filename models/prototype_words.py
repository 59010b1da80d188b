"""Which words of the frozen LLM the source prototypes lean on, and which prototypes a window looks at.

Shape legend: S series, C source tokens (prototypes), V words, d_llm width of the LLM.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from models import TimeLLM

CHANCE_PROTOTYPES = 32
"""Random mixtures of words, to compare a prototype's nearest words with."""


class Lean(NamedTuple):
    """A word and how much a prototype leans on it."""

    word: str
    value: float


class Prototype(NamedTuple):
    """One source token."""

    number: int
    attention: float
    """Share of the series' attention, over its patches and all heads."""
    nearest: list[Lean]
    """Words by the cosine of their embeddings, all embeddings centred at the words' mean."""
    heaviest: list[Lean] | None
    """With ``--source_tokens mapping``, words by the size of their weight in the map, in mean sizes."""


class WordUse(NamedTuple):
    """What one series looks at."""

    prototypes: list[Prototype]
    """Those it attends to most."""
    effective: float
    """exp(entropy) of its attention: as many prototypes looked at equally would have the same."""


@torch.no_grad()
def word_use(model: TimeLLM.Model, patches: Tensor, *, prototypes: int = 6, words: int = 8) -> list[WordUse]:
    """For each series of ``patches`` [S, P, D], as they enter the reprogramming, what it looks at."""
    source = model.source_tokens().float()
    attention = model.reprogramming_layer.attention(patches, source)  # [S, C]
    share, index = attention.topk(min(prototypes, attention.shape[1]), dim=1)
    chosen = index.unique()
    nearest = dict(zip(chosen.tolist(), _nearest(model, source[chosen], words), strict=True))
    heaviest = dict(zip(chosen.tolist(), _heaviest(model, chosen, words), strict=True))
    effective = torch.special.entr(attention).sum(dim=1).exp().tolist()
    return [
        WordUse(
            [
                Prototype(i, value, nearest[i], heaviest[i])
                for i, value in zip(rows.tolist(), values.tolist(), strict=True)
            ],
            effective[series],
        )
        for series, (rows, values) in enumerate(zip(index, share, strict=True))
    ]


@torch.no_grad()
def chance_cosine(model: TimeLLM.Model) -> float:
    """The cosine that the nearest word of a random mixture of all words reaches, on average.

    Mixed as a new ``mapping_layer`` does; a prototype whose nearest word is no nearer means no word.
    """
    embeddings = _embeddings(model)
    generator = torch.Generator().manual_seed(0)
    bound = len(embeddings) ** -0.5
    weight = torch.empty(CHANCE_PROTOTYPES, len(embeddings)).uniform_(-bound, bound, generator=generator)
    mixtures = weight.to(embeddings.device) @ embeddings
    return float(_cosines(mixtures, embeddings).amax(dim=1).mean())


def patches_of(model: TimeLLM.Model, run: Callable[[], Any]) -> Tensor:
    """The patches [S, P, D] that enter the reprogramming in the pass that ``run`` makes.

    The LLM is asked even where nothing that it says reaches a forecast.
    """
    seen: list[Tensor] = []
    leaves_out, model.leaves_out_idle_llm = model.leaves_out_idle_llm, False
    handle = model.reprogramming_layer.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    try:
        run()
    finally:
        handle.remove()
        model.leaves_out_idle_llm = leaves_out
    return seen[0].detach().float()


def _embeddings(model: TimeLLM.Model) -> Tensor:
    """All words [V, d_llm]."""
    return model._word_embeddings().float()


def _cosines(vectors: Tensor, embeddings: Tensor) -> Tensor:
    """[n, V]; centred, since the embeddings of an LLM share a large mean that says nothing."""
    centre = embeddings.mean(dim=0)
    return F.normalize(vectors - centre, dim=1) @ F.normalize(embeddings - centre, dim=1).T


def _nearest(model: TimeLLM.Model, source: Tensor, words: int) -> list[list[Lean]]:
    cosine, word = _cosines(source, _embeddings(model)).topk(words, dim=1)
    return _leans(model, word, cosine)


def _heaviest(model: TimeLLM.Model, chosen: Tensor, words: int) -> list[list[Lean]] | list[None]:
    mapping = getattr(model, "mapping_layer", None)
    if mapping is None:
        return [None] * len(chosen)
    weight = mapping.weight.detach().float()[chosen]  # [n, V]
    relative = weight / weight.abs().mean(dim=1, keepdim=True)
    word = relative.abs().topk(words, dim=1).indices
    return _leans(model, word, relative.gather(1, word))


def _leans(model: TimeLLM.Model, word: Tensor, value: Tensor) -> list[list[Lean]]:
    tokenizer: Any = model.prompt.tokenizer
    return [
        [Lean(tokenizer.decode([w]), v) for w, v in zip(words, values, strict=True)]
        for words, values in zip(word.tolist(), value.tolist(), strict=True)
    ]
