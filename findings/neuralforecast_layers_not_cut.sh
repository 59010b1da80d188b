#!/usr/bin/env bash
# neuralforecast 3.3.0: TimeLLM runs every layer of the language model, whatever llm_num_hidden_layers says.
#
# Expected: TimeLLM(llm_num_hidden_layers=2) on a language model of five layers runs two of them, as the published
#   Time-LLM, where the argument comes from, does.
# Happens: a folder given as `llm` is loaded whole. The argument is kept on the model, can be read back, and nothing ever
#   reads it again. No warning.
# Seen:
#   asked for 2 layers, kept 2, ran in training 5: h.0 h.1 h.2 h.3 h.4
# Why it matters: whoever cuts a language model of 30 layers to 6 to save time pays for 30, and a table "layers
#   against error" made by this argument compares models of one size. Cut the folder's config and weights, and count the
#   layers that run, as below.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python="${PYTHON:-python3.11}"
"$python" -m venv --without-pip "$work/venv"
install() { "$python" -m pip --python "$work/venv/bin/python" install --disable-pip-version-check --no-compile -q "$@"; }
install torch==2.13.0
install numpy==2.3.5 pandas==3.1.1 transformers==5.23.0 neuralforecast==3.3.0

HF_HUB_OFFLINE=1 PYTHONWARNINGS=ignore "$work/venv/bin/python" - "$work/llm" 2> "$work/errors" > "$work/output" <<'PY' \
    || { tail -n 5 "$work/errors"; exit 1; }
import sys

import numpy as np
import pandas as pd
from neuralforecast import NeuralForecast
from neuralforecast.models import TimeLLM
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2Model, PreTrainedTokenizerFast
from transformers.models.gpt2.modeling_gpt2 import GPT2Block

folder = sys.argv[1]
GPT2Model(GPT2Config(vocab_size=300, n_embd=16, n_layer=5, n_head=2, n_positions=512)).save_pretrained(folder)
words = Tokenizer(models.WordLevel({str(i): i for i in range(299)} | {"[UNK]": 299}, unk_token="[UNK]"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
special = {"unk_token": "[UNK]", "eos_token": "[UNK]", "pad_token": "[UNK]"}
PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)

model = TimeLLM(
    h=4, input_size=32, llm=folder, llm_num_hidden_layers=2, d_llm=16, d_model=8, d_ff=8, n_heads=2, patch_len=8,
    stride=4, max_steps=1, batch_size=1, windows_batch_size=4, prompt_prefix="x", accelerator="cpu",
    enable_progress_bar=False, enable_model_summary=False, logger=False, enable_checkpointing=False,
)
ran = set()
for name, block in model.named_modules():
    if isinstance(block, GPT2Block):
        block.register_forward_hook(lambda *_, name=name: ran.add(name.removeprefix("llm.")))
days = pd.date_range("2026-01-01", periods=60, freq="D")
fitted = NeuralForecast([model], freq="D")
fitted.fit(pd.DataFrame({"unique_id": "a", "ds": days, "y": np.arange(60.0)}))
kept = fitted.models[0].llm_num_hidden_layers
print(f"asked for 2 layers, kept {kept}, ran in training {len(ran)}:", *sorted(ran))
assert kept == 2, "the argument is no longer kept"
assert len(ran) == 5, "CHANGED: the argument is read now"
PY
grep "^asked" "$work/output"
