#!/usr/bin/env bash
# accelerate 1.15.0: under torchrun on a machine without a GPU every process trains a model of its own.
#
# Expected: `torchrun --nproc_per_node 2 train.py` with a plain Accelerator() joins the two processes, as it does with
#   GPUs: one model, averaged gradients, one main process.
# Happens: without a GPU and without cpu=True the variables that torchrun sets are passed over in silence. Each process
#   reports one process in all and itself as the main one, and after a step the two hold different weights. Both write the
#   checkpoint, the log and the scores. Accelerator(cpu=True) sees both.
# Seen:
#   Accelerator(): process 0 of 1, main True, weight -1.0
#   Accelerator(): process 1 of 1, main True, weight -2.0
#   Accelerator(cpu=True): process 0 of 2, main True, weight -1.5
#   Accelerator(cpu=True): process 1 of 2, main False, weight -1.5
# Why it matters: a run on two CPU sockets costs twice and gives the model of one half of the data, whichever process
#   wrote last. Compare num_processes with the variable WORLD_SIZE at the start.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python="${PYTHON:-python3.11}"
"$python" -m venv --without-pip "$work/venv"
install() { "$python" -m pip --python "$work/venv/bin/python" install --disable-pip-version-check --no-compile -q "$@"; }
install torch==2.13.0
install numpy==2.3.5 accelerate==1.15.0

cat > "$work/train.py" <<'PY'
import os
import sys

import torch
from accelerate import Accelerator

accelerator = Accelerator(cpu=True) if sys.argv[1] == "cpu=True" else Accelerator()
model = torch.nn.Linear(1, 1, bias=False)
model.weight.data.zero_()
model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=1.0))
rank = int(os.environ["RANK"])
accelerator.backward(model(torch.full((1, 1), rank + 1.0)).sum())  # gradients 1 and 2, their mean 1.5
optimizer.step()
weight = accelerator.unwrap_model(model).weight.item()
line = (f"Accelerator({sys.argv[1]}): process {rank} of {accelerator.num_processes},"
        f" main {accelerator.is_main_process}, weight {weight}\n")
with open(f"{sys.argv[2]}/{sys.argv[1]}-{rank}", "w") as file:
    file.write(line)
PY
for setting in "" "cpu=True"; do
    CUDA_VISIBLE_DEVICES="" OMP_NUM_THREADS=1 "$work/venv/bin/python" -m torch.distributed.run --standalone \
        --nproc_per_node 2 "$work/train.py" "$setting" "$work" 2> "$work/errors" || { cat "$work/errors"; exit 1; }
    cat "$work/$setting-0" "$work/$setting-1"
done
has() { grep -q "$1" "$work/$2" || { echo "CHANGED: $2 does not say '$1'"; exit 1; }; }
has "of 2, main True, weight -1.5" "cpu=True-0"
has "of 2, main False, weight -1.5" "cpu=True-1"
has "of 1, main True, weight -1.0" "-0"
has "of 1, main True, weight -2.0" "-1"
