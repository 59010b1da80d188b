"""How an LLM's passes are computed is decided in float32, by a few of its layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModel, Gemma3TextConfig, GPT2Config, LlamaConfig, PreTrainedModel

from layers.llm import attention as llm_attention
from layers.llm import check
from layers.llm.check import checked_pass
from layers.llm.probe import FEWEST, WORDS, twin_of
from utils.errors import UserError

SMALL: dict[str, Any] = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.2, "pad_token_id": 0,
}  # fmt: skip
DEEP = LlamaConfig(**SMALL, num_hidden_layers=12)
KINDS = ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"]


def drawn(config: Any, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    torch.manual_seed(0)
    made = AutoModel.from_config(config, attn_implementation="sdpa")
    return made.to(dtype).eval().requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_s_rounding_decides_nothing(dtype):
    """With 12 layers in bf16 the attention was refused on one processor at .375, taken on another at .344."""
    taken = checked_pass(drawn(DEEP, dtype))
    assert (taken.kind, taken._attention_on_cpu) == ("causal", llm_attention.NAME)


def test_products_that_are_less_exact_decide_nothing():
    """--matmul_precision medium is bf16 on some processors: the check would refuse every shortened pass."""
    seen: list[str] = []
    right = check._Check._states_off

    def noted(self: Any, *args: Any) -> float:
        seen.append(torch.get_float32_matmul_precision())
        return right(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(check._Check, "_states_off", noted)
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("medium")
        try:
            checked_pass(drawn(DEEP))
            assert set(seen) == {"highest"} and torch.get_float32_matmul_precision() == "medium"
        finally:
            torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("config", [DEEP, GPT2Config(n_layer=9, n_embd=32, n_head=4, vocab_size=300)])
def test_a_twin_is_small_and_leaves_its_llm_as_it_is(config):
    """A whole second LLM in float32 would not fit beside one in bf16."""
    llm = drawn(config, torch.bfloat16)
    before = {name: weight.clone() for name, weight in llm.state_dict().items()}
    state = torch.get_rng_state()
    twin = twin_of(llm)
    assert {p.dtype for p in twin.parameters()} == {torch.float32} and not twin.training
    assert twin.config.num_hidden_layers == FEWEST and twin.get_input_embeddings().num_embeddings == WORDS
    a_layer = sum(p.numel() for n, p in llm.named_parameters() if ".0." in n)
    others = sum(p.numel() for n, p in llm.named_parameters() if ".0." in n or not _numbered(n))
    assert sum(p.numel() for p in twin.parameters()) <= FEWEST * a_layer + others
    own = dict(twin.named_parameters())
    assert all(torch.equal(own[n], before[n].float()) for n in own if _numbered(n))
    assert all(torch.equal(weight, before[name]) for name, weight in llm.state_dict().items())
    assert llm.config.num_hidden_layers == config.num_hidden_layers
    assert torch.equal(state, torch.get_rng_state())


def _numbered(name: str) -> bool:
    return any(part.isdigit() for part in name.split("."))


def test_a_twin_has_a_layer_of_each_kind():
    """The first two layers of Gemma 3 both see a window; its other kind would go unchecked."""
    config = Gemma3TextConfig(**SMALL, num_hidden_layers=8, layer_types=2 * KINDS, sliding_window=6)
    twin: Any = twin_of(drawn(config))
    assert twin.config.layer_types == KINDS and len(list(twin.layers.children())) == len(KINDS)


@pytest.mark.parametrize("mark", [{"is_quantized": True}, {"hf_device_map": {"": "cpu"}}])
def test_weights_that_can_not_be_copied_are_checked_by_their_code(mark):
    """4-bit weights and those on a disk have no float32 copy; they were checked in their own rounding."""
    llm: Any = drawn(DEEP)
    llm.config.quantization_config = {"load_in_4bit": True}
    for name, value in mark.items():
        setattr(llm, name, value)
    twin: Any = twin_of(llm)
    assert type(twin) is type(llm) and {p.dtype for p in twin.parameters()} == {torch.float32}
    assert (twin.config.num_hidden_layers, twin.get_input_embeddings().num_embeddings) == (FEWEST, WORDS)
    assert checked_pass(llm).kind == "causal"


@pytest.mark.parametrize("share", [0.0, 0.02, 1.0])
def test_quantised_weights_that_cut_the_gradient_are_refused(share: float) -> None:
    """bitsandbytes on a CPU gave a fiftieth of the gradient, tokens in integers give none: nothing learns."""
    llm: Any = drawn(DEEP)
    llm.is_quantized = True
    for layer in llm.layers:
        layer.register_full_backward_pre_hook(lambda module, gradients: (gradients[0] * share,))
    if share == 1:
        assert checked_pass(llm).kind == "causal"
        return
    with pytest.raises(UserError, match="expected quantised weights that let gradients through"):
        checked_pass(llm)
