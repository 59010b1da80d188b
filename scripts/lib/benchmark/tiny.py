"""A Llama of random weights with a tokenizer, written to disk; a tiny one unless a size is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

from layers.llm.files import quiet_transformers

LAYERS = (2, 3)
"""Of the short and of the long LLM."""
SETTINGS = {
    "seq_len": 96,
    "pred_len": 24,
    "d_model": 16,
    "d_ff": 16,
    "n_heads": 2,
    "num_tokens": 50,
    "d_repr": 16,
    "memory_size": 200,
}


def write_llm(
    folder: Path,
    *,
    hidden: int = 32,
    layers: int = max(LAYERS),
    vocabulary: int = 300,
    dtype: torch.dtype = torch.float32,
    **sizes: Any,
) -> Path:
    """The folder of a Llama of this size, its weights drawn at random and kept in ``dtype``.

    ``sizes`` are others by the names of its config.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["Range 0.123 to 4.567, median 8.9, rising, strongest lags 24"], trainer)
    usual = {
        "intermediate_size": 2 * hidden, "num_attention_heads": max(4, hidden // 64),
        "num_key_value_heads": 2, "max_position_embeddings": 2048, "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip
    settings = LlamaConfig(
        **{"vocab_size": vocabulary, "hidden_size": hidden, "num_hidden_layers": layers, **usual, **sizes}
    )
    with quiet_transformers(), torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaModel(settings).to(dtype).save_pretrained(folder)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(folder)
    return folder
