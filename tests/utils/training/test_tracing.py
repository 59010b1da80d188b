"""The memory formula beside a traced training step, for LLMs of real sizes that are not on this machine."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModel, GPT2Config, LlamaConfig, PreTrainedConfig

from layers.llm import check
from layers.llm.load import FrozenLLM
from layers.llm.way import Way
from layers.prompt import PromptBuilder
from layers.retrieval import futures
from layers.retrieval.memory import COLUMNS
from layers.solved_start import SolvedStart
from models.registry import MODELS, model_name
from utils.cli import parse_config
from utils.config import Config
from utils.reporting.peak_memory import sizes_of, training_memory
from utils.training.tracing import traced_peaks
from utils.types import LLMIdentity

Kind = Callable[..., PreTrainedConfig]
PROMPT = (74, 46)
"""Tokens of ETTh1's prompts with SmolLM2's tokenizer: constant and rest."""
VARIABLES = 7
BOTH = ["--use_tapr", "--use_gram"]
SMOLLM2: dict[str, Any] = {
    "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3,
    "vocab_size": 49152,
}  # fmt: skip
HALF_AGAIN = ["--batch_size", "4", "--mixed_precision", "bf16", "--gradient_checkpointing"]
CASES: list[tuple[str, Kind, dict[str, Any], list[str]]] = [
    ("6GB", LlamaConfig, SMOLLM2, ["--preset", "6GB", *BOTH]),
    ("15GB", LlamaConfig, SMOLLM2, ["--preset", "15GB", *BOTH]),
    ("document", GPT2Config, {}, ["--preset", "document"]),
    ("6GB-gpt2", GPT2Config, {}, ["--preset", "6GB", *BOTH]),
    # the defaults of these classes are the sizes of GPT-2 and of Llama-7B
    ("7B", LlamaConfig, {}, ["--preset", "15GB", *BOTH, "--llm_layers", "6"]),
    ("7B-again", LlamaConfig, {}, ["--llm_layers", "6", *HALF_AGAIN]),
]


def of_sizes(kind: Kind, sizes: dict[str, Any], words: list[str]) -> tuple[Config, Any]:
    """A run's settings, and its model without memory for any weight."""
    config = parse_config(words).replace(enc_in=VARIABLES, season=24, retrieval_key="hybrid")
    layers, half = config.llm.llm_layers, config.training.mixed_precision != "no"
    settings = kind(**sizes, num_hidden_layers=layers, use_cache=False)
    with torch.device("meta"):
        llm = AutoModel.from_config(settings, dtype=torch.bfloat16 if half else torch.float32)
        words_of: Any = llm.get_input_embeddings()
        width, vocabulary = words_of.embedding_dim, words_of.num_embeddings
        identity = LLMIdentity("sizes", type(llm).__name__, layers, width, vocabulary, "")
        tokenizer: Any = SimpleNamespace(pad_token_id=0)
        frozen = FrozenLLM(llm.requires_grad_(False).eval(), tokenizer, identity)
        build: Callable[..., Any] = MODELS[model_name(config)]
        model = build(config, llm=frozen)
    if config.gram.use_gram:
        for name in COLUMNS:
            rows = getattr(model.gram.retriever, name)
            setattr(model.gram.retriever, name, rows.new_empty((5000, *rows.shape[1:])))
    if config.begins_solved and config.gram.use_gram:
        held = model.start.retrieved
        held._hold(
            *(getattr(held, n).new_zeros((5000, *getattr(held, n).shape[1:])) for n in futures.COLUMNS)
        )
    return config, model


@pytest.mark.parametrize(("kind", "sizes", "words"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_the_formula_is_within_15_percent_of_a_traced_step(kind, sizes, words, monkeypatch):
    """GPT-2's was 30% and more above, that of layers computed again 15%; none was fitted to Llama-7B."""
    monkeypatch.setattr(PromptBuilder, "_constant_tokens", lambda self: [5] * PROMPT[0])
    monkeypatch.setattr(PromptBuilder, "width", sum(PROMPT))
    monkeypatch.setattr(check, "_decided", lambda *_, **__: Way("causal", attention="sdpa"))
    monkeypatch.setattr("models.TimeLLM.word_scale", lambda llm: 1.0)
    on_cpu = torch.utils._device.set_device("cpu")(SolvedStart.__init__)  # it counts its rows
    monkeypatch.setattr(SolvedStart, "__init__", on_cpu)
    config, model = of_sizes(kind, sizes, words)
    expected = training_memory(sizes_of(model, config=config, forecast=VARIABLES, on_gpu=True)).total
    traced = traced_peaks(config, model, variables=VARIABLES, prompt=PROMPT).training
    print(f"\nMB: {expected / 1e6:.0f} expected, {traced / 1e6:.0f} traced")
    assert expected == pytest.approx(traced, rel=0.15)
