#!/usr/bin/env bash
# dtaidistance 2.5.1, tslearn 0.6.4, aeon 1.6.0: "a warping window of one step" is three different things.
#
# Expected: two copies of a wave, one of them a step late, have the distance 0 under dynamic time warping with a window
#   of one step, and the same positive distance in every library when no warping is allowed.
# Happens: dtaidistance counts the diagonal itself, so window=1 allows none; tslearn's sakoe_chiba_radius=1 allows one step;
#   aeon takes a fraction of the length, and rounds the steps down: 0.124 of 8 points is none, 0.125 is one. And with no
#   warping left dtaidistance and tslearn give the root of the summed squares, aeon the sum itself.
# Seen:
#   one step: dtaidistance window=1 2.0, window=2 0.0 | tslearn radius=1 0.0 | aeon window=1/8 0.0
#   no warping: dtaidistance 2.0 | tslearn 2.0 | aeon 4.0
# Why it matters: nearest neighbours for a forecast by retrieval are found under a window tuned in another library; a
#   threshold moved from tslearn to aeon is off by a square, and means over neighbours weighted by distance change.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python="${PYTHON:-python3.11}"
"$python" -m venv --without-pip "$work/venv"
install() { "$python" -m pip --python "$work/venv/bin/python" install --disable-pip-version-check --no-compile -q "$@"; }
install numpy==2.2.6 dtaidistance==2.5.1 tslearn==0.6.4 aeon==1.6.0

"$work/venv/bin/python" - 2> "$work/errors" <<'PY' || { tail -n 3 "$work/errors"; exit 1; }
import numpy as np
from aeon.distances import dtw_distance
from dtaidistance import dtw
from tslearn.metrics import dtw as tslearn_dtw

wave = np.array([0.0, 0, 1, 2, 1, 0, 0, 0])
late = np.roll(wave, 1)


def by_tslearn(radius: int) -> float:
    return float(tslearn_dtw(wave, late, global_constraint="sakoe_chiba", sakoe_chiba_radius=radius))


first, second = float(dtw.distance(wave, late, window=1)), float(dtw.distance(wave, late, window=2))
radius, fraction = by_tslearn(1), float(dtw_distance(wave, late, window=1 / 8))
none, square = by_tslearn(0), float(dtw_distance(wave, late, window=0.124))
print(f"one step: dtaidistance window=1 {first}, window=2 {second} | tslearn radius=1 {radius}"
      f" | aeon window=1/8 {fraction}")
print(f"no warping: dtaidistance {first} | tslearn {none} | aeon {square}")
assert float(np.linalg.norm(wave - late)) == 2, "the input changed"
assert second == radius == fraction == 0, "one step of warping changed"
assert first == 2, "CHANGED: dtaidistance's window no longer counts the diagonal"
assert none == 2 and square == 4, "CHANGED: aeon's distance is a root now, or its window is not rounded down"
PY
