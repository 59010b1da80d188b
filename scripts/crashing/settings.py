"""What `scripts.crash_test` runs: a series, a tiny language model, and settings that differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModel, GPT2Config, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

ROWS = 120
SETTINGS: dict[str, dict[str, Any]] = {
    "tapr_gram": {"use_tapr": True, "use_gram": True, "eval_steps": 4, "save_steps": 4},
    "workers": {"num_workers": 2, "lradj": "TST", "input_dropout": 0.1},
    "accumulation": {"gradient_accumulation_steps": 2, "lr_warmup_steps": 2, "use_gram": True},
    "single": {"channel_sampling": "single", "max_steps": 26, "lradj": "type1", "use_tapr": True},
    "patience": {"learning_rate": 1e-9, "eval_steps": 2, "patience": 6, "save_steps": 3, "lradj": "constant"},
    "raw_key": {"use_gram": True, "retrieval_key": "raw", "retrieval_fusion": "both", "lradj": "type3"},
    "two_processes": {"processes": 2, "batch_size": 2, "use_tapr": True, "use_gram": True, "eval_steps": 3},
    "two_accumulating": {"processes": 2, "batch_size": 2, "gradient_accumulation_steps": 2, "num_workers": 2},
}
"""By name; what is not given comes from `common_settings`."""


def common_settings(folder: Path, llm: str) -> dict[str, Any]:
    """The settings that all runs share; writes the series, and with ``llm`` tiny the model, to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "data": "custom",
        "root_path": str(folder),
        "data_path": _write_series(folder / "waves.csv").name,
        "seq_len": 32,
        "label_len": 0,
        "pred_len": 8,
        "llm_layers": 1,
        "d_model": 16,
        "d_ff": 16,
        "n_heads": 2,
        "num_tokens": 20,
        "d_repr": 16,
        "memory_size": 60,
        "batch_size": 4,
        "eval_batch_size": 4,
        "train_epochs": 2,
        "aux_warmup_steps": 4,
        "log_steps": 1,
        "eval_steps": 5,
        "save_steps": 3,
        "save_total_limit": 2,
        "dropout": 0.2,
        "cpu": True,
        "processes": 1,
    }
    if llm == "tiny":
        return {**settings, "llm_model_path": str(_write_llm(folder / "tiny-gpt2"))}
    return {**settings, "llm_model": llm, "num_tokens": 10}


def _write_series(path: Path) -> Path:
    """Hourly rows of a daily cycle with noise, columns a and OT: 45 training windows."""
    time = np.arange(ROWS)
    noise = np.random.default_rng(0).normal(0, 0.2, (ROWS, 2))
    waves = np.stack([np.sin(time * np.pi / 12), np.cos(time * np.pi / 12) + time * 0.005], axis=1)
    frame = pd.DataFrame(waves + noise, columns=["a", "OT"])
    frame.insert(0, "date", pd.date_range("2020-01-01", periods=ROWS, freq="h").astype(str))
    frame.to_csv(path, index=False)
    return path


def _write_llm(folder: Path) -> Path:
    """A GPT-2 of one layer and width 32 with drawn weights, and a tokenizer that knows bytes alone."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        ["0123456789"],
        trainers.BpeTrainer(
            vocab_size=300, special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False
        ),
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>", pad_token="<s>"
    ).save_pretrained(folder)
    disable_progress_bar()
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=300, n_positions=1024, n_embd=32, n_layer=1, n_head=4, bos_token_id=0, eos_token_id=0
    )
    AutoModel.from_config(config).save_pretrained(folder)
    return folder
