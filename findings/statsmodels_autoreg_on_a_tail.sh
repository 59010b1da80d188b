#!/usr/bin/env bash
# statsmodels 0.15.0 (with pandas 3.1.1): AutoReg, fitted to the tail of a series, predicts NaN and miscounts rows.
#
# Expected: model.fit().predict(80, 81), the two steps after 80 values, gives two numbers whatever row numbers the tail
#   of a longer frame kept; ARIMA, asked the same of the same Series, gives them.
# Happens: with a RangeIndex that does not begin at 0 AutoReg takes row numbers for positions in some places only: predict
#   gives NaN without a word, forecast gives right numbers under wrong labels (80, 81 for rows 200, 201), fitted values
#   are as long as the gap is wide and the residuals raise.
# Seen:
#   predict(80, 81) ARIMA {200: 53.3, 201: 53.5} | AutoReg {200: nan, 201: nan}
#   forecast(2) is labelled [200, 201] by ARIMA, [80, 81] by AutoReg
#   AutoReg after reset_index: {80: 53.2, 81: 53.4}
# Why it matters: `frame["y"].tail(80)` is the usual way to a lookback window. A baseline of NaN drops out of means, and a
#   join on labels matches the forecast to old rows. Call reset_index(drop=True) first.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python="${PYTHON:-python3.11}"
"$python" -m venv --without-pip "$work/venv"
install() { "$python" -m pip --python "$work/venv/bin/python" install --disable-pip-version-check --no-compile -q "$@"; }
install numpy==2.3.5 scipy==1.17.1 pandas==3.1.1 statsmodels==0.15.0

"$work/venv/bin/python" - <<'PY'
import warnings

import numpy as np
import pandas as pd
from statsmodels.tsa.api import ARIMA, AutoReg

warnings.simplefilter("ignore")
tail = pd.Series(50 + np.cumsum(np.random.default_rng(0).normal(size=200))).tail(80)


def shown(values: pd.Series) -> dict[int, float]:
    return {int(row): round(float(value), 1) for row, value in values.items()}


arima, autoreg = ARIMA(tail, order=(2, 0, 0)).fit(), AutoReg(tail, 2).fit()
reset = AutoReg(tail.reset_index(drop=True), 2).fit()
print("predict(80, 81) ARIMA", shown(arima.predict(80, 81)), "| AutoReg", shown(autoreg.predict(80, 81)))
labels = [list(map(int, fit.forecast(2).index)) for fit in (arima, autoreg)]
print("forecast(2) is labelled", labels[0], "by ARIMA,", labels[1], "by AutoReg")
print("AutoReg after reset_index:", shown(reset.predict(80, 81)))
assert list(tail.index[[0, -1]]) == [120, 199], "the input changed"
assert np.isfinite(arima.predict(80, 81)).all() and np.isfinite(reset.predict(80, 81)).all(), "references changed"
assert labels[0] == [200, 201], "ARIMA's labels changed"
assert np.isnan(autoreg.predict(80, 81)).all(), "CHANGED: AutoReg predicts numbers now"
assert labels[1] == [80, 81], "CHANGED: AutoReg labels its forecast right now"
PY
