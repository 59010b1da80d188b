#!/usr/bin/env bash
# transformers 5.23.0: FalconH1 and ESM give other states for a sentence's own word vectors than for its ids.
#
# Expected: `model(inputs_embeds=model.get_input_embeddings()(ids))` is `model(input_ids=ids)`, as for most kinds. Kinds
#   that scale their words do so for both (Granite, in the forward pass) or within the embedding (Gemma).
# Happens: FalconH1 multiplies by `embedding_multiplier`, and ESM by 1 - 0.15 * 0.8 (`token_dropout`), where they look
#   ids up themselves, and leave vectors that they are given as they are. No word of it.
# Seen (random models of two layers, float32, evaluation mode, nothing masked; in deviations of the states):
#   Granite 0.00, Gemma 0.00, FalconH1 2.28, Esm 0.34; FalconH1 with vectors times its multiplier 0.00
# Why it matters: soft prompts, reprogrammed patches and gradients by token enter as vectors. Multiply what the embedding
#   gives, and compare both ways once before training.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python="${PYTHON:-python3.11}"
"$python" -m venv --without-pip "$work/venv"
install() { "$python" -m pip --python "$work/venv/bin/python" install --disable-pip-version-check --no-compile -q "$@"; }
install torch==2.13.0
install transformers==5.23.0 numpy==2.3.5

cat > "$work/both_ways.py" <<'PY'
import sys

import torch
from transformers import AutoModel, EsmConfig, FalconH1Config, GemmaConfig, GraniteConfig

SIZES = dict(vocab_size=200, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
MULTIPLIER = 5.0
CONFIGS = {
    "Granite": GraniteConfig(**SIZES, num_key_value_heads=4, embedding_multiplier=12.0),
    "Gemma": GemmaConfig(**SIZES, num_key_value_heads=4, head_dim=16),
    "FalconH1": FalconH1Config(
        **SIZES, num_key_value_heads=4, embedding_multiplier=MULTIPLIER,
        mamba_d_ssm=128, mamba_n_heads=4, mamba_d_state=16,
    ),
    "Esm": EsmConfig(
        **SIZES, pad_token_id=1, mask_token_id=2, token_dropout=True, position_embedding_type="rotary"
    ),
}
WANTED = {"Granite": 0.0, "Gemma": 0.0, "FalconH1": 2.28, "Esm": 0.34}


def apart(model, scale=1.0):
    ids = torch.arange(10, 30)[None]
    mask = torch.ones_like(ids)
    with torch.no_grad():
        by_ids = model(input_ids=ids, attention_mask=mask).last_hidden_state
        vectors = scale * model.get_input_embeddings()(ids)
        by_vectors = model(inputs_embeds=vectors, attention_mask=mask).last_hidden_state
    return float((by_ids - by_vectors).abs().max() / by_ids.std())


for name, config in CONFIGS.items():
    torch.manual_seed(0)
    model = AutoModel.from_config(config).eval()
    found = apart(model)
    print(f"{name}: a sentence's ids and its own vectors give states {found:.2f} deviations apart")
    if (found > 0.01) != (WANTED[name] > 0.01):
        sys.exit(f"CHANGED: {name}, {WANTED[name]} before")
    if name == "FalconH1":
        found = apart(model, MULTIPLIER)
        print(f"{name}: with its vectors times {MULTIPLIER:g}, {found:.2f}")
        if found > 0.01:
            sys.exit("CHANGED: not by its multiplier")
PY
"$work/venv/bin/python" "$work/both_ways.py" 2> "$work/errors" || { tail -n 3 "$work/errors"; exit 1; }
