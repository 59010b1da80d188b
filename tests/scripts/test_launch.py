"""What starts a run: scripts/launch.sh on machines of all kinds, and real runs where a CPU can tell."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import is_deepspeed_available

from utils.paths import PROJECT_ROOT

SCRIPT = PROJECT_ROOT / "scripts/TimeLLM_ETTh1_enhanced.sh"
CONFIGS = PROJECT_ROOT / "scripts/accelerate"
PYTHON = str(PROJECT_ROOT / ".venv/bin/python")
TORCHRUN = [PYTHON, "-m", "torch.distributed.run"]
ACCELERATE = [PYTHON, "-m", "accelerate.commands.launch", "--config_file"]
QUIET = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
TOOLS = ("bash", "dirname", "getconf", "grep", "head", "env")


@pytest.fixture
def machine(tmp_path):
    """A PATH with the tools that the scripts take, and no graphics card unless a test adds one."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found is not None
        (folder / tool).symlink_to(found)
    return folder


def add_tool(machine: Path, name: str, text: str) -> None:
    path = machine / name
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)


def add_gpus(machine: Path, count: int) -> None:
    lines = "".join(f"GPU {i}: a card (UUID: GPU-{i})\\n" for i in range(count))
    add_tool(machine, "nvidia-smi", f"printf '{lines}'")


def printed(machine: Path, *words: str, **environment: str) -> tuple[list[str], str]:
    """The words before the entry point, and what was said."""
    done = subprocess.run(
        ["bash", str(SCRIPT), *words],
        env={"PATH": str(machine), "PRINT_COMMAND": "1", **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    command = shlex.split(done.stdout)
    return command[: command.index("run_main_enhanced.py")], done.stderr


def value(command: Sequence[str], flag: str) -> str:
    return command[command.index(flag) + 1]


def test_one_process_without_a_gpu(machine):
    command, said = printed(machine)
    assert command == [PYTHON] and said == "No GPU is used: one process on the CPU\n"


def test_several_processes_on_a_cpu_share_its_threads(machine):
    """accelerate launch would start one."""
    add_tool(machine, "getconf", "echo 7")
    command, said = printed(machine, NUM_PROCESSES="3")
    assert command == [*TORCHRUN, "--nproc_per_node", "3", "--standalone"]
    assert said == "No GPU is used: 3 processes on the CPU, 2 thread(s) each\n"
    assert "5 thread(s) each" in printed(machine, NUM_PROCESSES="3", OMP_NUM_THREADS="5")[1]
    assert "1 thread(s) each" in printed(machine, NUM_PROCESSES="9")[1]


@pytest.mark.parametrize(("gpus", "config", "processes"), [(1, "single_gpu", "1"), (4, "multi_gpu", "4")])
def test_each_gpu_gets_a_process(machine, gpus, config, processes):
    add_gpus(machine, gpus)
    command, said = printed(machine)
    assert command == [*ACCELERATE, str(CONFIGS / f"{config}.yaml"), "--num_processes", processes]
    assert f"{gpus} GPU(s): {processes} process(es)" in said


def test_what_the_user_asks_of_gpus_is_done(machine):
    add_gpus(machine, 4)
    assert value(printed(machine, NUM_PROCESSES="2")[0], "--num_processes") == "2"
    assert value(printed(machine, CUDA_VISIBLE_DEVICES="1,3")[0], "--num_processes") == "2"
    assert value(printed(machine, ACCELERATE_CONFIG="my.yaml")[0], "--config_file") == "my.yaml"
    for nothing in ("", "-1"):
        assert printed(machine, CUDA_VISIBLE_DEVICES=nothing)[0] == [PYTHON]
    assert printed(machine, "--cpu")[0] == [PYTHON]


FSDP = str(CONFIGS / "fsdp.yaml")
ZERO = str(CONFIGS / "deepspeed_zero2.yaml")


def test_it_is_said_where_the_llm_is_divided(machine):
    """By the flag or by a file that asks for FSDP, and only where there are several processes."""
    divided = "; the LLM's layers are divided among all 2\n"
    assert printed(machine, "--shard_llm", NUM_PROCESSES="2")[1].endswith(divided)
    assert "divided" not in printed(machine, NUM_PROCESSES="2")[1]
    assert "divided" not in printed(machine, "--shard_llm")[1]
    add_gpus(machine, 2)
    command, said = printed(machine, ACCELERATE_CONFIG=FSDP)
    assert command == [*ACCELERATE, FSDP, "--num_processes", "2"] and said.endswith(divided)
    assert printed(machine, "--shard_llm")[1].endswith(divided)
    assert "divided" not in printed(machine, NUM_PROCESSES="1", ACCELERATE_CONFIG=FSDP)[1]
    assert "divided" not in printed(machine, ACCELERATE_CONFIG=str(CONFIGS / "multi_gpu.yaml"))[1]


def test_accelerate_starts_what_asks_for_fsdp_on_a_cpu_too(machine):
    """Its options are the run's to check, whatever the machine; other files are for GPUs."""
    command, said = printed(machine, ACCELERATE_CONFIG=FSDP, NUM_PROCESSES="3")
    assert command == [*ACCELERATE, FSDP, "--num_processes", "3"]
    assert said.startswith("No GPU is used: 3 process(es) on the CPU by accelerate launch with")
    command, said = printed(machine, ACCELERATE_CONFIG=str(CONFIGS / "multi_gpu.yaml"), NUM_PROCESSES="2")
    assert command[:3] == TORCHRUN and said.startswith("ACCELERATE_CONFIG is not read: without a GPU")


def test_it_is_said_where_deepspeed_divides_what_is_trained(machine):
    divided = "; gradients and optimizer are divided among all 2\n"
    command, said = printed(machine, ACCELERATE_CONFIG=ZERO, NUM_PROCESSES="2")
    assert command == [*ACCELERATE, ZERO, "--num_processes", "2"] and said.endswith(divided)
    assert said.startswith("No GPU is used: 2 process(es) on the CPU by accelerate launch with")
    add_gpus(machine, 2)
    assert printed(machine, ACCELERATE_CONFIG=ZERO)[1].endswith(divided)


def test_several_machines_with_gpus(machine):
    add_gpus(machine, 2)
    nodes = {"NNODES": "3", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1234"}
    command, said = printed(machine, **nodes)
    assert value(command, "--config_file") == str(CONFIGS / "multi_node.yaml")
    where = [value(command, f"--main_process_{part}") for part in ("ip", "port")]
    numbers = [value(command, f"--{flag}") for flag in ("num_processes", "num_machines", "machine_rank")]
    assert where == ["10.0.0.1", "1234"] and numbers == ["6", "3", "1"]
    assert "machine 1 of 3, the first at 10.0.0.1:1234" in said


def test_a_slurm_job_is_known_by_its_variables(machine):
    add_gpus(machine, 1)
    many = "for ((i = 7; i < 20000; i++)); do echo node$i; done"  # more than a pipe holds
    add_tool(machine, "scontrol", many)
    job = {"SLURM_NNODES": "2", "SLURM_NODEID": "1", "SLURM_JOB_NODELIST": "node[7-8]"}
    command, _ = printed(machine, **job)
    assert [value(command, f) for f in ("--machine_rank", "--main_process_ip")] == ["1", "node7"]


@pytest.mark.parametrize(
    ("gpus", "environment", "said"),
    [
        (0, {"NUM_PROCESSES": "many"}, "NUM_PROCESSES: expected a whole number from 1 on, found many"),
        (0, {"NUM_PROCESSES": "0"}, "NUM_PROCESSES: expected a whole number from 1 on, found 0"),
        (2, {"NUM_PROCESSES": "3"}, "NUM_PROCESSES: expected at most 2, the GPUs of this machine, found 3"),
        (0, {"NNODES": "2", "NODE_RANK": "0"}, "expected MASTER_ADDR, the first machine's address"),
        (0, {"NNODES": "2", "MASTER_ADDR": "h", "NODE_RANK": "2"}, "NODE_RANK from 0 to 1"),
    ],
)
def test_what_can_not_be_started_is_refused(machine, gpus, environment, said):
    add_gpus(machine, gpus)
    done = subprocess.run(
        ["bash", str(SCRIPT)], env={"PATH": str(machine), **environment}, capture_output=True, text=True
    )
    assert done.returncode == 2 and said in done.stderr


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)
def test_accelerate_reads_every_configuration(path):
    """It refuses keys that it does not know. That these run on GPUs is not shown by it."""
    config = load_config_from_file(str(path))
    assert config.num_processes >= 1 and not config.use_cpu


# --- real runs


@pytest.fixture
def words(write_series, tiny_settings, as_words, tmp_path) -> list[str]:
    """Flags of a tiny run of three steps."""
    settings = tiny_settings(write_series(tmp_path / "short.csv", 91), tmp_path / "checkpoints")
    return as_words({**settings, "max_steps": 3})


def start(tmp_path: Path, words: list[str], **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["bash", str(SCRIPT), *words],
        env={**os.environ, **QUIET, "LOG_DIR": str(tmp_path / "logs"), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def check_run(tmp_path: Path, said: str, *, processes: int) -> None:
    (folder,) = (tmp_path / "checkpoints").glob("long_term*")
    assert json.loads((folder / "results.json").read_text())["last"]["test"]["windows"] == 11
    assert f"(batch 4 x {processes} process(es) x 1 pass(es))" in said
    assert len(list(folder.glob("checkpoint"))) == 1


@pytest.mark.slow
def test_a_divided_llm_by_the_script_and_accelerate(tmp_path, words):
    """Its launcher and our file for FSDP, as on GPUs."""
    run = start(tmp_path, words, NUM_PROCESSES="2", ACCELERATE_CONFIG=FSDP)
    said, _ = run.communicate(timeout=200)
    assert run.returncode == 0, said[-3000:]
    check_run(tmp_path, said, processes=2)
    assert "by accelerate launch with" in said and "the LLM's layers are divided among all 2" in said
    assert "--shard_llm: the LLM's frozen layers (" in said and "divided among 2 processes" in said


@pytest.mark.slow
@pytest.mark.skipif(
    not is_deepspeed_available(), reason="DeepSpeed is not installed (requirements-deepspeed.txt)"
)
def test_deepspeed_by_accelerate(tmp_path, words):
    """What the script starts, on the Python of this test, where DeepSpeed is."""
    asked = {**os.environ, "PRINT_COMMAND": "1", "NUM_PROCESSES": "2", "ACCELERATE_CONFIG": ZERO}
    shown = subprocess.run(
        ["bash", str(SCRIPT), *words], env=asked, capture_output=True, text=True, check=True
    )
    command = [sys.executable, *shlex.split(shown.stdout)[1:]]
    env = {**os.environ, **QUIET, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, cwd=PROJECT_ROOT, env=env, capture_output=True, text=True, timeout=200)
    assert run.returncode == 0, run.stderr[-3000:]
    check_run(tmp_path, run.stdout, processes=2)
    assert "DeepSpeed: gradients and optimizer are divided among 2 process(es), ZeRO-2" in run.stdout


@pytest.mark.slow
def test_two_machines_on_one(tmp_path, words, free_port):
    """Two starts that find each other by an address, as those on two machines would."""
    nodes = {"NNODES": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    runs = [start(tmp_path, words, NODE_RANK=str(rank), **nodes) for rank in range(2)]
    said = [run.communicate(timeout=200)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    check_run(tmp_path, said[0], processes=2)
