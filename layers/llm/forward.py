"""A pass through a frozen LLM that computes what is read and no more: the last states at the tail.

The tokens are ``[prefix, front, tail]``; only the tail's last states are read. So in the last layer
the front needs keys and values, no queries; where nothing before the tail is trained, it needs no
gradient; and what is the same in every pass (the prefix) needs its keys and values once.
Which of this an LLM allows, and where padding may stand, `layers.llm.check` finds out at the start.
Layers are the model's own throughout; on a CPU their attention is `layers.llm.attention`'s. Where they
carry adapters that are trained (`layers.llm.lora`), every token's keys and values depend on these:
then all of it has a gradient, and a prefix serves the pass that it was computed in.

Shape legend: S series, T_p, T_f and T_t tokens of prefix, front and tail, d_llm hidden size.
"""

from __future__ import annotations

from contextlib import nullcontext, suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from layers.llm import attention as llm_attention
from layers.llm import blocks as llm_fused
from layers.llm.attention import masks_unseen, usual_attention
from layers.llm.layers import HasKeys, KeysValues, PassCache, recompute, stack_of
from layers.llm.way import BY_LENGTH, LEFT, Way, by_length, to_the_left

BLOCK_TOKENS = 16384
"""Of the series that pass together on a CPU without a gradient: their states stay near its cache."""


class Prefix(NamedTuple):
    """Keys and values of tokens that begin every sequence, layer by layer, each [1, heads, T_p, width]."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @property
    def length(self) -> int:
        """T_p."""
        return self.keys[0].shape[-2]


class LLMPass:
    """Last states of a frozen LLM at the tail of a sequence.

    Which way is taken is found once, by `layers.llm.check`.
    """

    def __init__(self, llm: PreTrainedModel, way: Way | None = None) -> None:
        """By default the model's own forward pass, over padding in the middle."""
        self.llm: Any = llm
        self.way = way or Way()
        self.n_layers = int(llm.config.num_hidden_layers)
        self.trained = any(weight.requires_grad for weight in llm.parameters())
        """Whether the LLM's layers have trained weights."""
        self._usual_attention = usual_attention(llm.config)
        self._attention_on_cpu = self.way.attention or self._usual_attention
        if self.way.is_fused:
            llm_fused.fuse(stack_of(llm, self.n_layers))

    @property
    def kind(self) -> str:
        """As in `layers.llm.way.Way`."""
        return self.way.kind

    @property
    def reuses_prefix(self) -> bool:
        """Whether `prefix` can be computed once and used as long as the LLM's weights stay."""
        return self.way.reuses_prefix

    def prefix(self, tokens: Tensor) -> Prefix:
        """Keys and values of the first tokens of every sequence, [1, T_p, d_llm].

        With a gradient only to the LLM's own trained weights, where it has any.

        Raises:
            ValueError: where later tokens change those of earlier ones; see `reuses_prefix`.
        """
        if not self.reuses_prefix:
            raise ValueError(f"prefix: a {self.kind} pass has none")
        self._set_attention(tokens.device)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trained):
            every = torch.ones(tokens.shape[:2], dtype=torch.int64, device=tokens.device)
            found = self._keys_values(tokens, every, None)
        keys, values = zip(*(found[i] for i in range(self.n_layers)), strict=True)
        return Prefix(keys, values)

    def __call__(self, front: Tensor, tail: Tensor, *, mask: Tensor, prefix: Prefix | None = None) -> Tensor:
        """Last states [S, T_t, d_llm] at the tail.

        Args:
            front: tokens before the tail, [S, T_f, d_llm]; T_f may be 0.
            tail: tokens whose states are read, [S, T_t, d_llm].
            mask: 1 where a token counts, [S, T_p + T_f + T_t]; masked ones take no position.
            prefix: what begins every sequence, where it was computed before.
        """
        self._set_attention(tail.device)
        if self.way.padding == LEFT:
            front, mask = to_the_left(front, mask)
        if tail.device.type == "cpu" and not torch.is_grad_enabled():
            block = max(1, BLOCK_TOKENS // mask.shape[1])
            parts = zip(front.split(block), tail.split(block), mask.split(block), strict=True)
            return torch.cat([self._states(*part, prefix) for part in parts])
        return self._states(front, tail, mask, prefix)

    def _states(self, front: Tensor, tail: Tensor, mask: Tensor, prefix: Prefix | None) -> Tensor:
        """Of some series, the way that was chosen."""
        if self.way.padding == BY_LENGTH:
            return by_length(front, tail, mask, self._unpadded)
        if self.kind == "causal" and (front.shape[1] or prefix is not None):
            return self._causal(front, tail, mask, prefix)
        if self.kind == "bidirectional" and front.shape[1]:
            return self._bidirectional(front, tail, mask)
        return self._forward(torch.cat([front, tail], dim=1), mask)[:, front.shape[1] :]

    def _unpadded(self, front: Tensor, tail: Tensor) -> Tensor:
        """The model's own pass over series of one length."""
        states = self.llm(inputs_embeds=torch.cat([front, tail], dim=1)).last_hidden_state
        return states[:, front.shape[1] :]

    def plain(self) -> LLMPass:
        """A pass through the same LLM that shortens nothing, for comparison."""
        return LLMPass(self.llm, self.way._replace(kind="plain", attention=None, is_fused=False))

    # Another way to compute the LLM's layers, for all passes through it.

    def recompute_layers(self) -> None:
        """Keep only the layers' inputs for the backward pass.

        Raises:
            ValueError: the LLM has no stack of layers.
        """
        recompute(stack_of(self.llm, self.n_layers))

    # The ways.

    def _forward(self, tokens: Tensor, mask: Tensor, **more: Any) -> Tensor:
        """The model's own pass over the last tokens of ``mask``."""
        if self.way.first_position is not None:
            more["position_ids"] = self.way.first_position + _positions(mask)[:, -tokens.shape[1] :]
        with nullcontext() if tokens.device.type == "cpu" else masks_unseen():
            return self.llm(inputs_embeds=tokens, attention_mask=mask, **more).last_hidden_state

    def _causal(self, front: Tensor, tail: Tensor, mask: Tensor, prefix: Prefix | None) -> Tensor:
        """Keys and values before the tail first, then the tail's states."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and (front.requires_grad or self.trained)):
            past = self._keys_values(front, mask[:, : -tail.shape[1]], prefix)
        return self._forward(tail, mask, past_key_values=PassCache(past), use_cache=True)

    def _keys_values(self, front: Tensor, mask: Tensor, prefix: Prefix | None) -> dict[int, KeysValues]:
        """Keys and values of prefix and front in every layer."""
        past: dict[int, KeysValues] = {}
        if prefix is not None:
            rows = (len(front), -1, -1, -1)
            pairs = zip(prefix.keys, prefix.values, strict=True)
            past = {i: (keys.expand(rows), values.expand(rows)) for i, (keys, values) in enumerate(pairs)}
        if not front.shape[1]:
            return past
        cache = PassCache(past, ends_at=self.n_layers - 1)
        with suppress(HasKeys):
            self._forward(front, mask.to(front.device), past_key_values=cache, use_cache=True)
        if len(cache.kept) < self.n_layers:
            raise RuntimeError(f"{type(self.llm).__name__}: a layer asked no cache for keys")
        return cache.kept

    def _bidirectional(self, front: Tensor, tail: Tensor, mask: Tensor) -> Tensor:
        """All layers but the last in full; in the last, the tail's queries on everybody's keys."""
        last = stack_of(self.llm, self.n_layers)[-1]
        (hidden, attention_mask, *rest), kwargs = self._input_of(last, torch.cat([front, tail], dim=1), mask)
        if any(value is not None for value in rest):
            raise RuntimeError(f"{type(last).__name__}: arguments that are not known here")
        cut = front.shape[1]
        cache = kwargs["past_key_values"] = PassCache({}, ends_at=self.n_layers - 1)
        with suppress(HasKeys):
            last(hidden[:, :cut], _rows(attention_mask, slice(0, cut)), **kwargs)
        kwargs["past_key_values"] = PassCache(cache.kept)
        states = last(hidden[:, cut:], _rows(attention_mask, slice(cut, None)), **kwargs)
        return states[0] if isinstance(states, tuple) else states

    def _input_of(
        self, layer: nn.Module, tokens: Tensor, mask: Tensor
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What ``layer`` is given in the model's own pass, which ends there."""
        seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.append((args, kwargs))
            raise HasKeys

        hook = layer.register_forward_pre_hook(stop, with_kwargs=True, prepend=True)
        try:
            with suppress(HasKeys):
                self._forward(tokens, mask)
        finally:
            hook.remove()
        return seen[0]

    def _set_attention(self, device: torch.device) -> None:
        """The attention of this pass, which another pass through the same LLM may have changed."""
        wanted = self._attention_on_cpu if device.type == "cpu" else self._usual_attention
        found = self.llm.config._attn_implementation
        if found != wanted and llm_attention.NAME in (found, wanted):
            self.llm.set_attn_implementation(wanted)


def _positions(mask: Tensor) -> Tensor:
    """Position of each token among those that count, [S, T]."""
    return (mask.cumsum(dim=-1) - 1).clamp(min=0)


def _rows(mask: Tensor | None, rows: slice) -> Tensor | None:
    """The queries' part of an attention mask [S, 1, 1 or T, T], or of none."""
    return mask if mask is None or mask.shape[-2] == 1 else mask[..., rows, :]
