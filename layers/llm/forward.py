"""A pass through a frozen LLM that computes what is read and no more: the last states at the tail.

The tokens are ``[prefix, front, tail]``; only the tail's last states are read. So in the last layer
the front needs keys and values, no queries; where nothing before the tail is trained, it needs no
gradient; and what is the same in every pass (the prefix) needs its keys and values once.
Layers are the model's own throughout; on a CPU their attention is `layers.llm.attention`'s. Where they
carry adapters that are trained (`layers.llm.lora`), every token's keys and values depend on these:
then all of it has a gradient, and a prefix serves the pass that it was computed in.

Shape legend: S series, T_p, T_f and T_t tokens of prefix, front and tail, d_llm hidden size.
"""

from __future__ import annotations

from contextlib import nullcontext, suppress
from logging import getLogger
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from layers.llm import attention as llm_attention
from layers.llm import blocks as llm_fused
from layers.llm.attention import masks_unseen, usual_attention
from layers.llm.layers import HasKeys, KeysValues, PassCache, recompute, stack_of
from layers.llm.probe import twin_of
from utils.training.precision import matmul_precision

log = getLogger(__name__)

BLOCK_TOKENS = 16384
"""Of the series that pass together on a CPU without a gradient: their states stay near its cache."""
CHECK_TOKENS = (3, 5, 4)
"""Prefix, front and tail of the self-check at start-up."""
CHECK_TOLERANCE = {torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 2e-1}
"""Largest difference between two ways of rounding, in deviations of the states."""


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

    Which way is taken (``kind``) is decided once: ``causal`` and ``bidirectional`` skip what is not
    read, ``plain`` is the model's own forward pass. A way that does not reproduce the plain one on
    random tokens, through a few of the layers in float32, is not taken, and that is said.
    """

    def __init__(self, llm: PreTrainedModel, *, plain: bool = False) -> None:
        """``plain`` asks for the model's own forward pass, for comparison."""
        self.llm: Any = llm
        self.n_layers = int(llm.config.num_hidden_layers)
        self.trained = any(weight.requires_grad for weight in llm.parameters())
        """Whether the LLM's layers have trained weights."""
        self.kind = "plain"
        self._usual_attention = usual_attention(llm.config)
        self._attention_on_cpu = self._usual_attention
        if not plain:
            self.kind, self._attention_on_cpu, is_fused = _decided(llm)
            if is_fused:
                llm_fused.fuse(stack_of(llm, self.n_layers))

    @property
    def reuses_prefix(self) -> bool:
        """Whether `prefix` can be computed once and used as long as the LLM's weights stay."""
        return self.kind == "causal"

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
        if tail.device.type == "cpu" and not torch.is_grad_enabled():
            block = max(1, BLOCK_TOKENS // mask.shape[1])
            parts = zip(front.split(block), tail.split(block), mask.split(block), strict=True)
            return torch.cat([self._states(*part, prefix) for part in parts])
        return self._states(front, tail, mask, prefix)

    def _states(self, front: Tensor, tail: Tensor, mask: Tensor, prefix: Prefix | None) -> Tensor:
        """Of some series, the way that was chosen."""
        if self.kind == "causal" and (front.shape[1] or prefix is not None):
            return self._causal(front, tail, mask, prefix)
        if self.kind == "bidirectional" and front.shape[1]:
            return self._bidirectional(front, tail, mask)
        return self._forward(torch.cat([front, tail], dim=1), mask)[:, front.shape[1] :]

    def plain(self) -> LLMPass:
        """A pass through the same LLM that shortens nothing, for comparison."""
        return LLMPass(self.llm, plain=True)

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
        position = _positions(mask)[:, -tokens.shape[1] :]
        with nullcontext() if tokens.device.type == "cpu" else masks_unseen():
            return self.llm(
                inputs_embeds=tokens, attention_mask=mask, position_ids=position, **more
            ).last_hidden_state

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

    # Which way.

    def _set_attention(self, device: torch.device) -> None:
        """The attention of this pass, which another pass through the same LLM may have changed."""
        wanted = self._attention_on_cpu if device.type == "cpu" else self._usual_attention
        found = self.llm.config._attn_implementation
        if found != wanted and llm_attention.NAME in (found, wanted):
            self.llm.set_attn_implementation(wanted)

    def _choose_attention(self) -> str:
        """By matrix products, where the LLM takes them and they give the fused kernel's states."""
        if self.kind == "plain":
            return self._usual_attention
        self._attention_on_cpu = llm_attention.NAME
        name, layers = type(self.llm).__name__, stack_of(self.llm, self.n_layers)
        if llm_fused.fuse(layers):
            if self._takes_attention():
                return llm_attention.NAME
            llm_fused.restore(layers)
            log.info("%s: its layers stay transformers' own", name)
        if self._takes_attention():
            return llm_attention.NAME
        log.info("%s: its attention stays transformers' %s", name, self._usual_attention)
        return self._usual_attention

    def _takes_attention(self) -> bool:
        """Whether the LLM's attention is the one by matrix products now, and gives the plain states."""
        try:
            return self._agrees() and self.llm.config._attn_implementation == llm_attention.NAME
        except (RuntimeError, ValueError, TypeError, AttributeError) as error:
            log.debug("%s of %s: %s", llm_attention.NAME, type(self.llm).__name__, error)
        return False

    def _choose(self) -> str:
        """The first way that gives the plain one's states on random tokens."""
        for kind in ("causal", "bidirectional"):
            self.kind = kind
            try:
                if self._agrees():
                    return kind
            except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
                log.debug("%s pass of %s: %s", kind, type(self.llm).__name__, error)
        log.warning(
            "%s: no shortened pass reproduces its own forward pass; that is used, at full cost",
            type(self.llm).__name__,
        )
        return "plain"

    def _agrees(self) -> bool:
        """Whether this way gives the plain one's states, also behind a prefix and padding."""
        wanted = LLMPass(self.llm, plain=True)._check_states()
        return _close(self._check_states(), wanted)

    @torch.no_grad()
    def _check_states(self) -> Tensor:
        """States [2, T_t, d_llm] behind random tokens, or [4, T_t, d_llm] also with the prefix kept."""
        words = self.llm.get_input_embeddings().weight
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(len(words), (2, sum(CHECK_TOKENS)), generator=generator).to(words.device)
        tokens = words[ids]
        before, front, tail = tokens.split(CHECK_TOKENS, dim=1)
        before = before[:1].expand(2, -1, -1)
        mask = torch.ones_like(ids)
        mask[0, CHECK_TOKENS[0]] = 0  # padding between prefix and front, as prompts have it
        found = [self(torch.cat([before, front], 1), tail, mask=mask)]
        if self.reuses_prefix:
            found.append(self(front, tail, mask=mask, prefix=self.prefix(before[:1])))
        return torch.cat(found)


def _decided(llm: PreTrainedModel) -> tuple[str, str, bool]:
    """Which way, which attention on a CPU, and whether layers are fused: by a few of them in float32.

    So it is the same in every precision, on every processor and at every number of layers.
    """
    twin = LLMPass(twin_of(llm), plain=True)
    with matmul_precision("highest", torch.device("cpu")):
        twin.kind = twin._choose()
        attention = twin._choose_attention()
    is_fused = attention == llm_attention.NAME and llm_fused.is_fused(stack_of(twin.llm, twin.n_layers))
    return twin.kind, attention, is_fused


def _close(found: Tensor, wanted: Tensor) -> bool:
    """Whether states [a multiple of S, T, d_llm] are those wanted, [S, T, d_llm], but for rounding."""
    tolerance = CHECK_TOLERANCE[wanted.dtype] * float(wanted.float().std())
    wanted = wanted.repeat(len(found) // len(wanted), 1, 1)
    return bool(((found - wanted).abs() <= tolerance).all())


def _positions(mask: Tensor) -> Tensor:
    """Position of each token among those that count, [S, T]."""
    return (mask.cumsum(dim=-1) - 1).clamp(min=0)


def _rows(mask: Tensor | None, rows: slice) -> Tensor | None:
    """The queries' part of an attention mask [S, 1, 1 or T, T], or of none."""
    return mask if mask is None or mask.shape[-2] == 1 else mask[..., rows, :]
