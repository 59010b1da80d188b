"""--peft lora: right gradients on every way through the LLM, and adapters alone in a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layers.llm.load import load_llm
from layers.llm.lora import adapted_maps, is_adapter
from models import TimeLLM_Enhanced
from tests.models.test_fast_paths import assert_alike, gradients, plainly
from tests.models.test_timellm_enhanced import BOTH, config_of, forecast, state_of, train
from tests.models.test_timellm_enhanced import model_of as any_model_of
from tests.pairwise import each_pair
from utils.config import Config, ConfigError
from utils.reporting.run_header import adapters_text
from utils.reporting.unused_flags import unread_flags

FOLDERS = ["tiny_gpt2", "tiny_llama", "tiny_qwen", "tiny_bert"]
DEFAULTS = {"tiny_gpt2": "c_attn", "tiny_llama": "q_proj v_proj", "tiny_qwen": "q_proj v_proj",
            "tiny_bert": "query value"}  # fmt: skip
ALL = ("all-linear",)


def model_of(folder: Path, **settings: Any) -> TimeLLM_Enhanced.Model:
    return any_model_of(folder, **{"peft": "lora", **settings})


def shaken(model: TimeLLM_Enhanced.Model) -> TimeLLM_Enhanced.Model:
    """Adapters that have an effect: trained, they would have left their zero start."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in adapters(model).values():
            weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
    return model


def adapters(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight for name, weight in model.named_parameters() if is_adapter(name)}


# Gradients.


@each_pair(
    fixture="folder",
    folder=FOLDERS,
    order=["document", "prompt_first"],
    switches=[{}, BOTH],
    choice=[{}, {"lora_targets": ALL}, {"lora_targets": ALL, "gradient_checkpointing": True}],
)
def test_forecast_and_every_gradient_are_the_plain_ones(folder, order, switches, choice):
    """Keys and values of the prompt are no constants any more: a kept prefix would cut their gradient."""
    settings = {**switches, "token_order": order, **choice}
    fast, plain = shaken(model_of(folder, **settings)), plainly(shaken(model_of(folder, **settings)))
    assert fast._pass.kind != "plain"
    for _ in range(2):
        torch.testing.assert_close(
            state_of(fast).prediction, state_of(plain).prediction, rtol=1e-4, atol=1e-5
        )
    found, wanted = gradients(fast), gradients(plain)
    assert found.keys() == {n for n, p in fast.named_parameters() if p.requires_grad}
    own = {name: float(found[name].abs().max()) for name in adapters(fast)}
    assert len(own) == 2 * len(adapted_maps(fast.llm_model)) and all(size > 0 for size in own.values())
    assert_alike(found, wanted)


def test_a_prefix_that_was_kept_for_evaluation_is_not_trained_with_nor_used_after_a_step(tiny_llama):
    model = shaken(model_of(tiny_llama, learning_rate=0.05))
    plain = plainly(shaken(model_of(tiny_llama, learning_rate=0.05)))
    for _ in range(3):
        for one in (model, plain):
            one.eval()
        torch.testing.assert_close(forecast(model), forecast(plain), rtol=1e-3, atol=1e-4)
        assert model._kept_prefix is not None
        kept = [keys.clone() for keys in model._kept_prefix[1].keys]
        for one in (model, plain):
            train(one, 1)
    model.eval()
    forecast(model)
    assert model._kept_prefix is not None
    assert not torch.allclose(kept[-1], model._kept_prefix[1].keys[-1], atol=1e-4)


def test_a_prefix_is_kept_without_a_gradient_also_in_inference_mode(tiny_llama):
    model = shaken(model_of(tiny_llama)).eval()
    with torch.inference_mode():
        state_of(model)
    assert model._kept_prefix is not None
    assert not any(t.requires_grad or t.is_inference() for t in model._kept_prefix[1].keys)
    assert gradients(model).keys() >= adapters(model).keys()


def test_adapters_learn_and_the_llm_stays(folder):
    model = model_of(folder, **BOTH)
    frozen = {n: p.clone() for n, p in model.llm_model.named_parameters() if not is_adapter(n)}
    first = {name: weight.clone() for name, weight in adapters(model).items()}
    train(model, 5)
    assert not any(torch.equal(weight, first[name]) for name, weight in adapters(model).items())
    assert all(torch.equal(p, frozen[n]) for n, p in model.llm_model.named_parameters() if n in frozen)


# What they are.


@pytest.mark.parametrize("name", FOLDERS)
def test_the_default_maps_are_pefts_own_for_the_architecture(name, request):
    maps = adapted_maps(model_of(request.getfixturevalue(name)).llm_model)
    assert {one.rsplit(".", 1)[-1] for one in maps} == set(DEFAULTS[name].split())
    assert len(maps) == 2 * len(DEFAULTS[name].split())


def test_maps_are_chosen_by_the_end_of_their_name_inside_the_layers(tiny_llama, tiny_bert):
    maps = adapted_maps(model_of(tiny_llama, lora_targets=("mlp.down_proj", "o_proj")).llm_model)
    assert maps == [f"layers.{i}.{m}" for i in range(2) for m in ("self_attn.o_proj", "mlp.down_proj")]
    dense = adapted_maps(model_of(tiny_bert, lora_targets=("dense",)).llm_model)
    assert len(dense) == 6 and all(name.startswith("encoder.layer.") for name in dense)  # none in the pooler


def test_an_unknown_map_is_named_with_those_there_are(tiny_llama):
    with pytest.raises(ValueError, match=r"--lora_targets: expected .*down_proj.*q_proj.*found qproj$"):
        model_of(tiny_llama, lora_targets=("v_proj", "qproj"))


def test_adapters_begin_without_effect_and_move_nothing_else(folder):
    """The start of a run with adapters is that of the run without, random state included."""
    with_them = model_of(folder, **BOTH)
    drawn = torch.rand(1)
    without = model_of(folder, **BOTH, peft="none")
    assert torch.equal(drawn, torch.rand(1))
    torch.testing.assert_close(forecast(with_them), forecast(without), rtol=1e-4, atol=1e-5)  # fused without
    own = with_them.state_dict()
    assert all(torch.equal(own.pop(name), weight) for name, weight in without.state_dict().items())
    assert own.keys() == adapters(with_them).keys()


def test_adapters_are_drawn_from_the_seed_alone(tiny_gpt2):
    config = config_of(tiny_gpt2, peft="lora")
    one, again, other = (adapters(TimeLLM_Enhanced.Model(config.replace(seed=seed))) for seed in (3, 3, 4))
    drawn = [name for name in one if "lora_A" in name]
    assert drawn and all(torch.equal(one[n], again[n]) and not torch.equal(one[n], other[n]) for n in drawn)
    assert all(not weight.any() for name, weight in one.items() if "lora_B" in name)


def test_only_the_adapters_own_dropout_is_on_in_training(tiny_gpt2):
    """The tiny GPT-2 has dropout in its config, which a frozen LLM does without."""
    model = shaken(model_of(tiny_gpt2, lora_dropout=0.5))
    model.train()
    on = {name for name, part in model.llm_model.named_modules() if part.training}
    assert on and all("lora_dropout" in name for name in on)
    assert not torch.equal(state_of(model).prediction, state_of(model).prediction)
    model.eval()
    assert not any(part.training for part in model.modules())
    assert torch.equal(state_of(model).prediction, state_of(model).prediction)


def test_adapters_stay_in_float32_beside_a_half_precision_llm(tiny_llama):
    model = model_of(tiny_llama, mixed_precision="bf16")
    assert {weight.dtype for weight in adapters(model).values()} == {torch.float32}
    assert model.llm_model.get_input_embeddings().weight.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(shaken(model))
    assert all(bool(found[name].any()) for name in adapters(model))


def test_an_llm_that_has_adapters_is_not_taken_for_a_fresh_one(tiny_llama):
    config = config_of(tiny_llama, peft="lora")
    llm = load_llm(config.llm)
    TimeLLM_Enhanced.Model(config, llm=llm)
    with pytest.raises(ValueError, match="expected LlamaModel as it was loaded, found adapters"):
        TimeLLM_Enhanced.Model(config, llm=llm)


def test_random_frozen_layers_take_adapters_too(tiny_llama):
    """A study's control: what is learned without what the LLM has learned."""
    model = shaken(model_of(tiny_llama, llm_ablation="random"))
    assert gradients(model).keys() >= adapters(model).keys() and adapters(model)


# Checkpoints.


def test_a_state_dict_holds_the_adapters_and_nothing_else_of_the_llm(folder):
    model = shaken(model_of(folder, **BOTH))
    state = model.state_dict()
    assert {name for name in state if name.startswith("llm_model.")} == adapters(model).keys()
    other = model_of(folder, **BOTH, seed=1)
    other.load_state_dict(state)
    assert torch.equal(forecast(other), forecast(model))
    whole = {f"llm_model.{n}": p for n, p in model.llm_model.state_dict().items()} | dict(state)
    fresh = model_of(folder, **BOTH, seed=2)
    fresh.load_state_dict(whole)  # a checkpoint that carries the LLM: its frozen weights are passed over
    assert torch.equal(forecast(fresh), forecast(model))


def test_adapters_that_a_checkpoint_lacks_are_missed_and_those_too_many_refused(tiny_llama):
    adapted, plain = model_of(tiny_llama), model_of(tiny_llama, peft="none")
    with pytest.raises(RuntimeError, match=r"Missing.*lora_A"):
        adapted.load_state_dict(plain.state_dict())
    with pytest.raises(RuntimeError, match=r"Unexpected.*lora_A"):
        plain.load_state_dict(adapted.state_dict())


def test_weights_without_adapters_start_a_run_with_them(tiny_llama, caplog):
    plain, adapted = model_of(tiny_llama, peft="none", seed=9), model_of(tiny_llama)
    adapted.load_state_dict(dict(adapted.state(plain.state_dict())))
    assert "have no adapters" in caplog.text
    torch.testing.assert_close(forecast(adapted), forecast(plain), rtol=1e-4, atol=1e-5)  # fused without
    state = shaken(adapted).state_dict()
    assert adapted.state(state) is state
    assert plain.state(state) is state


# Settings.


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"peft": "lora", "llm_ablation": "none"}, "leaves no layers to adapt"),
        ({"peft": "lora", "llm_ablation": "attention"}, "leaves no layers to adapt"),
        ({"peft": "lora", "load_in_4bit": True}, "adapters on 4-bit weights"),
        ({"peft": "lora", "lora_rank": 0}, "--lora_rank: expected 1 or more"),
        ({"peft": "lora", "lora_alpha": 0}, "--lora_alpha: expected 1 or more"),
        ({"peft": "lora", "lora_dropout": 1.0}, "--lora_dropout: expected a number from 0 to below 1"),
        ({"peft": "lora", "lora_targets": ("",)}, "--lora_targets: expected names"),
        ({"peft": "lora", "lora_targets": ("all-linear", "q_proj")}, "expected all-linear alone"),
        ({"peft": "qlora"}, "--peft: expected none or lora"),
    ],
)
def test_settings_that_make_no_sense_are_refused(flags, said):
    with pytest.raises(ConfigError, match=said):
        Config.from_flat(flags)


def test_adapters_are_part_of_what_a_run_is_and_of_what_it_says(tiny_llama):
    plain, adapted = Config(), Config.from_flat({"peft": "lora"})
    assert plain.training_hash() != adapted.training_hash()
    assert adapted.training_hash() != adapted.replace(lora_rank=4).training_hash()
    assert "_lora_" in adapted.run_name(model="TimeLLM", llm_name="GPT2")
    model = model_of(tiny_llama, lora_targets=ALL)
    count = sum(weight.numel() for weight in adapters(model).values())
    assert f"({count / 1e6:.2f} M of them in adapters)" in adapters_text(model)
    assert adapters_text(model_of(tiny_llama, peft="none")) == ""
    idle = unread_flags(Config.from_flat({"lora_rank": 4}), model)
    assert "--lora_rank (without --peft lora)" in idle
