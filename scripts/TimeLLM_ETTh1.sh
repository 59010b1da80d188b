#!/usr/bin/env bash
# Time-LLM, the baseline, on ETTh1. Every setting is an environment variable:
#
#   bash scripts/TimeLLM_ETTh1.sh
#   LLM_LAYERS=6 BATCH=8 bash scripts/TimeLLM_ETTh1.sh
#
# The variables are those of TimeLLM_ETTh1_enhanced.sh (its table tells their defaults) without those
# of TAPR and GRA-M. Further flags go at the end; PRINT_COMMAND=1 shows the command and runs nothing.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/train.sh"

add_values "${SHARED_FLAGS[@]}"
add_switch DETERMINISTIC "" deterministic
run_logged run_main.py TimeLLM_ETTh1 "$@"
