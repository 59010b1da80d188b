"""What transformers alone gives for a window: a batch of one, its own tokens, nothing padded or kept.

Written apart from `layers.llm`: it shares no code with what it judges. Of the product it reads the trained
parts (patches, map, heads) and the prompts' ids; every state of the LLM is the model's own forward pass.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

MULTIPLIERS: dict[str, Callable[[Any], float]] = {
    "esm": lambda config: 1 - 0.15 * 0.8 if config.token_dropout else 1.0,
    "falcon_h1": lambda config: config.embedding_multiplier,
}
"""What forward passes multiply embeddings by that they look up themselves, and not those they are given."""
TEXT_PARTS = ("language_model", "text_model", "model")


def whole_model(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The folder's model, whole, its text part where it has several."""
    settings = AutoConfig.from_pretrained(folder)
    for part in (settings, settings.get_text_config()):
        part.use_cache = False  # Jamba's would ask a layer without keys how long they are
    model: Any = AutoModel.from_pretrained(folder, config=settings, dtype=dtype).eval().requires_grad_(False)
    if settings.get_text_config() is settings:
        return model
    part = next(getattr(model, name) for name in TEXT_PARTS if hasattr(model, name))
    return part.model if hasattr(part, "lm_head") else part


def cut(model: Any, *, had: int, layers: int) -> Any:
    """Its first layers, all constants as in the whole: the stack itself is shortened."""
    stacks = [n for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == had]
    shallow = min((name.count(".") for name in stacks), default=0)
    for name in [name for name in stacks if name.count(".") == shallow]:
        path, _, last = name.rpartition(".")
        owner = model.get_submodule(path)
        setattr(owner, last, nn.ModuleList(list(getattr(owner, last))[:layers]))
        if getattr(owner, "n_layers", None) == had:
            owner.n_layers = layers
    for part in (model, *model.modules()):
        settings = getattr(part, "config", None)
        if settings is not None and getattr(settings, "num_hidden_layers", None) == had:
            with_fewer = copy.deepcopy(settings)
            with_fewer.num_hidden_layers = layers
            part.config = with_fewer
    return model


def multiplier(model: Any) -> float:
    """What the model multiplies its words by, and not what it is given."""
    return MULTIPLIERS.get(model.config.model_type, lambda config: 1.0)(model.config)


@torch.no_grad()
def knows_words(model: Any, ids: Tensor) -> float:
    """How far its states for token ids [T] and for their embeddings are apart, in deviations."""
    by_ids = model(input_ids=ids[None]).last_hidden_state
    by_words = model(inputs_embeds=words_of(model, ids)[None]).last_hidden_state
    return float((by_ids - by_words).abs().max() / by_ids.std())


def words_of(model: Any, ids: Tensor) -> Tensor:
    """Embeddings [T, d] of token ids [T] as the layers are to see them."""
    return multiplier(model) * model.get_input_embeddings()(ids)


def states(model: Any, words: Tensor, patches: Tensor) -> Tensor:
    """States [P, d] at a window's patches [P, d], behind its prompt's words [T, d]."""
    tokens = torch.cat([words, patches])[None]
    return model(inputs_embeds=tokens).last_hidden_state[0, len(words) :]


def forecasts(product: Any, truth: Any, x: Tensor) -> Tensor:
    """Forecasts [B, H, N] of windows [B, L, N]: the product's trained parts around the ``truth``'s states."""
    series = product.normalise(x)
    every = torch.arange(truth.get_input_embeddings().num_embeddings)
    mapping = product.mapping_layer
    source = mapping.weight @ words_of(truth, every) + mapping.bias[:, None]
    reprogrammed = product.reprogramming_layer(product.embed(series), source)
    rows = [
        states(truth, words_of(truth, ids[ids >= 0]), patches)
        for ids, patches in zip(product.prompt.ids(series.lookback), reprogrammed, strict=True)
    ]
    read = torch.stack(rows)[..., : product.config.backbone.d_ff]
    return product.denormalise(product.project(read, series, None), series.statistics)
