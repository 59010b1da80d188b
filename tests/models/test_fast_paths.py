"""What saves time gives the same forecasts and the same gradients as the plain order of operations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.models.test_timellm_enhanced import BATCH, BOTH, batch_of, model_of, state_of
from tests.pairwise import each_pair
from utils.micro_step import MicroStep, StepValue
from utils.training.objective import Objective

TINY = ["tiny_gpt2", "tiny_llama", "tiny_qwen", "tiny_bert"]
ORDERS = ["document", "prompt_first"]


def plainly(model: Any) -> Any:
    """The model with every state of the LLM computed, and nothing kept."""
    model.use_reference_forward()
    return model


def count_calls(owner: Any, name: str) -> list[int]:
    """A list that grows by one item with every call of a method."""
    calls: list[int] = []
    called = getattr(owner, name)

    def counted(*args: Any) -> Any:
        calls.append(1)
        return called(*args)

    setattr(owner, name, counted)
    return calls


def gradients(model: nn.Module) -> dict[str, Tensor]:
    model.train()
    model.zero_grad(set_to_none=True)
    objective = Objective(model.config)  # type: ignore[arg-type]
    objective(state_of(model), BATCH, step=10).total.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_alike(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        if name.endswith("key_projection.bias"):
            continue  # mathematically zero: only rounding is left
        size = float(gradient.abs().max())
        torch.testing.assert_close(found[name], gradient, rtol=2e-3, atol=2e-4 * size + 1e-9, msg=name)


@each_pair(
    fixture="folder",
    folder=TINY,
    order=ORDERS,
    switches=[{}, BOTH | {"retrieval_fusion": "both"}],
    choice=[{}, {"source_tokens": "prototypes"}, {"gradient_checkpointing": True, "dropout": 0.0}],
)
def test_forecast_and_every_gradient_are_the_plain_ones(folder, order, switches, choice):
    settings = {**switches, "token_order": order, **choice}
    fast, plain = model_of(folder, **settings), plainly(model_of(folder, **settings))
    for _ in range(2):  # the second pass meets what the first has kept
        torch.testing.assert_close(
            state_of(fast).prediction, state_of(plain).prediction, rtol=1e-4, atol=1e-5
        )
    found, wanted = gradients(fast), gradients(plain)
    assert found.keys() == {n for n, p in fast.named_parameters() if p.requires_grad}
    assert_alike(found, wanted)


def test_prompt_domain_0_leaves_the_description_out(tiny_llama):
    told, general = (model_of(tiny_llama, data="ETTh1", prompt_domain=d) for d in (1, 0))
    assert "transformer" in told.prompt.constant_text
    assert general.prompt.constant_text == model_of(tiny_llama).prompt.constant_text
    assert not torch.allclose(state_of(told).prediction, state_of(general).prediction, atol=1e-5)


def test_the_orders_are_different_models_where_modules_are_on(tiny_llama):
    """A causal LLM reads its prompt with or without the trend token; without modules there is one order."""
    both, none = (
        [state_of(model_of(tiny_llama, token_order=order, **switches)).prediction for order in ORDERS]
        for switches in (BOTH, {})
    )
    assert not torch.allclose(both[0], both[1], atol=1e-4)
    torch.testing.assert_close(none[0], none[1], rtol=1e-5, atol=1e-6)


def test_prototypes_start_where_the_mapping_starts(tiny_gpt2):
    """The same function at first, and no mapping to train or to save."""
    mapping, prototypes = (model_of(tiny_gpt2, source_tokens=s) for s in ("mapping", "prototypes"))
    torch.testing.assert_close(mapping.source_tokens(), prototypes.source_tokens())
    torch.testing.assert_close(state_of(mapping).prediction, state_of(prototypes).prediction)
    assert not any("mapping_layer" in name for name in prototypes.state_dict())


def test_the_source_is_mapped_once_an_evaluation_and_again_after_every_change(tiny_gpt2):
    model = model_of(tiny_gpt2)
    calls = count_calls(model, "_map_words")
    model.eval()
    with torch.no_grad():
        first = [state_of(model, batch_of(s)).prediction for s in (0, 10, 20)]
    assert len(calls) == 1 and first
    other = {n: t + 0.01 if n.startswith("mapping_layer") else t for n, t in model.state_dict().items()}
    model.load_state_dict(other)  # in eval mode, as the best weights are loaded for the test
    with torch.no_grad():
        changed = state_of(model).prediction
    assert len(calls) == 2
    model.train()
    gradients(model)
    gradients(model)
    assert len(calls) == 4
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(state_of(model).prediction, changed)
    assert len(calls) == 5


def test_a_kept_prefix_is_not_used_with_other_weights_of_the_llm(tiny_llama):
    """What changes the LLM to see whether it matters must not be answered from memory."""
    model = model_of(tiny_llama).eval()
    with torch.no_grad():
        before = state_of(model).prediction
        for weight in model.llm_model.layers.parameters():
            weight.mul_(1.5)
        after = state_of(model).prediction
        wanted = state_of(plainly(model)).prediction
    assert not torch.allclose(before, after, atol=1e-4)
    torch.testing.assert_close(after, wanted, rtol=1e-4, atol=1e-5)


def accumulated(model: Any, *, told: bool) -> dict[str, Tensor]:
    """Gradients of three passes with other batches; ``told`` of their places the model shares its source."""
    model.train()
    model.zero_grad(set_to_none=True)
    objective = Objective(model.config)
    batches = [batch_of(0, 100), batch_of(20, 30), batch_of(60, 130)]
    shared = StepValue()
    for i, batch in enumerate(batches):
        micro_step = MicroStep(shared, last=i == len(batches) - 1) if told else None
        objective(state_of(model, batch, micro_step), batch, step=10).total.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("switches", [{}, {**BOTH, "peft": "lora"}], ids=["baseline", "enhanced"])
def test_passes_of_one_step_share_their_source_and_keep_every_gradient(folder, switches):
    shared, plain = model_of(folder, **switches), plainly(model_of(folder, **switches))
    calls = count_calls(shared, "_map_words")
    found = accumulated(shared, told=True)
    assert len(calls) == 1
    assert_alike(found, accumulated(plain, told=False))
