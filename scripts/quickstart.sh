#!/usr/bin/env bash
# From a fresh checkout to a trained model, its scores beside naive forecasts, and a plot.
#
#   bash scripts/quickstart.sh              about 10 minutes on two CPU cores after the installation
#   bash scripts/quickstart.sh --seed 7     flags of run_main_enhanced.py may follow
#
# A second call reuses what the first one made. Relative paths are counted from the project's folder.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

ensure_venv
cd "$PROJECT_ROOT"
exec "$PYTHON" -m scripts.quickstart "$@"
