"""Fused frozen layers against transformers' own code: states and gradients, and when they stand back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel, LlamaConfig, MistralConfig, PreTrainedConfig, Qwen2Config

from layers.llm import attention as llm_attention
from layers.llm import blocks as llm_fused
from layers.llm.check import checked_pass
from layers.llm.forward import LLMPass

SIZES: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
    "num_attention_heads": 6, "num_key_value_heads": 2, "rms_norm_eps": 1e-2, "initializer_range": 0.3,
}  # fmt: skip
SETTINGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "mistral": MistralConfig(**SIZES, head_dim=8, sliding_window=4),
    "qwen2": Qwen2Config(**SIZES),
}
S, PREFIX, FRONT, TAIL = 3, 2, 5, 4


def built(settings: PreTrainedConfig) -> Any:
    """A frozen LLM none of whose weights is zero or one."""
    torch.manual_seed(0)
    llm = AutoModel.from_config(settings, attn_implementation="sdpa").eval()
    with torch.no_grad():
        for weight in llm.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return llm.requires_grad_(False)


def fused_layers(llm: Any) -> list[bool]:
    return ["forward" in vars(layer) for layer in llm.layers]


def states_and_gradients(run: LLMPass, *, prefix: bool) -> list[Tensor]:
    """Through a pass with padding; the gradients of front and tail."""
    generator = torch.Generator().manual_seed(1)
    width = run.llm.config.hidden_size
    before = torch.randn(1, PREFIX, width, generator=generator).expand(S, -1, -1)
    front = torch.randn(S, FRONT, width, generator=generator).requires_grad_()
    tail = torch.randn(S, TAIL, width, generator=generator).requires_grad_()
    mask = torch.ones(S, PREFIX + FRONT + TAIL, dtype=torch.int64)
    mask[0, PREFIX : PREFIX + 2] = 0
    if prefix and run.reuses_prefix:
        states = run(front, tail, mask=mask, prefix=run.prefix(before[:1]))
    else:
        states = run(torch.cat([before, front], dim=1), tail, mask=mask)
    weights = torch.randn(states.shape, generator=generator)
    return [states.detach(), *torch.autograd.grad((states * weights).sum(), [front, tail])]


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("recomputed", [False, True])
def test_states_and_gradients_are_those_of_transformers(name: str, prefix: bool, recomputed: bool) -> None:
    """A gradient written by hand, with a term missing, would train towards something else."""
    llm = built(SETTINGS[name])
    short = checked_pass(llm)
    wanted = states_and_gradients(short.plain(), prefix=prefix)
    if recomputed:
        short.recompute_layers()
    assert all(fused_layers(llm))
    for found, other in zip(states_and_gradients(short, prefix=prefix), wanted, strict=True):
        torch.testing.assert_close(found, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_blocks_of_rows_without_a_gradient_give_the_same(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    run = checked_pass(built(SETTINGS["llama"]))
    tokens = torch.randn(S, FRONT, 24, generator=torch.Generator().manual_seed(2))
    mask = torch.ones(S, FRONT, dtype=torch.int64)
    wanted = run(tokens[:, :0], tokens.clone().requires_grad_(), mask=mask)
    monkeypatch.setattr(llm_fused, "ROWS", rows)
    with torch.no_grad():
        torch.testing.assert_close(run(tokens[:, :0], tokens, mask=mask), wanted)


def test_who_listens_to_a_part_hears_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hook on a part would be passed over; and the plain pass must run the layers' own code."""
    llm = built(SETTINGS["llama"])
    short, plain = checked_pass(llm), LLMPass(llm)
    fed, seen = llm_fused._Fed.apply, []

    def counted(*args: Any) -> Any:
        seen.append("fused")
        return fed(*args)

    monkeypatch.setattr(llm_fused._Fed, "apply", counted)
    states_and_gradients(plain, prefix=False)
    assert not seen
    states_and_gradients(short, prefix=False)
    assert seen
    seen.clear()
    for layer in llm.layers:
        layer.mlp.register_forward_hook(lambda *args: seen.append("heard"))
    states_and_gradients(short, prefix=False)
    assert set(seen) == {"heard"}


def test_what_is_not_exactly_known_keeps_its_own_code() -> None:
    """A trained weight, a part of another kind or a hook in a part's place would be passed over."""
    changes: dict[str, Any] = {
        "trained": lambda layer: layer.mlp.up_proj.weight.requires_grad_(),
        "other map": lambda layer: setattr(layer.self_attn, "q_proj", nn.Identity()),
        "wrapped": lambda layer: setattr(layer.mlp, "forward", layer.mlp.forward),
        "other activation": lambda layer: setattr(layer.mlp, "act_fn", nn.GELU()),
    }
    for name, change in changes.items():
        llm = built(SETTINGS["llama"])
        change(llm.layers[1])
        llm_fused.fuse(llm.layers)
        assert fused_layers(llm) == [True, False], name
        llm_fused.restore(llm.layers)
        assert fused_layers(llm) == [False, False]


def test_layers_that_give_other_states_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """An architecture whose class keeps its name and changes its formula."""
    llm = built(SETTINGS["llama"])
    normed = llm_fused._normed
    monkeypatch.setattr(llm_fused, "_normed", lambda rows, weight, eps: normed(rows, weight + 1, eps))
    run = checked_pass(llm)
    assert fused_layers(llm) == [False, False]
    assert run._attention_on_cpu == llm_attention.NAME
