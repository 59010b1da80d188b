#!/usr/bin/env bash
# torchmetrics 1.9.0: the relative squared error of a load in watts is 66 thousand million instead of 0.08.
#
# Expected: RelativeSquaredError (RSE, the score of many papers on electricity load) in float64 tensors is computed in
#   float64; and, being relative to the spread of the true values, it does not depend on their level.
# Happens: the class keeps its sums in float32 whatever it is given, and gets the spread as the difference of the sum of
#   squares and the square of the sum. At a level of 1e6 with a wave of 20 nothing is left of it, and the smallest float32
#   number takes its place. The function of the same library, on the same tensors, is right.
# Seen:
#   level 1000000: class 66232692736 | function 0.0787 | by its definition 0.0787
# Why it matters: a good forecast is reported as absurdly bad (other levels give numbers that are off by less and look
#   true). Subtract a constant from both, or call set_dtype(torch.float64) on the metric.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python="${PYTHON:-python3.11}"
"$python" -m venv --without-pip "$work/venv"
install() { "$python" -m pip --python "$work/venv/bin/python" install --disable-pip-version-check --no-compile -q "$@"; }
install torch==2.13.0
install numpy==2.3.5 torchmetrics==1.9.0

"$work/venv/bin/python" - <<'PY'
import torch
from torchmetrics.functional.regression import relative_squared_error
from torchmetrics.regression import RelativeSquaredError

torch.manual_seed(0)
hours = torch.arange(500, dtype=torch.float64)
truth = 1e6 + 20 * torch.sin(hours / 4)
forecast = truth + 4 * torch.randn(500, dtype=torch.float64)


def by_class(metric: RelativeSquaredError) -> float:
    metric.update(forecast, truth)
    return float(metric.compute())


single, double = by_class(RelativeSquaredError()), by_class(RelativeSquaredError().set_dtype(torch.float64))
function = float(relative_squared_error(forecast, truth))
definition = float(((forecast - truth) ** 2).sum() / ((truth - truth.mean()) ** 2).sum())
print(f"level 1000000: class {single:.0f} | function {function:.4f} | by its definition {definition:.4f}")
assert abs(function - definition) < 1e-4 and abs(double - definition) < 1e-4, "the references changed"
assert abs(single / definition - 1) > 0.1, "CHANGED: the class is right in float64 now"
PY
