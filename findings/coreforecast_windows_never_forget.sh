#!/usr/bin/env bash
# coreforecast 0.0.20, mlforecast 1.1.0: a rolling mean of seven days never forgets one day.
#
# Expected: a window of seven values depends on these seven values alone, so that a spike (or a missing value)
#   leaves the rolling features seven days after it happened.
# Happens: the windows are running sums. In float32, the type mlforecast keeps when the target has it, what rounding
#   lost when the spike entered never comes back: every later feature stays wrong, 289 days on. And one NaN makes
#   every later value of coreforecast's rolling mean, maximum and median NaN; pandas has the first number again as soon
#   as the NaN has left the window. Nothing is raised or warned.
# Seen:
#   last rolling mean of 7 days, spike 289 days ago: float32 36.571 | float64 53.000 | pandas, float32 53.000
#   last rolling mean / maximum / median of 3, NaN 7 steps ago: nan nan nan | pandas 9.0 10.0 9.0
# Why it matters: one broken meter reading shifts the features of a whole series, those the forecast starts from
#   too, and the model is blamed for it. A target in float64, or windows computed anew, are right.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python="${PYTHON:-python3.11}"
"$python" -m venv --without-pip "$work/venv"
install() { "$python" -m pip --python "$work/venv/bin/python" install --disable-pip-version-check --no-compile -q "$@"; }
install numpy==2.3.5 pandas==2.3.3 coreforecast==0.0.20 utilsforecast==0.2.17 mlforecast==1.1.0

"$work/venv/bin/python" - <<'PY'
import warnings

import numpy as np
import pandas as pd
from coreforecast.rolling import rolling_max, rolling_mean, rolling_quantile
from mlforecast import MLForecast
from mlforecast.lag_transforms import RollingMean

warnings.simplefilter("ignore")
level = (50 + np.arange(300) % 7).astype("float32")
level[10] = 3e9
frame = pd.DataFrame({"unique_id": "meter", "ds": pd.date_range("2025-01-01", periods=300, freq="D"), "y": level})


def last_feature(target: str) -> float:
    features = MLForecast([], freq="D", lag_transforms={1: [RollingMean(7)]})
    return float(features.preprocess(frame.astype({"y": target})).iloc[-1, -1])


single, double = last_feature("float32"), last_feature("float64")
reference = float(frame["y"].shift(1).rolling(7).mean().iloc[-1])
print(f"last rolling mean of 7 days, spike 289 days ago: float32 {single:.3f} | float64 {double:.3f}"
      f" | pandas, float32 {reference:.3f}")
assert level[292:299].mean() == 53, "the input changed"
assert abs(double - 53) < 1e-3 and abs(reference - 53) < 1e-3, "the references changed"
assert abs(single - 53) > 1, "CHANGED: the float32 window forgets the spike now"

gap = np.array([1, 2, np.nan, 4, 5, 6, 7, 8, 9, 10.0])
ours = [rolling_mean(gap, 3)[-1], rolling_max(gap, 3)[-1], rolling_quantile(gap, 0.5, 3)[-1]]
window = pd.Series(gap).rolling(3)
theirs = [float(window.mean().iloc[-1]), float(window.max().iloc[-1]), float(window.median().iloc[-1])]
print("last rolling mean / maximum / median of 3, NaN 7 steps ago:", *ours, "| pandas", *theirs)
assert theirs == [9, 10, 9], "the reference changed"
assert np.isnan(ours).all(), "CHANGED: the windows recover from a NaN now"
PY
