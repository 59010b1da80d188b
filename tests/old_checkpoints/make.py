"""How the runs in the folders beside this were made, once, at the commits that the folders are named after.

    git checkout a52b72f && python make.py tests/old_checkpoints/a52b72f --use_tapr
    git checkout 6e4f05b && python make.py tests/old_checkpoints/6e4f05b --preset document --d_repr 8

A series, a tiny Llama of random weights with its tokenizer, a run of 8 steps that was saved after 4, its
forecast from those weights and its scores at the end. They are not made again: that they still load, predict
and go on is what `tests/test_old_checkpoints.py` holds.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModel, LlamaConfig, PreTrainedTokenizerFast

sys.path.insert(0, ".")

import run_main_enhanced
from models import Forecaster
from utils.config import Config

SETTINGS = """--data custom --data_path series.csv --seq_len 32 --label_len 0 --pred_len 8 --patch_len 8
--stride 8 --llm_layers 1 --d_model 8 --d_ff 8 --n_heads 2 --num_tokens 8 --n_scales 2 --dropout 0.0
--batch_size 8 --eval_batch_size 16 --max_steps 8 --save_steps 4 --save_total_limit 0 --eval_steps 4
--aux_warmup_steps 4 --log_steps 1 --learning_rate 0.01 --matmul_precision highest""".split()


def write_series(path: Path) -> None:
    """160 hourly rows of two columns."""
    time = np.arange(160)
    noise = np.random.default_rng(0).normal(0, 0.2, (160, 2))
    waves = np.stack([np.sin(time * np.pi / 12), np.cos(time * np.pi / 12) + time * 0.005], axis=1) + noise
    frame = pd.DataFrame(waves.round(4), columns=["a", "OT"])
    frame.insert(0, "date", pd.date_range("2020-01-01", periods=160, freq="h").astype(str))
    frame.to_csv(path, index=False)


def write_llm(folder: Path) -> None:
    """A Llama of one layer and hidden size 8, whose tokens are bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {token: number for number, token in enumerate(["<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=1,
    )
    AutoModel.from_config(config).save_pretrained(folder)


def main() -> None:
    """Make everything in the folder that the command line names."""
    home = Path(sys.argv[1])
    torch.set_num_threads(1)
    (home / "llm").mkdir(parents=True, exist_ok=True)
    write_series(home / "series.csv")
    write_llm(home / "llm")
    (home / "defaults.json").write_text(json.dumps(Config().flat(), indent=1) + "\n", encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        places = ["--root_path", str(home), "--llm_model_path", str(home / "llm"), "--checkpoints", folder]
        run = run_main_enhanced.main([*sys.argv[2:], *SETTINGS, *places, "--cpu"])
        for name in ("config.json", "environment.json", "checkpoint_step_4/checkpoint.pt"):
            (home / "run" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(run.run_dir / name, home / "run" / name)
        forecaster = Forecaster.load(home / "run" / "checkpoint_step_4")
        forecast = forecaster.predict(pd.read_csv(home / "series.csv"))
    expected = {
        "forecast": forecast.drop(columns="date", errors="ignore").to_dict("list"),
        "dates": [str(date) for date in forecast.get("date", forecast.index)],
        "last": run.results["last"]["test"],
        "name": run.run_dir.name,
    }
    (home / "expected.json").write_text(json.dumps(expected, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
