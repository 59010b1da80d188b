"""LLMs in shards, of which few layers are kept; Gemma's peculiarities; LLMs spread over devices."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator, dispatch_model
from torch import nn
from transformers import (
    AutoModel,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    PreTrainedConfig,
    Qwen3Config,
)

from layers.llm.load import load_llm, placement
from tests.conftest import GROUPED_HEADS
from tests.layers.test_llm import at, write_model
from tests.models.test_fast_paths import assert_alike, gradients, plainly
from tests.models.test_timellm_enhanced import BOTH, forecast, model_of, state_of
from tests.processes import python
from utils.config import Config, ConfigError
from utils.training import experiment

LAYERS, KEPT, WINDOW = 6, 2, 16
SIZES: dict[str, Any] = {**GROUPED_HEADS, "num_hidden_layers": LAYERS, "head_dim": 8}
GEMMA: dict[str, Any] = {**SIZES, "sliding_window": WINDOW, "query_pre_attn_scalar": 8}
KINDS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "qwen3": Qwen3Config(**SIZES),
    "gemma2": Gemma2Config(**GEMMA, attn_logit_softcapping=2.0),
    "gemma3": Gemma3TextConfig(**GEMMA, layer_types=["sliding_attention", "full_attention"] * (LAYERS // 2)),
}


@pytest.fixture(scope="module", params=KINDS)
def sharded(request, tmp_path_factory, tiny_llama) -> Path:
    """Folder of a model of six layers in shards of at most 30 kB."""
    folder: Path = tmp_path_factory.mktemp("sharded") / request.param
    with torch.random.fork_rng():
        torch.manual_seed(0)
        write_model(KINDS[request.param], folder, tokenizer_from=tiny_llama, max_shard_size="30KB")
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > LAYERS
    return folder


# What is read.


def test_the_first_layers_of_a_sharded_model_are_those_of_the_whole(sharded):
    whole, llm = AutoModel.from_pretrained(sharded), load_llm(at(sharded, layers=KEPT)).model
    own, all_of_it = llm.state_dict(), whole.state_dict()
    assert all(torch.equal(weight, all_of_it[name]) for name, weight in own.items())
    assert {n for n in all_of_it if n not in own} == {
        n for n in all_of_it if n.startswith("layers.") and int(n.split(".")[1]) >= KEPT
    }


SECOND_PROCESS = """
import json, sys
import torch
from layers.llm.load import load_llm
from utils.config import LLMConfig
from utils.process_memory import STATUS, peak_bytes
warm, folder, layers, dtype = sys.argv[1:]
dtype = getattr(torch, dtype)
load_llm(LLMConfig(llm_model_path=warm, llm_layers=1), dtype=dtype)  # what loading imports is there now

def own():
    line = next(text for text in STATUS.read_text().splitlines() if text.startswith("RssAnon"))
    return int(line.split()[1]) * 1024

before, own_before = peak_bytes(), own()
llm = load_llm(LLMConfig(llm_model_path=folder, llm_layers=int(layers)), dtype=dtype)
weights = list(llm.model.parameters())
loaded = peak_bytes() - before
total = sum(float(weight.sum()) for weight in weights)  # every weight is read now
held = sum(weight.numel() * weight.element_size() for weight in weights)
print(json.dumps({"held": held, "loaded": loaded, "read": peak_bytes() - before, "own": own() - own_before}))
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory, tiny_llama) -> Path:
    """Folder of a Llama of 16 layers in float32, in shards of at most 20 MB, 270 MB in all."""
    folder = tmp_path_factory.mktemp("large")
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 16, "head_dim": 64}
    config = LlamaConfig(**{**GROUPED_HEADS, **sizes, "num_attention_heads": 8, "num_key_value_heads": 8})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        write_model(config, folder, tokenizer_from=tiny_llama, max_shard_size="20MB")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("kept", "dtype"), [(4, "float32"), (4, "bfloat16")])
def test_only_the_layers_that_are_kept_take_memory(large, kept, dtype, tiny_llama):
    """Whole shards in memory, or a second copy beside the first, would be most of the model.

    Weights of the type they have in the files stay mapped: pages that all processes of a machine share.
    Others are converted, tensor by tensor.
    """
    files = sum(file.stat().st_size for file in large.glob("*.safetensors"))
    found = json.loads(python("-c", SECOND_PROCESS, tiny_llama, large, kept, dtype).stdout)
    print(f"\n{files / 1e6:.0f} MB in files; " + ", ".join(f"{n} {v / 1e6:.1f}" for n, v in found.items()))
    in_files = found["held"] * (2 if dtype == "bfloat16" else 1)
    assert files > 2.5e8 and in_files < files * (kept + 1) / 16
    if dtype == "float32":
        assert found["loaded"] < 15e6 and found["own"] < 15e6
        assert 0.9 * in_files < found["read"] < 1.1 * in_files + 15e6
    else:
        assert found["held"] < found["own"] < 1.1 * found["held"] + 15e6
        assert found["read"] < 1.1 * (in_files + found["held"]) + 15e6


# The fast pass through each of them.


@pytest.mark.parametrize("switches", [{}, BOTH], ids=["baseline", "enhanced"])
def test_every_family_has_the_plain_forecasts_and_gradients(sharded, switches):
    """The sequence is longer than the sliding window, and the scores reach the soft cap."""
    settings = {**switches, "peft": "lora"}
    fast, plain = model_of(sharded, **settings), plainly(model_of(sharded, **settings))
    assert fast._pass.kind == "causal"
    torch.testing.assert_close(state_of(fast).prediction, state_of(plain).prediction, rtol=1e-4, atol=1e-5)
    found, wanted = gradients(fast), gradients(plain)
    assert found.keys() == {n for n, p in fast.named_parameters() if p.requires_grad}
    assert_alike(found, wanted)
    assert fast.prompt.n_constant > WINDOW


def test_soft_caps_are_computed_and_not_passed_over(tmp_path, tiny_llama):
    """The fused attention knows none: a Gemma 2 without its caps is another model."""
    config = KINDS["gemma2"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        write_model(config, tmp_path, tokenizer_from=tiny_llama)
    capped = load_llm(at(tmp_path, layers=KEPT)).model
    assert capped.config._attn_implementation == "eager"
    assert not torch.equal(*(tokens_through(capped, cap) for cap in (2.0, None)))


def tokens_through(llm: Any, cap: float | None) -> torch.Tensor:
    for layer in llm.layers:
        layer.self_attn.attn_logit_softcapping = cap
    ids = torch.arange(40)[None]
    with torch.no_grad():
        return llm(input_ids=ids).last_hidden_state


def test_source_tokens_are_mixtures_of_words_as_the_layers_see_them(sharded):
    """Gemma multiplies its embeddings by the root of its width: mixtures must be as large as its words."""
    model = model_of(sharded)
    words = model.llm_model.get_input_embeddings()(torch.arange(300))
    wanted = model.mapping_layer.weight @ words + model.mapping_layer.bias[:, None]
    torch.testing.assert_close(model.source_tokens(), wanted, rtol=1e-5, atol=1e-5)
    prototypes = model_of(sharded, source_tokens="prototypes")
    torch.testing.assert_close(prototypes.source_tokens(), wanted.detach(), rtol=1e-5, atol=1e-5)


# --llm_device_map


@pytest.mark.parametrize("asked", ["cpu", "auto", "balanced", "sequential"])
@pytest.mark.parametrize("peft", ["none", "lora"])
def test_a_spread_llm_forecasts_and_learns_as_one_on_one_device(tiny_llama, asked, peft):
    """As far as one device can tell: the map and accelerate's hooks are those of several."""
    spread, usual = (model_of(tiny_llama, **BOTH, peft=peft, llm_device_map=m) for m in (asked, None))
    torch.testing.assert_close(forecast(spread), forecast(usual), rtol=1e-4, atol=1e-5)
    found, wanted = gradients(spread), gradients(usual)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)  # with hooks no layer is fused
    assert placement(spread.llm_model) == "the whole LLM on cpu"
    assert hasattr(spread.llm_model, "_hf_hook") == (asked == "cpu")


def test_a_spread_llm_stays_where_its_map_has_put_it(tiny_llama):
    """A model that moves takes its modules along: layers on several devices would land on one."""
    spread, usual = (model_of(tiny_llama, llm_device_map=m) for m in ("auto", None))
    for model in (spread, usual):
        model.to("meta")
    assert {p.device.type for p in usual.parameters()} == {"meta"}
    assert {p.device.type for p in spread.llm_model.parameters()} == {"cpu"}
    own = {n: p.device.type for n, p in spread.named_parameters() if not n.startswith("llm_model.")}
    assert set(own.values()) == {"meta"}


def test_accelerate_leaves_a_model_alone_whose_map_has_several_parts(tiny_llama):
    """Its own check before wrapping: a model that is dispatched is not moved."""
    model, usual = model_of(tiny_llama), model_of(tiny_llama)
    parts = [*(f"layers.{i}" for i in range(KEPT)), "embed_tokens", "norm", "rotary_emb"]
    dispatch_model(model.llm_model, dict.fromkeys(parts, "cpu"), force_hooks=True)
    accelerator = Accelerator(cpu=True)
    assert accelerator.verify_device_map(model) and not accelerator.verify_device_map(usual)
    found, wanted = gradients(accelerator.prepare_model(model)), gradients(usual)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)  # with hooks no layer is fused


def test_several_processes_have_each_their_own_llm():
    """A map of all GPUs in each of several processes would put them all on the first."""
    config = Config.from_flat({"llm_device_map": "auto"})
    accelerator: Any = SimpleNamespace(num_processes=2)
    with pytest.raises(ValueError, match="--llm_device_map auto: expected one process.*found 2"):
        experiment._model(config, builders=SimpleNamespace(), accelerator=accelerator)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"llm_device_map": "auto", "cpu": True}, "--llm_device_map auto: it spreads the LLM over GPUs"),
        ({"llm_device_map": "cpu", "llm_ablation": "random"}, "are drawn onto one device"),
        (
            {"llm_device_map": "everywhere"},
            "--llm_device_map: expected auto or balanced or sequential or cpu",
        ),
    ],
)
def test_a_map_that_can_not_be_is_refused(flags, said):
    with pytest.raises(ConfigError, match=said):
        Config.from_flat(flags)


def test_a_map_is_no_part_of_what_is_trained():
    spread, usual = (Config.from_flat({"llm_device_map": m}) for m in ("auto", None))
    assert spread.training_hash() == usual.training_hash()


def test_word_embeddings_without_a_place_are_refused(tiny_llama, monkeypatch):
    """Those that accelerate leaves in main memory until they are needed have no weights to map from."""
    real = AutoModel.from_pretrained

    def offloaded(*args: Any, **kwargs: Any) -> Any:
        model, report = real(*args, **kwargs)
        words: nn.Embedding = model.get_input_embeddings()
        words.to("meta")
        return model, report

    monkeypatch.setattr(AutoModel, "from_pretrained", offloaded)
    with pytest.raises(ValueError, match="--llm_device_map: expected room for the word embeddings"):
        load_llm(at(tiny_llama, llm_device_map="auto"))
