"""Frozen layers of the Llama kind on a CPU, with fewer passes over memory than their own code.

A layer's own code makes a new tensor for every operation and keeps what a trained layer's gradient
would need. Here the weights are frozen: norm and projections are one function, output, residual and
feed-forward part another, each with its gradient written out. The products are the layer's own, on its
own weights, which the backward pass asks for anew (`layers.llm.kept`); `layers.llm.check` compares the
states with those of transformers' code before it takes them.

Shape legend: S series, T tokens, h heads of the queries, k of keys and values, E width per head,
R = S * T rows, d width of the states, m inner width of the feed-forward part.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from layers.llm import attention as llm_attention
from layers.llm.kept import KeptLinear
from layers.llm.layers import PassCache

KNOWN = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer")
"""Classes of transformers whose forward passes are this one."""
PARTS = ("q_proj", "k_proj", "v_proj")
ROWS = 1024
"""Of the feed-forward part at once where no gradient keeps them: they stay in the cache."""


def fuse(layers: nn.ModuleList) -> bool:
    """Compute those ``layers`` that are known this way, wherever attention is `layers.llm.attention`'s.

    Returns whether there are any.
    """
    known = [layer for layer in layers if "forward" not in vars(layer) and _is_known(layer)]
    for layer in known:
        layer.forward = functools.partial(_forward, layer)
    return bool(known)


def restore(layers: nn.ModuleList) -> None:
    """Give each fused layer its own forward pass back."""
    for layer in layers:
        if _has_fused(layer):
            del layer.forward


def is_fused(layers: nn.ModuleList) -> bool:
    """Whether any of these layers is computed this way."""
    return any(_has_fused(layer) for layer in layers)


def _has_fused(layer: nn.Module) -> bool:
    return isinstance(vars(layer).get("forward"), functools.partial)


def _is_known(layer: Any) -> bool:
    """Whether the layer's parts are exactly what is known, frozen, and nobody listens to them."""
    kind = type(layer)
    if kind.__name__ not in KNOWN or not kind.__module__.startswith("transformers.models."):
        return False
    attention, mlp = layer.self_attn, layer.mlp
    maps = [getattr(attention, name) for name in PARTS]
    plain = [attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj]
    return (
        all(type(part) in (nn.Linear, KeptLinear) for part in maps + plain)
        and all(part.bias is None for part in plain)
        and type(mlp.act_fn).__name__ in ("SiLU", "SiLUActivation")
        and not any(weight.requires_grad for weight in layer.parameters())
        and not any(
            "forward" in vars(part) or part._forward_hooks or part._forward_pre_hooks
            for part in layer.modules()
            if part is not layer
        )
    )


def _forward(
    layer: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    past_key_values: Any = None,
    use_cache: bool | None = False,
    position_embeddings: tuple[Tensor, Tensor] | None = None,
    **kwargs: Any,
) -> Tensor:
    """The layer's forward pass, [S, T, d] to [S, T, d]."""
    attention, norm = layer.self_attn, layer.input_layernorm
    if (
        not _is_known(layer)
        or attention.config._attn_implementation != llm_attention.NAME
        or hidden_states.device.type != "cpu"
        or hidden_states.dtype != torch.float32
        or norm.weight.dtype != torch.float32
        or torch.is_autocast_enabled("cpu")
        or position_embeddings is None
        or any(value is not None and value is not False for value in kwargs.values())
    ):
        return type(layer).forward(
            layer,
            hidden_states,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            position_embeddings=position_embeddings,
            **kwargs,
        )
    ends = isinstance(past_key_values, PassCache) and past_key_values.ends_at == attention.layer_idx
    maps = [getattr(attention, name) for name in PARTS[1 if ends else 0 :]]
    cos, sin = (part[..., : part.shape[-1] // 2].unsqueeze(1) for part in position_embeddings)
    *query, key, value = _Projected.apply(
        hidden_states,
        cos,
        sin,
        attention.scaling,
        norm.weight,
        norm.variance_epsilon,
        *maps,
    )
    if past_key_values is not None:
        key, value = past_key_values.update(key, value, attention.layer_idx)
    attended = llm_attention.products(query[0], key, value, attention_mask)
    mlp, norm = layer.mlp, layer.post_attention_layernorm
    parts = attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj
    states: Tensor = _Fed.apply(
        hidden_states, attended.flatten(2), norm.weight, norm.variance_epsilon, *parts
    )
    return states


class _Projected(torch.autograd.Function):
    """Norm, projections and rotation: queries, scaled, [S, h, T, E]; keys and values [S, k, T, E].

    The maps are those of queries, keys and values, or of the last two alone.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        scale: float,
        norm: Tensor,
        eps: float,
        *maps: nn.Linear,
    ) -> tuple[Tensor, ...]:
        rows = x.reshape(-1, x.shape[-1])
        normed, factor = _normed(rows, norm, eps)
        scales = [scale, 1.0, None][-len(maps) :]  # values have no position
        found = []
        for part, by in zip(maps, scales, strict=True):
            heads = (
                F.linear(normed, part.weight, part.bias)
                .view(*x.shape[:2], -1, 2 * cos.shape[-1])
                .transpose(1, 2)
            )
            if by is None:
                found.append(heads.contiguous())
                continue
            turned = torch.empty(heads.shape, dtype=heads.dtype)
            found.append(_turn(heads, cos * by, sin * by, out=turned))
        ctx.save_for_backward(rows, factor, cos, sin, norm)
        ctx.maps, ctx.scales = maps, scales
        return tuple(found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        rows, factor, cos, sin, norm = ctx.saved_tensors
        series, _, tokens, _ = gradients[0].shape
        of_normed = None
        for gradient, part, by in zip(gradients, ctx.maps, ctx.scales, strict=True):
            weight = part.weight
            if by is None:
                flat = gradient.transpose(1, 2).reshape(len(rows), -1)
            else:
                flat = gradient.new_empty(len(rows), weight.shape[0])
                heads = flat.view(series, tokens, *gradient.shape[1::2]).transpose(1, 2)
                _turn(gradient, cos * by, sin * -by, out=heads)
            of_normed = flat @ weight if of_normed is None else of_normed.addmm_(flat, weight)
        assert of_normed is not None
        of_x = _norm_gradient(of_normed, rows, factor, norm).mul_(factor)
        return of_x.view(series, tokens, -1), *[None] * (5 + len(ctx.maps))


class _Fed(torch.autograd.Function):
    """Output projection, residual, norm, gated feed-forward part, residual: [S, T, d] to [S, T, d]."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, attended: Tensor, norm: Tensor, eps: float,
        output: nn.Linear, gate: nn.Linear, up: nn.Linear, down: nn.Linear,
    ) -> Tensor:  # fmt: skip
        """``x`` [S, T, d], ``attended`` [S, T, h E]; maps as the layer has them."""
        rows = attended.reshape(-1, attended.shape[-1])
        added = torch.addmm(x.reshape(len(rows), -1), rows, output.weight.t())
        kept = any(ctx.needs_input_grad)
        if kept:
            normed, factor = _normed(added, norm, eps)
            gates, ups = normed @ gate.weight.t(), normed @ up.weight.t()
            inner = F.silu(gates).mul_(ups)
            states = torch.addmm(added, inner, down.weight.t())
            ctx.save_for_backward(added, factor, gates, ups, norm)
            ctx.maps = output, gate, up, down
        else:
            states = added
            of_gate, of_up, of_down = (part.weight.t() for part in (gate, up, down))
            gates, ups = added.new_empty(2, min(ROWS, len(rows)), gate.out_features)
            for part in states.split(ROWS):
                normed, _ = _normed(part, norm, eps)
                inner = torch.mm(normed, of_gate, out=gates[: len(part)])
                inner = F.silu(inner, inplace=True).mul_(torch.mm(normed, of_up, out=ups[: len(part)]))
                part.addmm_(inner, of_down)
        return states.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        added, factor, gates, ups, norm = ctx.saved_tensors
        output, gate, up, down = ctx.maps
        of_states = gradient.reshape(added.shape)
        of_inner = of_states @ down.weight
        of_ups = F.silu(gates).mul_(of_inner)
        of_inner.mul_(ups)
        of_gates = torch.ops.aten.silu_backward.grad_input(of_inner, gates, grad_input=of_inner)
        of_normed = (of_gates @ gate.weight).addmm_(of_ups, up.weight)
        of_added = torch.addcmul(of_states, _norm_gradient(of_normed, added, factor, norm), factor)
        of_attended = (of_added @ output.weight).view(*gradient.shape[:2], -1)
        return of_added.view_as(gradient), of_attended, *[None] * 6


def _normed(rows: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Rows [R, d] over their root mean square, times ``weight`` [d]; and the factor [R, 1] on each."""
    square = torch.linalg.vector_norm(rows, dim=-1, keepdim=True).square_()
    factor = square.div_(rows.shape[-1]).add_(eps).rsqrt_()
    return (rows * factor).mul_(weight), factor


def _norm_gradient(of_normed: Tensor, rows: Tensor, factor: Tensor, weight: Tensor) -> Tensor:
    """The gradient of `_normed` by its rows, before their own ``factor``; ``of_normed`` is changed."""
    of_normed.mul_(weight)
    along = (of_normed * rows).sum(-1, keepdim=True).mul_(factor.square()).div_(-rows.shape[-1])
    return of_normed.addcmul_(rows, along)


def _turn(heads: Tensor, cos: Tensor, sin: Tensor, *, out: Tensor) -> Tensor:
    """Rotary position embedding of [S, h, T, E] by angles [S or 1, 1, T, E / 2]: half by half, into ``out``.

    Source: Su et al., "RoFormer", 2021, in the layout of transformers' Llama.
    """
    (first, second), (one, two) = heads.chunk(2, dim=-1), out.chunk(2, dim=-1)
    torch.mul(first, cos, out=one).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=two).addcmul_(first, sin)
    return out
