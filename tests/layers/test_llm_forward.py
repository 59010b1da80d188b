"""The shortened passes through the LLM against its own forward pass: states and every gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModel,
    DistilBertConfig,
    Gemma3TextConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
)

from layers.llm.check import checked_pass
from layers.llm.forward import LLMPass

KINDS = {"tiny_gpt2": "causal", "tiny_llama": "causal", "tiny_bert": "bidirectional"}
S, PREFIX, FRONT, TAIL = 3, 6, 9, 5
SMALL: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
GROUPED = SMALL | {"num_key_value_heads": 2, "head_dim": 8}
OTHERS: dict[str, tuple[PreTrainedConfig, str]] = {
    "qwen2": (Qwen2Config(**SMALL, num_key_value_heads=2), "causal"),
    "qwen3": (Qwen3Config(**GROUPED), "causal"),
    "gemma3, sliding windows": (Gemma3TextConfig(**GROUPED, sliding_window=8), "causal"),
    "mistral, sliding windows": (MistralConfig(**GROUPED, sliding_window=6), "causal"),
    "roberta": (RobertaConfig(**SMALL), "bidirectional"),
    "distilbert": (DistilBertConfig(vocab_size=300, dim=32, hidden_dim=64, n_layers=2, n_heads=4), "plain"),
}


def loaded(folder: Path) -> PreTrainedModel:
    return AutoModel.from_pretrained(folder, attn_implementation="sdpa").eval().requires_grad_(False)


@pytest.fixture(params=KINDS)
def llm(request: pytest.FixtureRequest) -> PreTrainedModel:
    return loaded(request.getfixturevalue(request.param))


def drawn(llm: PreTrainedModel) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Prefix (the same in all rows), front, tail, and a mask with unlike padding behind the prefix."""
    width = llm.config.hidden_size
    generator = torch.Generator().manual_seed(3)
    before = torch.randn(1, PREFIX, width, generator=generator).expand(S, -1, -1)
    front = torch.randn(S, FRONT, width, generator=generator)
    tail = torch.randn(S, TAIL, width, generator=generator)
    mask = torch.ones(S, PREFIX + FRONT + TAIL, dtype=torch.int64)
    mask[1, PREFIX : PREFIX + 2] = 0
    mask[2, PREFIX : PREFIX + 4] = 0
    return before, front, tail, mask


def gradients(states: Tensor, *inputs: Tensor) -> list[Tensor]:
    weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(4))
    return list(torch.autograd.grad((states * weights).sum(), inputs))


@pytest.mark.parametrize("name", KINDS)
def test_each_architecture_gets_its_way(name: str, request: pytest.FixtureRequest) -> None:
    assert checked_pass(loaded(request.getfixturevalue(name))).kind == KINDS[name]


@pytest.mark.parametrize("front_is_trained", [True, False])
def test_states_and_gradients_are_those_of_the_plain_pass(
    llm: PreTrainedModel, front_is_trained: bool
) -> None:
    before, front, tail, mask = drawn(llm)
    front = torch.cat([before, front], dim=1).requires_grad_(front_is_trained)
    tail.requires_grad_()
    inputs = [front, tail] if front_is_trained else [tail]
    plain = LLMPass(llm)(front, tail, mask=mask)
    short = checked_pass(llm)(front, tail, mask=mask)
    assert short.shape == (S, TAIL, llm.config.hidden_size)
    torch.testing.assert_close(short, plain, rtol=1e-4, atol=1e-5)
    for found, wanted in zip(gradients(short, *inputs), gradients(plain, *inputs), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))


def test_a_kept_prefix_gives_the_same_states_and_gradients_again_and_again(llm: PreTrainedModel) -> None:
    """A cache that grew in place would be wrong the second time."""
    short = checked_pass(llm)
    before, front, tail, mask = drawn(llm)
    if not short.reuses_prefix:
        with pytest.raises(ValueError, match="prefix"):
            short.prefix(before[:1])
        return
    tail.requires_grad_()
    plain = LLMPass(llm)(torch.cat([before, front], dim=1), tail, mask=mask)
    prefix = short.prefix(before[:1])
    assert prefix.length == PREFIX and all(k.shape[0] == 1 for k in prefix.keys)
    for _ in range(2):
        found = short(front, tail, mask=mask, prefix=prefix)
        torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5)
        (own,), (wanted,) = gradients(found, tail), gradients(plain, tail)
        torch.testing.assert_close(own, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))
        plain = LLMPass(llm)(torch.cat([before, front], dim=1), tail, mask=mask)


def test_a_prefix_alone_needs_no_front(llm: PreTrainedModel) -> None:
    short = checked_pass(llm)
    if not short.reuses_prefix:
        pytest.skip("sees both ways: no prefix to reuse")
    before, _, tail, _ = drawn(llm)
    mask = torch.ones(S, PREFIX + TAIL, dtype=torch.int64)
    plain = LLMPass(llm)(before, tail, mask=mask)
    found = short(tail[:, :0], tail, mask=mask, prefix=short.prefix(before[:1]))
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5)


def test_what_is_not_read_is_not_computed(llm: PreTrainedModel) -> None:
    """In the last layer the feed-forward part sees the tail alone."""
    before, front, tail, mask = drawn(llm)
    front = torch.cat([before, front], dim=1)
    stack = next(m for m in llm.modules() if isinstance(m, torch.nn.ModuleList))
    norms = [m for m in stack[-1].modules() if "Norm" in type(m).__name__]
    seen: list[int] = []
    short = checked_pass(llm)
    norms[-1].register_forward_hook(lambda m, args, out: seen.append(args[0].shape[1]))
    short(front, tail.requires_grad_(), mask=mask)
    assert seen == [TAIL]


def alone(llm: PreTrainedModel, tokens: Tensor, mask: Tensor) -> Tensor:
    """The tail's states of each sequence by itself, without what is masked."""
    rows = [
        llm(inputs_embeds=row[seen][None])[0][0, -TAIL:]
        for row, seen in zip(tokens, mask.bool(), strict=True)
    ]
    return torch.stack(rows)


@pytest.mark.parametrize("name", OTHERS)
def test_other_architectures_have_the_states_that_transformers_gives_each_sequence_alone(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Padding in the middle counts in a sliding window; RoBERTa's positions begin behind that of padding."""
    config, kind = OTHERS[name]
    torch.manual_seed(0)
    llm = AutoModel.from_config(config, attn_implementation="sdpa").eval().requires_grad_(False)
    with caplog.at_level("INFO", logger="layers"):
        short = checked_pass(llm)
    assert short.kind == kind
    assert ("full cost" in caplog.text) == (kind == "plain")
    assert ("far left" in caplog.text) == ("sliding" in name)
    before, front, tail, mask = drawn(llm)
    front = torch.cat([before, front], dim=1)
    wanted = alone(llm, torch.cat([front, tail], dim=1), mask)
    torch.testing.assert_close(short(front, tail, mask=mask), wanted, rtol=1e-4, atol=1e-4)


def test_a_way_that_gives_other_states_is_not_taken(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The check at start-up can fail: a causal pass that loses its front is noticed."""
    right = LLMPass._causal
    monkeypatch.setattr(
        LLMPass, "_causal", lambda self, front, tail, mask, prefix: right(self, 0 * front, tail, mask, prefix)
    )
    assert checked_pass(loaded(tiny_llama)).kind != "causal"
