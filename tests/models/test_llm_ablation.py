"""--llm_ablation: what stands in the place of the LLM's layers, and that nothing else moves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from layers.llm.ablation import TokenAttention
from models.TimeLLM import Model as Baseline
from models.TimeLLM_Enhanced import Model as Enhanced
from tests.models import test_timellm_enhanced as tests_enhanced
from tests.models.test_timellm import SIZES, H, N, forecast, model_of, windows
from tests.pairwise import each_pair
from tests.processes import python
from utils.config import Config, ConfigError
from utils.reporting.unused_flags import unread_flags
from utils.training.objective import Objective
from utils.training.optim import trained_parameters

KINDS = ["pretrained", "random", "attention", "none"]


def enhanced(folder: Path, **settings: Any) -> Enhanced:
    torch.manual_seed(0)
    flags = {"use_tapr": True, "use_gram": True, "memory_size": 8, "d_repr": 8, "top_k": 2}
    return Enhanced(Config.from_flat({**SIZES, "llm_model_path": str(folder), **flags, **settings}))


def frozen_weights(model: Baseline) -> dict[str, torch.Tensor]:
    return dict(model.llm_model.state_dict())


@pytest.mark.parametrize("kind", ["random", "attention", "none"])
def test_the_parts_that_all_have_begin_alike(folder: Path, kind: str) -> None:
    """Paired seeds would not be pairs if what is drawn for one kind moved the weights behind it."""
    plain, other = enhanced(folder), enhanced(folder, llm_ablation=kind)
    drawn_next = torch.rand(3)
    wanted = {n: p for n, p in plain.named_parameters() if not n.startswith("llm_")}
    found = {n: p for n, p in other.named_parameters() if not n.startswith("llm_")}
    same = {n for n in wanted if torch.equal(wanted[n], found[n])}
    if kind == "random":  # its words are others, and the token is as long as they are
        same |= {n for n in wanted if "confidence_embed" in n}
    assert wanted.keys() == found.keys() and same == wanted.keys()
    enhanced(folder)
    assert torch.equal(torch.rand(3), drawn_next)


def test_pretrained_is_the_default_and_its_forecast_is_that_of_its_own_layers(folder: Path) -> None:
    """The flag's default must not touch what was there before it."""
    model, x = model_of(folder).eval(), windows()
    asked = model_of(folder, llm_ablation="pretrained").eval()
    assert model.llm_attention is None and set(model.state_dict()) == set(asked.state_dict())
    assert torch.equal(forecast(model, x), forecast(asked, x))


def test_each_kind_forecasts_otherwise(folder: Path) -> None:
    x = windows()
    found = [forecast(model_of(folder, llm_ablation=kind).eval(), x) for kind in KINDS]
    assert all(f.shape == (len(x), H, N) and f.isfinite().all() for f in found)
    for i, one in enumerate(found):
        assert all(not torch.allclose(one, other) for other in found[:i])


def test_random_weights_are_all_drawn_frozen_and_of_the_seed_alone(folder: Path) -> None:
    plain, one = model_of(folder), model_of(folder, llm_ablation="random")
    again = model_of(folder, llm_ablation="random")
    matrices = {n: w for n, w in frozen_weights(one).items() if w.dim() > 1}
    assert matrices and all(not torch.equal(w, frozen_weights(plain)[n]) for n, w in matrices.items())
    assert all(torch.equal(w, frozen_weights(again)[n]) for n, w in frozen_weights(one).items())
    assert {n: w.shape for n, w in frozen_weights(plain).items()} == {
        n: w.shape for n, w in frozen_weights(one).items()
    }
    assert not one.llm_model.training and not any(p.requires_grad for p in one.llm_model.parameters())
    flags = {**SIZES, "llm_model_path": str(folder), "llm_ablation": "random"}
    other = Baseline(Config.from_flat({**flags, "seed": 7})).llm_identity
    assert one.llm_identity == again.llm_identity and one.llm_identity is not None and other is not None
    assert other.content_hash != one.llm_identity.content_hash


@pytest.mark.slow
def test_random_weights_are_the_same_in_another_process(tiny_llama: Path) -> None:
    """A resumed run, and every process of one, must meet the same LLM."""
    own = model_of(tiny_llama, llm_ablation="random").llm_identity
    flags = {**SIZES, "llm_model_path": str(tiny_llama), "llm_ablation": "random"}
    code = (
        "import torch; from models.TimeLLM import Model; from utils.config import Config; torch.rand(5);"
        f"print(Model(Config.from_flat({flags!r})).llm_identity.content_hash)"
    )
    done = python("-c", code)
    assert own is not None and done.stdout.split()[-1] == own.content_hash, done.stderr


@each_pair(modules=[{}, tests_enhanced.BOTH], kind=KINDS, order=["document", "prompt_first"])
def test_every_trained_parameter_gets_a_gradient(
    tiny_llama: Path, modules: dict[str, bool], kind: str, order: str
) -> None:
    """DDP waits for each of them, and a layer that stays as it was drawn is not a trained one."""
    model = tests_enhanced.model_of(tiny_llama, **modules, llm_ablation=kind, token_order=order)
    state = tests_enhanced.state_of(model)
    Objective(model.config)(state, tests_enhanced.BATCH, step=5).total.backward()
    assert not {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None}
    attention = {n: p.grad for n, p in model.named_parameters() if n.startswith("llm_attention.")}
    assert bool(attention) == (kind == "attention")
    assert all(grad is not None and grad.abs().sum() > 0 for grad in attention.values())


def test_the_attention_layer_is_trained_and_travels_with_the_state(folder: Path) -> None:
    model, x = model_of(folder, llm_ablation="attention"), windows()
    trained = {id(p) for p in trained_parameters(model)}
    assert model.llm_attention is not None
    assert {id(p) for p in model.llm_attention.parameters()} <= trained
    with torch.no_grad():
        for weight in model.llm_attention.parameters():
            weight.add_(0.1)
    fresh = model_of(folder, llm_ablation="attention", seed=3)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(forecast(fresh.eval(), x), forecast(model.eval(), x))


def test_the_attention_layer_is_attention_by_its_formula() -> None:
    """Against plain float64 operations, a masked token included."""
    torch.manual_seed(0)
    layer = TokenAttention(12).double()
    tokens, mask = torch.randn(1, 5, 12, dtype=torch.float64), torch.tensor([[1, 0, 1, 1, 1]])
    normed = nn.functional.layer_norm(tokens, (12,), layer.norm.weight, layer.norm.bias)[0]
    query, key, value = (normed @ layer.attention.in_proj_weight.T + layer.attention.in_proj_bias).split(
        12, 1
    )
    heads, width = layer.attention.num_heads, 12 // layer.attention.num_heads
    out = []
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        score = (query[:, part] @ key[:, part].T / width**0.5).masked_fill(mask == 0, -torch.inf)
        out.append(score.softmax(1) @ value[:, part])
    wanted = tokens[0] + torch.cat(out, 1) @ layer.attention.out_proj.weight.T + layer.attention.out_proj.bias
    torch.testing.assert_close(layer(tokens, mask)[0], wanted)


def test_padding_of_a_neighbours_prompt_moves_nothing(folder: Path) -> None:
    for kind in ("attention", "none", "random"):
        model, x = model_of(folder, llm_ablation=kind).eval(), windows()
        alone = torch.cat([forecast(model, x[i : i + 1]) for i in range(len(x))])
        torch.testing.assert_close(forecast(model, x), alone, rtol=1e-4, atol=1e-4)


def test_none_hands_the_reprogrammed_patches_to_the_head(tiny_gpt2: Path) -> None:
    model = model_of(tiny_gpt2, llm_ablation="none").eval()
    series = model.normalise(windows())
    patches = model.embed(series)
    with torch.no_grad():
        wanted = model.reprogram(patches)[..., : model.config.backbone.d_ff]
        assert torch.equal(model.decode([], series, patches), wanted)
    model.use_reference_forward()
    with torch.no_grad():
        assert torch.equal(model.decode([], series, patches), wanted)


def test_what_is_not_read_is_told() -> None:
    config = Config.from_flat({"llm_ablation": "none", "llm_layers": 3, "prompt_digits": 1})
    told = " ".join(unread_flags(config, Baseline))
    assert "--llm_layers" in told and "--prompt_digits" in told
    with pytest.raises(ConfigError, match="load_in_4bit"):
        Config.from_flat({"llm_ablation": "random", "load_in_4bit": True})
    assert Config().training_hash() != Config().replace(llm_ablation="none").training_hash()
