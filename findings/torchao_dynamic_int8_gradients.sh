#!/usr/bin/env bash
# torchao 0.18.0 on a CPU: through a model in dynamic int8, earlier tokens get a gradient of exactly zero, without a word.
#
# Expected: an error, or gradients near those of float32, as weight-only int8 gives them. Whoever trains something in front
#   of a frozen model (a soft prompt, a projection, a reprogramming layer) needs the gradient at its inputs, no weight's.
# Happens: layers of `Int8DynamicActivationInt8WeightConfig` let nothing through. One such layer alone raises in backward;
#   in a transformer the residual connections keep the graph whole, so backward runs: the last token's gradient comes
#   around all layers, the others', which only attention could bring, are zeros. What stands there learns nothing.
# Seen (a Llama of two layers, random weights; norm of the last state's gradient at each of six input vectors):
#   float32            0.05 0.05 0.04 0.04 0.05 8.29
#   int8, weight only  0.05 0.05 0.04 0.04 0.05 8.29
#   int8, dynamic      0.00 0.00 0.00 0.00 0.00 8.29
# Why it matters: loss falls a little all the same, by what the last token learns. `Int8WeightOnlyConfig` is the one to take.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python="${PYTHON:-python3.11}"
"$python" -m venv --without-pip "$work/venv"
install() { "$python" -m pip --python "$work/venv/bin/python" install --disable-pip-version-check --no-compile -q "$@"; }
install torch==2.13.0
install torchao==0.18.0 transformers==5.23.0 numpy==2.3.5

cat > "$work/gradients.py" <<'PY'
import sys

import torch
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_
from transformers import LlamaConfig, LlamaModel

SIZES = dict(vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
KINDS = {"float32": None, "int8, weight only": Int8WeightOnlyConfig(), "int8, dynamic": Int8DynamicActivationInt8WeightConfig()}
norms = {}
for name, config in KINDS.items():
    torch.manual_seed(0)
    model = LlamaModel(LlamaConfig(**SIZES)).eval().requires_grad_(False)
    if config is not None:
        quantize_(model, config)
    vectors = torch.randn(1, 6, 64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    model(inputs_embeds=vectors).last_hidden_state[0, -1].sum().backward()
    norms[name] = vectors.grad[0].norm(dim=-1)
    print(f"{name:18}", *(f"{value:.2f}" for value in norms[name].tolist()))
whole, kept, cut = norms.values()
if not torch.allclose(whole, kept, rtol=0.05):
    sys.exit("CHANGED: weight-only int8 gives other gradients")
if not (whole[:-1] > 0.01).all() or (cut[:-1] != 0).any():
    sys.exit("CHANGED: dynamic int8 lets gradients through to earlier tokens")
PY
"$work/venv/bin/python" "$work/gradients.py" 2> "$work/errors" || { tail -n 3 "$work/errors"; exit 1; }
