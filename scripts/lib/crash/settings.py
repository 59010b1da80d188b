"""What `scripts.crash_test` runs: a series, a tiny language model, and settings that differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_provider.synthetic import make_series, with_gaps
from scripts.lib.benchmark.tiny import write_llm

ROWS = 120
"""Hourly: 45 training windows."""
SERIES = "series.csv"
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
    with_gaps(make_series(rows=ROWS, variables=2)).to_csv(folder / SERIES, index=False)
    settings = {
        "data": "custom",
        "root_path": str(folder),
        "data_path": SERIES,
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
        return {**settings, "llm_model_path": str(write_llm(folder / "tiny", layers=1))}
    return {**settings, "llm_model": llm, "num_tokens": 10}
