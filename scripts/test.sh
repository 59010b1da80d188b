#!/usr/bin/env bash
# The tests, with their coverage: scripts/test.sh [--all] [words for pytest]
#
# --all adds the slow tests and asks for 90% line coverage. Real-data tests need ETT_ROOT, the
# folder of ETTh1.csv, and skip without it. Works from any directory; paths count from the project.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$PROJECT_ROOT"

selection=(-m "not slow")
words=()
for word in "$@"; do
    if [[ "$word" == --all ]]; then
        selection=(--cov-fail-under=90)
    else
        words+=("$word")
    fi
done

ensure_venv
export HF_HUB_OFFLINE=1
# Two at a time: each test uses one thread. A file stays on one worker, whose fixtures it shares.
exec "$PYTHON" -m pytest -q --numprocesses 2 --dist loadfile --durations=20 --cov --cov-report=term:skip-covered \
    "${selection[@]}" ${words[@]+"${words[@]}"}
