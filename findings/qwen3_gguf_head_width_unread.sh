#!/usr/bin/env bash
# transformers 5.23.0: the width of a head that a Qwen3 GGUF file states is not read; only files of 128 load.
#
# Expected: `head_dim` comes from the file, as Qwen3-MoE's and Gemma's does from `attention.key_length` and Llama's from
#   `rope.dimension_count`.
# Happens: with both keys there Qwen3 keeps its default of 128 whatever the file says. A file of heads of another width
#   ends in an error about the shapes of weights (k_norm, q_proj ...), as if it were damaged; one of 128 loads.
# Seen (files written by gguf 0.19.0, two layers, width 256, 4 heads): Llama says 32 and is read as 32 and loads; Qwen3
#   says 128, is read as 128 and loads; Qwen3 says 64, is read as 128 and does not load (ValueError).
# Why it matters: small models are made by pruning or by training with other widths, and GGUF is how they are passed on.
#   Give `head_dim` yourself (`AutoConfig`, then `config=`), or keep such a model in safetensors.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python="${PYTHON:-python3.11}"
"$python" -m venv --without-pip "$work/venv"
install() { "$python" -m pip --python "$work/venv/bin/python" install --disable-pip-version-check --no-compile -q "$@"; }
install torch==2.13.0
install transformers==5.23.0 numpy==2.3.5 gguf==0.19.0

cat > "$work/widths.py" <<'PY'
import sys

import gguf
import numpy as np
from transformers import AutoConfig, AutoModelForCausalLM

FOLDER = sys.argv[1]
WIDTH, HEADS, WORDS = 256, 4, 64
WANTED = {("llama", 32): 32, ("qwen3", 128): 128, ("qwen3", 64): 128}


def write(name, kind, head):
    writer = gguf.GGUFWriter(f"{FOLDER}/{name}", kind)
    writer.add_block_count(2)
    writer.add_context_length(512)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_key_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"word{place}" for place in range(WORDS)])
    draws = np.random.default_rng(0)

    def add(tensor, *shape):
        writer.add_tensor(tensor, draws.normal(size=shape).astype(np.float32))

    add("token_embd.weight", WORDS, WIDTH)
    add("output_norm.weight", WIDTH)
    for layer in range(2):
        at = f"blk.{layer}."
        for part in ("attn_norm", "ffn_norm"):
            add(f"{at}{part}.weight", WIDTH)
        for part in ("ffn_gate", "ffn_up", "ffn_down"):
            add(f"{at}{part}.weight", WIDTH, WIDTH)
        for part in ("attn_q", "attn_k", "attn_v"):
            add(f"{at}{part}.weight", HEADS * head, WIDTH)
        add(f"{at}attn_output.weight", WIDTH, HEADS * head)
        if kind == "qwen3":
            add(f"{at}attn_q_norm.weight", head)
            add(f"{at}attn_k_norm.weight", head)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


for (kind, head), wanted in WANTED.items():
    name = f"{kind}_{head}.gguf"
    write(name, kind, head)
    read = AutoConfig.from_pretrained(FOLDER, gguf_file=name).head_dim
    try:
        model = AutoModelForCausalLM.from_pretrained(FOLDER, gguf_file=name)
        rows = model.model.layers[0].self_attn.q_proj.weight.shape[0]
        loaded = f"loads, with {rows // HEADS} rows a head"
    except Exception as error:  # noqa: BLE001
        loaded = f"does not load: {type(error).__name__}"
    print(f"{kind}: the file says heads of {head}, transformers reads {read}; it {loaded}")
    if read != wanted or loaded.startswith("loads") != (read == head):
        sys.exit("CHANGED")
PY
"$work/venv/bin/python" "$work/widths.py" "$work" 2> "$work/errors" || { tail -n 3 "$work/errors"; exit 1; }
