"""Time-LLM against a plain float64 restatement of the published equations, at tiny sizes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer

from layers.llm.load import load_llm
from layers.prompt import window_statistics
from models.TimeLLM import Model
from utils.config import Config
from utils.training.optim import build_optimizer, trained_parameters
from utils.types import ForecastState

L, H, N = 48, 12, 2
SIZES: dict[str, Any] = {
    "data": "custom",
    "seq_len": L,
    "pred_len": H,
    "label_len": 0,
    "llm_layers": 2,
    "d_model": 8,
    "d_ff": 16,
    "n_heads": 2,
    "patch_len": 8,
    "stride": 4,
    "num_tokens": 20,
    "dropout": 0.0,
}


def model_of(folder: Path, *, seed: int = 0, **settings: Any) -> Model:
    torch.manual_seed(seed)
    return Model(Config.from_flat({**SIZES, "llm_model_path": str(folder), **settings}))


def windows(count: int = 3, *, length: int = L, variables: int = N, seed: int = 0) -> Tensor:
    """Random walks [B, L, N] of unlike size, so that their prompts are of unlike length."""
    generator = torch.Generator().manual_seed(seed)
    walks = torch.randn(count, length, variables, generator=generator).cumsum(dim=1)
    jumps = torch.zeros_like(walks)
    jumps[::2, length // 2, :] = 60.0  # a spike: its range needs more digits
    return walks + jumps


def forecast(model: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
    with torch.no_grad():
        return model(*args, **kwargs)


# The published equations.


def restated(model: Model, folder: Path, x: Tensor) -> Tensor:
    """Forecast [B, H, N], one series after the other, by plain operations in float64.

    The LLM is read from disk anew and gets each prompt alone: no padding, mask or positions.
    """
    b = model.config.backbone
    w = {name: p.detach().double() for name, p in model.named_parameters()}
    settings = AutoConfig.from_pretrained(folder)
    settings.num_hidden_layers = model.config.llm.llm_layers
    llm = AutoModel.from_pretrained(folder, config=settings, attn_implementation="eager").double().eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    embedding = llm.get_input_embeddings().weight.detach()
    source = w["mapping_layer.weight"] @ embedding + w["mapping_layer.bias"][:, None]  # [C, d_llm]
    out = torch.zeros(len(x), H, x.shape[2], dtype=torch.float64)
    for window in range(len(x)):
        for variable in range(x.shape[2]):
            series = x[window, :, variable].double()
            mean = series.mean()
            std = ((series - mean).square().mean() + 1e-5).sqrt()
            normal = (series - mean) / std
            padded = torch.cat([normal, normal[-1:].repeat(b.stride)]) if b.padding_patch == "end" else normal
            patches = torch.stack(
                [padded[i : i + b.patch_len] for i in range(0, len(padded) - b.patch_len + 1, b.stride)]
            )
            kernel = w["patch_embedding.value_embedding.weight"]  # [D, patch_len, 3]
            embedded = sum(patches.roll(1 - k, dims=0) @ kernel[:, :, k].T for k in range(3))

            def project(name: str, value: Any) -> Tensor:
                layer = f"reprogramming_layer.{name}_projection"
                return value @ w[f"{layer}.weight"].T + w[f"{layer}.bias"]

            query, key, value = project("query", embedded), project("key", source), project("value", source)
            heads = []
            for h in range(b.n_heads):
                part = slice(h * b.d_ff, (h + 1) * b.d_ff)
                score = (query[:, part] @ key[:, part].T / math.sqrt(b.d_ff)).exp()
                heads.append(score / score.sum(dim=1, keepdim=True) @ value[:, part])
            words = project("out", torch.cat(heads, dim=1))  # [P, d_llm]
            text = model.prompt.texts(window_statistics(normal[None].float()))[0]
            ids = tokenizer(text, return_tensors="pt")["input_ids"]
            tokens = torch.cat([embedding[ids[0]], words])[None]
            with torch.no_grad():
                states = llm(inputs_embeds=tokens).last_hidden_state[0, -len(words) :, : b.d_ff]  # [P, d_ff]
            flat = torch.stack([states[p, f] for f in range(b.d_ff) for p in range(len(words))])
            head = w["output_projection.linear.weight"] @ flat + w["output_projection.linear.bias"]
            out[window, :, variable] = head * std + mean
    return out


@pytest.mark.parametrize("padding", ["end", "none"])
def test_forecast_is_the_published_equations(folder: Path, padding: str) -> None:
    """Every step against its plain formula, and padding, masks and positions against having none."""
    model = model_of(folder, padding_patch=padding).eval()
    x = windows()
    mask = model.prompt.tokens(model.normalise(x).lookback)[1]
    assert mask.min() == 0  # some prompts are padded, so padding is part of what is tested
    reference = restated(model, folder, x)
    torch.testing.assert_close(forecast(model, x).double(), reference, rtol=1e-4, atol=1e-4)


# Shapes.


@pytest.mark.parametrize("shape", [(2, L - 1, N), (2, L + 1, N), (2, L), (L,), (1, 2, L, N)])
def test_wrong_window_shape_is_named(tiny_gpt2: Path, shape: tuple[int, ...]) -> None:
    """A lookback of another length reached the head as a size mismatch of two matrices."""
    with pytest.raises(ValueError) as caught:
        model_of(tiny_gpt2)(torch.zeros(shape))
    assert f"x_enc: expected [B, {L}, N], found {list(shape)}" in str(caught.value)


def test_head_wider_than_the_llm_is_refused(tiny_gpt2: Path) -> None:
    """Slicing 128 features out of 32 gives 32, and an error far away."""
    with pytest.raises(ValueError, match="--d_ff: expected at most the LLM's hidden size .32., found 33"):
        model_of(tiny_gpt2, d_ff=33)


# Independence.


def test_other_arguments_of_the_family_are_not_read(tiny_gpt2: Path) -> None:
    """The baseline takes start, series_id and target like the enhanced model, and ignores them."""
    model, x = model_of(tiny_gpt2).eval(), windows()
    plain = forecast(model, x)
    marks = torch.zeros(3, L, 4)
    full: Any = forecast(model, x, marks, x, marks, start=torch.zeros(3), target=x, return_state=True)
    assert isinstance(full, ForecastState)
    assert torch.equal(plain, full.prediction)
    assert full.trend is None
    assert full.retrieval is None


# The frozen LLM.


def test_frozen_llm_stays_in_eval_mode(tiny_gpt2: Path) -> None:
    """`model.train()` reaches every part, the frozen one included."""
    model = model_of(tiny_gpt2)
    for mode in (True, False, True):
        assert model.train(mode) is model
        assert model.patch_embedding.training is mode
        assert not any(module.training for module in model.llm_model.modules())
    assert any(isinstance(m, nn.Dropout) and m.p == 0.1 for m in model.llm_model.modules())


def test_llm_takes_no_gradient_and_no_optimizer_state(tiny_gpt2: Path) -> None:
    """Its gradients are most of the memory of a step, for weights that never move."""
    model = model_of(tiny_gpt2)
    before = {name: p.clone() for name, p in model.llm_model.named_parameters()}
    model(windows()).square().mean().backward()
    assert all(p.grad is None for p in model.llm_model.parameters())
    frozen = {id(p) for p in model.llm_model.parameters()}
    optimizer = build_optimizer(model, model.config.training)
    assert not frozen & {id(p) for group in optimizer.param_groups for p in group["params"]}
    optimizer.step()
    assert all(torch.equal(p, before[name]) for name, p in model.llm_model.named_parameters())


# Gradients and random state.


def test_every_parameter_learns(folder: Path) -> None:
    """A parameter without a gradient stops DistributedDataParallel at the second step."""
    model, x = model_of(folder), windows()
    optimizer = torch.optim.AdamW(trained_parameters(model), lr=1e-3)
    target = torch.randn(3, H, N, generator=torch.Generator().manual_seed(1))
    for step in range(5):
        optimizer.zero_grad()
        (model(x) - target).square().mean().backward()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, (step, name)
                assert parameter.grad.isfinite().all(), (step, name)
                # Adding one vector to all keys moves all scores of a query alike: no gradient.
                if name != "reprogramming_layer.key_projection.bias":
                    assert parameter.grad.abs().sum() > 0, (step, name)
        optimizer.step()


def test_loading_the_llm_draws_nothing(tiny_gpt2: Path) -> None:
    """Initial weights that depend on how the LLM was loaded do not reproduce."""
    first = model_of(tiny_gpt2)
    llm = load_llm(first.config.llm)
    torch.manual_seed(0)
    second = Model(first.config, llm=llm)
    for (name, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    other = model_of(tiny_gpt2, seed=1)
    assert not torch.equal(first.mapping_layer.weight, other.mapping_layer.weight)


# Building and loading.


def test_state_dict_has_the_documents_names_and_no_llm(tiny_gpt2: Path) -> None:
    """Checkpoints of gigabytes, of weights that everyone has."""
    names = {key.split(".")[0] for key in model_of(tiny_gpt2).state_dict()}
    assert names == {"patch_embedding", "mapping_layer", "reprogramming_layer", "output_projection"}


@pytest.mark.parametrize("strict", [True, False])
def test_checkpoint_with_the_llm_inside_loads_without_it(tiny_gpt2: Path, strict: bool) -> None:
    """Others' checkpoints hold the LLM; ours do not; both load, and the frozen LLM stays as it is."""
    saved, model, x = model_of(tiny_gpt2, seed=1), model_of(tiny_gpt2), windows()
    state = saved.state_dict()
    whole = {**state, **{f"llm_model.{k}": v + 1 for k, v in saved.llm_model.state_dict().items()}}
    keys = list(whole)
    result = model.load_state_dict(whole, strict=strict)
    assert not result.missing_keys
    assert not result.unexpected_keys
    assert list(whole) == keys  # the caller's own is left as it was
    torch.testing.assert_close(forecast(model.eval(), x), forecast(saved.eval(), x), rtol=0, atol=0)
    model_of(tiny_gpt2).load_state_dict(state, strict=strict)


def test_missing_and_stray_weights_are_still_errors(tiny_gpt2: Path) -> None:
    """Passing over the LLM must not pass over the rest."""
    model = model_of(tiny_gpt2)
    state = model.state_dict()
    with pytest.raises(RuntimeError, match="Missing key.*mapping_layer.weight"):
        model.load_state_dict({k: v for k, v in state.items() if k != "mapping_layer.weight"})
    with pytest.raises(RuntimeError, match="Unexpected key.*tapr.weight"):
        model.load_state_dict({**state, "tapr.weight": torch.zeros(1)})


def test_state_dict_inside_a_wrapper_has_no_llm_either(tiny_gpt2: Path) -> None:
    """DistributedDataParallel puts a prefix before every name."""
    wrapped = nn.ModuleDict({"module": model_of(tiny_gpt2)})
    state = wrapped.state_dict()
    assert state
    assert not any("llm_model" in key for key in state)
    wrapped.load_state_dict(state)


# Length.


def test_more_tokens_than_positions_are_refused(tiny_gpt2: Path) -> None:
    """Beyond its positions the LLM fails with an index error, on a GPU in an assertion far away."""
    settings: dict[str, Any] = {"patch_len": 1, "stride": 1, "d_model": 8}
    with pytest.raises(
        ValueError, match=r"--stride, --seq_len: expected at most 1024 tokens.* found 1\d{3}:"
    ):
        model_of(tiny_gpt2, seq_len=1100, **settings)
    x = windows(1, length=1100)
    wider = model_of(tiny_gpt2, seq_len=1100, **{**settings, "stride": 4})
    assert forecast(wider, x).isfinite().all()


def test_every_position_may_be_used(tiny_gpt2: Path) -> None:
    """One token too few wastes a position; leading tokens count too."""
    model, x = model_of(tiny_gpt2), windows(2)
    series = model.normalise(x)
    patches = model.embed(series)
    used = model.prompt.tokens(series.lookback)[0].shape[1] + patches.shape[1]
    lead = torch.zeros(len(patches), 1024 - used, 1).expand(-1, -1, model.llm_model.config.hidden_size)
    with torch.no_grad():
        assert model.decode([lead], series, patches).isfinite().all()
        with pytest.raises(ValueError, match="expected at most 1024 tokens.*found 1025"):
            model.decode([lead, lead[:, :1]], series, patches)
