#!/usr/bin/env bash
# torch 2.13.0: FlopCounterMode says that an LSTM, attention and a whole encoder layer cost nothing on a CPU.
#
# Expected: torch's own counter of floating-point operations counts what these layers multiply; their matrix products
#   are billions of operations.
# Happens: it knows the operators of the GPU's attention kernels but not the CPU's own, nor the fused LSTM, nor the fast
#   path that an encoder layer takes for inference, and what it does not know counts as 0, silently. The same encoder layer
#   counts its products in training mode, less the attention; a GRU is counted in full, an LSTM not at all.
# Seen:
#   attention 0 of 8388608
#   LSTM 0 | GRU of the same size 5529600
#   encoder layer, training 111411200 | the same, inference 0
# Why it matters: "GFLOPs" columns that compare forecasters (LSTM against linear model against attention) come out of this
#   counter; the costliest layers look free. At the least assert that a count is above 2 x parameters x time steps.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python="${PYTHON:-python3.11}"
"$python" -m venv --without-pip "$work/venv"
install() { "$python" -m pip --python "$work/venv/bin/python" install --disable-pip-version-check --no-compile -q "$@"; }
install torch==2.13.0
install numpy==2.3.5

"$work/venv/bin/python" - <<'PY'
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

torch.manual_seed(0)


def count(call, *inputs: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        call(*inputs)
    return counter.get_total_flops()


heads = torch.randn(2, 4, 128, 16)
products = 2 * (2 * 2 * 4 * 128 * 128 * 16)  # queries by keys, then weights by values
series = torch.randn(4, 50, 8)
tokens = torch.randn(2, 100, 64)
layer = nn.TransformerEncoderLayer(64, 4, dropout=0.0, batch_first=True)
with torch.no_grad():
    attention = count(nn.functional.scaled_dot_product_attention, heads, heads, heads)
    lstm, gru = count(nn.LSTM(8, 64, batch_first=True), series), count(nn.GRU(8, 64, batch_first=True), series)
    inference = count(layer.eval(), tokens)
training = count(layer.train(), tokens)
print(f"attention {attention} of {products}")
print(f"LSTM {lstm} | GRU of the same size {gru}")
print(f"encoder layer, training {training} | the same, inference {inference}")
assert gru == 2 * 3 * (8 + 64) * 64 * 4 * 50, "the GRU's count changed"
assert training > 0, "the training count changed"
assert attention == 0, "CHANGED: attention on a CPU is counted now"
assert lstm == 0, "CHANGED: the LSTM is counted now"
assert inference == 0, "CHANGED: the encoder layer's fast path is counted now"
PY
