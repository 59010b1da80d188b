#!/usr/bin/env bash
# torch 2.13.0: a step of fused AdamW changes the weights and leaves their version counters at 0.
#
# Expected: a tensor's version counter (`_version`, by which autograd notices that a saved tensor was changed in place) rises
#   with every in-place change, as it does under the plain and the `foreach` optimizer.
# Happens: with `fused=True` the weights move and the counter stays. What rests on it is silent: a result kept by the
#   weights' identity and version is handed out stale after the step, and backward through a graph that was built before the
#   step gives gradients by the new weights, where the other two kinds raise "modified by an inplace operation".
# Seen (one step from 0 at learning rate 0.1, on a CPU):
#   plain    weight -0.1, version 2, old graph: raises
#   foreach  weight -0.1, version 2, old graph: raises
#   fused    weight -0.1, version 0, old graph: gradient -0.2 where 0.0 is right
# Why it matters: whoever keeps what a frozen part computes from trained weights (mapped word vectors, prefix states) between
#   steps must count steps himself.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python="${PYTHON:-python3.11}"
"$python" -m venv --without-pip "$work/venv"
install() { "$python" -m pip --python "$work/venv/bin/python" install --disable-pip-version-check --no-compile -q "$@"; }
install torch==2.13.0
install numpy==2.3.5

cat > "$work/versions.py" <<'PY'
import sys

import torch

seen = {}
for kind in ("plain", "foreach", "fused"):
    options = {name: name == kind for name in ("foreach", "fused")}
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([weight], lr=0.1, **options)
    graph = (weight * weight).sum()  # its gradient is 2 * weight: 0 where it was built
    weight.grad = torch.ones(1)
    optimizer.step()
    try:
        (gradient,) = torch.autograd.grad(graph, weight)
        after = f"gradient {gradient.item():.1f} where 0.0 is right"
    except RuntimeError as error:
        after = "raises" if "modified by an inplace operation" in str(error) else str(error)
    seen[kind] = (round(weight.item(), 3), weight._version > 0, after)
    print(f"{kind:8} weight {weight.item():.1f}, version {weight._version}, old graph: {after}")
if seen["plain"] != (-0.1, True, "raises") or seen["foreach"] != seen["plain"]:
    sys.exit("CHANGED: the plain or the foreach step")
if seen["fused"] != (-0.1, False, "gradient -0.2 where 0.0 is right"):
    sys.exit("CHANGED: the fused step")
PY
"$work/venv/bin/python" "$work/versions.py"
