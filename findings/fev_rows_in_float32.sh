#!/usr/bin/env bash
# fev 0.10.0 (with datasets 4.8.5): models are handed float32 rows, and scored against the float64 of the file.
#
# Expected: repeating the last value of the history that a task hands out is a perfect forecast when the
#   future repeats it too.
# Happens: the rows come through datasets' "numpy" format, which turns float64 into float32 (and leaves int64 alone). At
#   a level of 2e9, a counter or a revenue, float32 numbers lie 128 apart. The scores read the file's own
#   float64. The same window as a frame (`to_pandas`, and the adapter of that name) keeps float64 too, so that two models
#   of one benchmark see two histories. No warning.
# Seen:
#   last value by rows 2000000000 (float32), as a frame 2000000040 (float64)
#   MASE of repeating it: by rows 2.0, as a frame 0.0
# Why it matters: the score of a naive forecast, or of a language model that reads digits, depends on the way the window
#   is read. Subtract the level before writing the data set, or read frames.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python="${PYTHON:-python3.11}"
"$python" -m venv --without-pip "$work/venv"
install() { "$python" -m pip --python "$work/venv/bin/python" install --disable-pip-version-check --no-compile -q "$@"; }
install numpy==2.3.5 pandas==2.3.3 pyarrow==26.0.1 datasets==4.8.5 fev==0.10.0

HF_HUB_OFFLINE=1 HF_HOME="$work/cache" "$work/venv/bin/python" - "$work/counter.parquet" <<'PY'
import sys

import datasets
import fev
import numpy as np
import pandas as pd

datasets.disable_progress_bars()
path = sys.argv[1]
history = 2e9 + 20.0 + 20.0 * (np.arange(30) % 2)  # moves by 20 at each step: the scale of MASE
row = {
    "id": "counter",
    "timestamp": pd.date_range("2026-01-01", periods=35, freq="D").to_pydatetime().tolist(),
    "target": np.append(history, np.full(5, history[-1])).tolist(),
}
datasets.Dataset.from_list([row]).to_parquet(path)
task = fev.Task(dataset_path=path, horizon=5)
past, _ = task.get_window(0).get_input_data()
by_rows, as_frame = past[0]["target"], past.to_pandas()["target"][0]


def score(last: float) -> float:
    predictions = datasets.Dataset.from_list([{"predictions": [last] * 5}])
    return task.evaluation_summary([datasets.DatasetDict({"target": predictions})], model_name="naive")["MASE"]


rows_score, frame_score = score(float(by_rows[-1])), score(float(as_frame[-1]))
print(f"last value by rows {by_rows[-1]:.0f} ({by_rows.dtype}), as a frame {as_frame[-1]:.0f} ({as_frame.dtype})")
print(f"MASE of repeating it: by rows {rows_score:.1f}, as a frame {frame_score:.1f}")
assert as_frame[-1] == history[-1] and frame_score == 0, "the frame changed"
assert by_rows.dtype == np.float32, "CHANGED: rows keep float64 now"
assert abs(rows_score - 2) < 1e-6, "CHANGED: the score of the rows' last value"
PY
