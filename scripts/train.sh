# Sourced by the training scripts: environment variables -> flags -> one logged run.
#
# A flag is passed only where its variable is set and not empty, so every default has its one home
# in utils/config.py. Relative paths are counted from PROJECT.
# shellcheck shell=bash
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

# variable:flag
SHARED_FLAGS=(
    DATA:data ROOT_PATH:root_path CHECKPOINTS:checkpoints COMMENT:model_comment
    LLM_MODEL:llm_model LLM_PATH:llm_model_path LLM_LAYERS:llm_layers
    SEQ_LEN:seq_len LABEL_LEN:label_len PRED_LEN:pred_len
    BATCH:batch_size D_MODEL:d_model D_FF:d_ff N_HEADS:n_heads
    TRAIN_EPOCHS:train_epochs PATIENCE:patience LEARNING_RATE:learning_rate DROPOUT:dropout
    SAVE_STEPS:save_steps SAVE_TOTAL_LIMIT:save_total_limit
    RESUME_FROM:resume_from_checkpoint RESUME_COUNTER:resume_counter SEED:seed
)
MODULE_FLAGS=(
    N_SCALES:n_scales LAMBDA_TREND:lambda_trend
    TOP_K:top_k LAMBDA_RETRIEVAL:lambda_retrieval D_REPR:d_repr
)

FLAGS=()

# Append the flags of the variables in the list "$@" that have a value.
add_values() {
    local pair variable
    for pair in "$@"; do
        variable="${pair%%:*}"
        if [[ -n "${!variable:-}" ]]; then
            FLAGS+=("--${pair#*:}" "${!variable}")
        fi
    done
}

# Whether the switch named $1 (default $2) is on; anything but 0 and 1 ends the script.
is_on() {
    local value="${!1:-$2}"
    case "$value" in
        1) return 0 ;;
        0) return 1 ;;
        *) say "$1: expected 0 or 1, found $value"; exit 2 ;;
    esac
}

# Append --$3 where the variable $1 (default $2) is 1, and --no-$3 where it is 0; without a value
# and a default, neither.
add_switch() {
    [[ -n "${!1:-$2}" ]] || return 0
    if is_on "$1" "$2"; then FLAGS+=("--$3"); else FLAGS+=("--no-$3"); fi
}

# Whether the run goes on from a checkpoint, by the variable or by a word of the command line.
resumes() {
    local word
    [[ -n "${RESUME_FROM:-}" ]] && return
    for word in "$@"; do
        [[ "$word" == --resume_from_checkpoint* ]] && return
    done
    return 1
}

# The flags of TAPR and GRA-M. "$@" are the words of the command line.
add_modules() {
    add_switch USE_TAPR 1 use_tapr
    add_switch USE_GRAM 1 use_gram
    add_values "${MODULE_FLAGS[@]}"
    # A resumed run restores its own memory, and without GRA-M there is none to build.
    if is_on BUILD_MEMORY 1 && is_on USE_GRAM 1 && [[ " $* " != *" --no-use_gram "* ]] && ! resumes "$@"; then
        FLAGS+=(--build_memory)
    fi
}

# Run PROJECT/$1 with FLAGS and the words after $1 and $2; $2 names the log file.
run_logged() {
    local entry="$1" name="$2" project log_dir log
    shift 2
    project="${PROJECT:-$PROJECT_ROOT}"
    log_dir="${LOG_DIR:-logs}"
    choose_launcher "${FLAGS[@]}" "$@"
    if [[ "${PRINT_COMMAND:-0}" == 1 ]]; then
        printf '%q ' "${LAUNCH[@]}" "$entry" "${FLAGS[@]}" "$@"
        printf '\n'
        return
    fi
    ensure_venv
    cd "$project"
    mkdir -p "$log_dir"
    log="$log_dir/$(date +%Y%m%d-%H%M%S)-$name-$$.log"
    say "Log: $log"
    # tee outlives Ctrl-C, so that a run that is interrupted can still say what it saved.
    PYTHONUNBUFFERED=1 "${LAUNCH[@]}" "$PROJECT_ROOT/$entry" "${FLAGS[@]}" "$@" 2>&1 | tee -i "$log"
}
