#!/usr/bin/env bash
# transformers 5.23.0 with torchao 0.18.0: GPT-2 loaded "in int8" is float32 in every weight, and says it is quantised.
#
# Expected: `from_pretrained(..., quantization_config=TorchAoConfig(...))` quantises the matrices, or says which kind of
#   layer it leaves alone.
# Happens: torchao takes `nn.Linear` only, and GPT-2's matrices are `Conv1D`. Nothing is quantised, nothing is said,
#   `is_quantized` is True and so is the presence of a quantiser: who plans memory by them plans a quarter of what is taken.
# Seen (random models of two layers, 128 wide):
#   LlamaForCausalLM: is_quantized True, 86% of the values in int8
#   GPT2LMHeadModel:  is_quantized True, 0% of the values in int8
# Why it matters: GPT-2 is what this field's papers use first (GPT4TS, TimeLLM's small setting). Count the int8 tensors.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python="${PYTHON:-python3.11}"
"$python" -m venv --without-pip "$work/venv"
install() { "$python" -m pip --python "$work/venv/bin/python" install --disable-pip-version-check --no-compile -q "$@"; }
install torch==2.13.0
install torchao==0.18.0 transformers==5.23.0 numpy==2.3.5 accelerate==1.15.0

cat > "$work/share.py" <<'PY'
import sys
import tempfile

from torchao.quantization import Int8WeightOnlyConfig
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, TorchAoConfig

LLAMA = LlamaConfig(
    vocab_size=200, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4
)
GPT2 = GPT2Config(vocab_size=200, n_embd=128, n_layer=2, n_head=4)
shares = {}
for kind, config in ((LlamaForCausalLM, LLAMA), (GPT2LMHeadModel, GPT2)):
    with tempfile.TemporaryDirectory() as folder:
        kind(config).save_pretrained(folder)
        asked = TorchAoConfig(Int8WeightOnlyConfig())
        model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=asked)
    weights = list(model.parameters())
    int8 = sum(weight.numel() for weight in weights if type(weight).__name__ == "Int8Tensor")
    shares[kind] = int8 / sum(weight.numel() for weight in weights)
    print(f"{kind.__name__}: is_quantized {model.is_quantized}, {shares[kind]:.0%} of the values in int8")
    if not model.is_quantized:
        sys.exit(f"CHANGED: {kind.__name__} does not say that it is quantised")
if shares[LlamaForCausalLM] < 0.5 or shares[GPT2LMHeadModel] > 0:
    sys.exit("CHANGED: other shares are quantised")
PY
"$work/venv/bin/python" "$work/share.py" 2> "$work/errors" || { tail -n 3 "$work/errors"; exit 1; }
