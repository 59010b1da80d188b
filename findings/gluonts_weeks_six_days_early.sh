#!/usr/bin/env bash
# gluonts 0.17.0 (with pandas 2.3.3): weekly forecasts come back with stamps six days early.
#
# Expected: a series stamped on Mondays ("W-MON"), forecast by two weeks and turned back into stamps, goes on at the
#   next Monday.
# Happens: gluonts keeps the start as a pandas Period of the same name, but "W-MON" means a stamp *on* Monday for a
#   date range and a week that *ends* on Monday for a period. Such a week begins on a Tuesday, so the forecast's index,
#   turned into stamps by to_timestamp(), holds Tuesdays, the first one of them within the history. Only "W-SUN" stamps,
#   moved by six days too, at least land on a Monday that looks right.
# Seen:
#   last stamp of the history Mon 2026-03-09, the next one must be Mon 2026-03-16
#   first stamp of the forecast Tue 2026-03-10
#   stamps that forecast and continued history share: 0 of 2
# Why it matters: a join with the actual values is empty, or, after a merge to the nearest stamp, compares each
#   forecast with the week before. Take to_timestamp(how="end").normalize(), which gives the Mondays back.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python="${PYTHON:-python3.11}"
"$python" -m venv --without-pip "$work/venv"
install() { "$python" -m pip --python "$work/venv/bin/python" install --disable-pip-version-check --no-compile -q "$@"; }
install numpy==2.3.5 pandas==2.3.3 packaging==26.4 gluonts==0.17.0

"$work/venv/bin/python" - <<'PY'
import warnings

warnings.simplefilter("ignore")

import numpy as np
import pandas as pd
from gluonts.dataset.pandas import PandasDataset
from gluonts.model.seasonal_naive import SeasonalNaivePredictor

index = pd.date_range("2026-01-05", periods=10, freq="W-MON")
data = PandasDataset({"shop": pd.DataFrame({"target": np.arange(10.0)}, index=index)}, target="target")
forecast = next(iter(SeasonalNaivePredictor(prediction_length=2, season_length=1).predict(data)))
stamps = forecast.index.to_timestamp()
truth = pd.date_range(index[-1], periods=3, freq="W-MON")[1:]
print(f"last stamp of the history {index[-1]:%a %Y-%m-%d}, the next one must be {truth[0]:%a %Y-%m-%d}")
print(f"first stamp of the forecast {stamps[0]:%a %Y-%m-%d}")
print(f"stamps that forecast and continued history share: {len(stamps.intersection(truth))} of 2")
assert (forecast.index.to_timestamp(how="end").normalize() == truth).all(), "the way out changed"
assert (truth - stamps == pd.Timedelta(days=6)).all(), "CHANGED: the forecast's stamps are no longer six days early"
PY
