#!/usr/bin/env bash
# The tests: scripts/test.sh [--all] [--cov] [words for pytest]
#
# --all adds the slow tests; --cov measures line coverage, and with --all asks for 90%. Real-data tests need
# ETT_ROOT, the folder of ETTh1.csv, and skip without it. The page of scripts/report.py is opened in a browser: where
# there is none, --all installs Debian's chromium if it may, or says that this test is skipped and why.
# Works from any directory; paths count from the project.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$PROJECT_ROOT"

# A browser and its driver for the tests of the page; without them those tests skip.
ensure_browser() {
    local name obstacle="no apt-get here"
    for name in chromium chromium-browser google-chrome; do
        command -v "$name" >/dev/null && command -v chromedriver >/dev/null && return
    done
    if command -v apt-get >/dev/null; then
        obstacle="apt-get needs root"
        if [[ "$(id -u)" == 0 ]]; then
            say "Installing chromium, for the tests of the page"
            obstacle="apt-get could not install it"
            local patience=(-o Acquire::http::Timeout=30 -o Acquire::Retries=1)
            apt-get "${patience[@]}" update >&2 &&
                apt-get "${patience[@]}" install -y --no-install-recommends chromium chromium-driver >&2 &&
                return
        fi
    fi
    say "SKIPPED: the page in a browser (tests/scripts/test_report_page.py): no chromium with chromedriver," \
        "and $obstacle. By hand: apt-get install chromium chromium-driver"
}

all=0
coverage=0
words=()
for word in "$@"; do
    case "$word" in
        --all) all=1 ;;
        --cov) coverage=1 ;;
        *) words+=("$word") ;;
    esac
done
selection=()
if ((all)); then
    ensure_browser
else
    selection+=(-m "not slow")
fi
if ((coverage)); then
    selection+=(--cov --cov-report=term:skip-covered)
    if ((all)); then selection+=(--cov-fail-under=90); fi
fi

ensure_venv
export HF_HUB_OFFLINE=1
# Two at a time: each test uses one thread. A file stays on one worker, whose fixtures it shares. The order is
# that of tests/conftest.py; xdist's own puts files with few tests last, however long those take.
exec "$PYTHON" -m pytest -q --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations=20 \
    ${selection[@]+"${selection[@]}"} ${words[@]+"${words[@]}"}
