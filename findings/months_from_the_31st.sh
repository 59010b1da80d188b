#!/usr/bin/env bash
# pandas 3.1.1, duckdb 2.0.1, polars 2.1.0: three calendars of "every month from the 31st of January".
#
# Expected: the stamps of a monthly series that is dated at the month's last day go on at the last day; at the least,
#   the third stamp is the first one plus two months.
# Happens: pandas.date_range with DateOffset(months=1) and duckdb's generate_series add one month to the stamp
#   before, so February cuts the day to 28 and it stays 28 for ever. pandas' own `start + DateOffset(months=k)`, and
#   polars, count from the start and give month ends. Two calls of one library disagree.
# Seen:
#   pandas date_range   01-31 02-28 03-28 04-28 05-28 06-28
#   duckdb series       01-31 02-28 03-28 04-28 05-28 06-28
#   pandas start + k    01-31 02-28 03-31 04-30 05-31 06-30
#   polars range        01-31 02-28 03-31 04-30 05-31 06-30
# Why it matters: forecasts stamped one way do not join actual values stamped the other way: from the second step on
#   every row of the join is lost, the scores are means of what is left. Use an anchored frequency ("ME"), or count from
#   the start.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python="${PYTHON:-python3.11}"
"$python" -m venv --without-pip "$work/venv"
install() { "$python" -m pip --python "$work/venv/bin/python" install --disable-pip-version-check --no-compile -q "$@"; }
install pandas==3.1.1 duckdb==2.0.1 polars==2.1.0

"$work/venv/bin/python" - <<'PY'
import datetime

import duckdb
import pandas as pd
import polars as pl

start, end = datetime.datetime(2026, 1, 31), datetime.datetime(2026, 6, 30)
month = pd.DateOffset(months=1)
stamps = {
    "pandas date_range": list(pd.date_range(start, periods=6, freq=month)),
    "duckdb series": [row[0] for row in duckdb.sql(
        "select unnest(generate_series(timestamp '2026-01-31', timestamp '2026-06-30', interval 1 month))"
    ).fetchall()],
    "pandas start + k": [pd.Timestamp(start) + pd.DateOffset(months=k) for k in range(6)],
    "polars range": pl.datetime_range(start, end, "1mo", eager=True).to_list(),
}
days = {name: [stamp.strftime("%m-%d") for stamp in column] for name, column in stamps.items()}
for name, column in days.items():
    print(f"{name:19}", *column)
drifted = ["01-31", "02-28", "03-28", "04-28", "05-28", "06-28"]
ends = ["01-31", "02-28", "03-31", "04-30", "05-31", "06-30"]
assert days["pandas start + k"] == days["polars range"] == ends, "CHANGED: counting from the start"
assert days["pandas date_range"] == drifted, "CHANGED: pandas.date_range no longer drifts"
assert days["duckdb series"] == drifted, "CHANGED: duckdb's generate_series no longer drifts"
PY
