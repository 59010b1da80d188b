#!/usr/bin/env bash
# torch 2.13.0 on a CPU: set_flush_denormal reaches the thread that calls it, so half of a product is flushed.
#
# Expected: `torch.set_flush_denormal(True)` returns True, "flush denormal is supported"; from then on every operation
#   counts subnormal numbers as zero, as one reads its page, which names the processor's instructions and no thread.
# Happens: threads of the pool that run already go on as before. With two threads a matrix product after the call has its
#   first half of rows flushed and its second not: one tensor, two arithmetics. Called before the first operation that is
#   divided, it reaches all of them, since a new thread begins as the one that started it.
# Seen (with 2 threads, a product of 1024 x 1024 whose entries are all subnormal, on an Intel Xeon):
#   called after a first product: zero 0.5 of the entries, by halves [1.0, 0.0]
#   called before:                zero 1.0 of the entries, by halves [1.0, 1.0]
# Why it matters: attention maps that have sharpened hold some per cent of subnormal numbers, with which a float32 product
#   takes many times as long; a training script that flushes them after loading its data or model has half of the cure, and
#   the slower thread sets the pace.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python="${PYTHON:-python3.11}"
"$python" -m venv --without-pip "$work/venv"
install() { "$python" -m pip --python "$work/venv/bin/python" install --disable-pip-version-check --no-compile -q "$@"; }
install torch==2.13.0
install numpy==2.3.5

cat > "$work/flush.py" <<'PY'
import sys

import torch

torch.set_num_threads(2)
if sys.argv[1] == "before":
    assert torch.set_flush_denormal(True)
subnormal, identity = torch.full((1024, 1024), 1e-39), torch.eye(1024)
subnormal @ identity
if sys.argv[1] == "after":
    assert torch.set_flush_denormal(True)
zero = (subnormal @ identity == 0).double()
halves = [half.mean().item() for half in zero.chunk(2)]
print(f"called {sys.argv[1]}: zero {zero.mean().item()} of the entries, by halves {halves}")
PY
for when in after before; do
    "$work/venv/bin/python" "$work/flush.py" "$when" | tee "$work/$when"
done
grep -q "zero 1.0 of the entries" "$work/before" || { echo "CHANGED: not flushed from the beginning"; exit 1; }
if grep -q "zero [01].0 of the entries" "$work/after"; then
    echo "CHANGED: all threads do the same"
    exit 1
fi
