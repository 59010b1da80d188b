"""Going on with another number of processes, and stopping several at once (gloo, on the CPU)."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from data_provider.data_factory import build_data, evaluation_loader, training_loader
from models.inspection import inspection_lines
from models.registry import MODELS, llm_outline
from tests.utils.training.comparing import last_payload, load, note_items, records
from tests.utils.training.conftest import torchrun
from utils.config import Config
from utils.training import checkpoint as checkpoints
from utils.training.experiment import Builders, run
from utils.types import Batch, DataBundle

pytestmark = pytest.mark.slow

STEPS = 4
"""Where the runs go on: one step into the second epoch of three steps."""
SWITCHES = {
    "use_gram": True,
    "use_tapr": True,
    "train_epochs": 2,
    "save_steps": 1,
    "save_total_limit": 0,
    "eval_steps": 2,
    "memory_size": 20,
}


def watched(settings: dict[str, Any]) -> tuple[list[int], Path]:
    """A run in this process: the training windows in the order they were taken, and its folder."""
    order: list[int] = []

    def loader(bundle: DataBundle, config: Config, **options: Any) -> DataLoader[Batch]:
        note_items(bundle, order)
        return training_loader(bundle, config, **options)

    name = "TimeLLM_Enhanced"
    made = Builders(
        name, MODELS[name], build_data, loader, evaluation_loader, inspection_lines, llm_outline(name)
    )
    return order, run(Config.from_flat(settings), made).run_dir


def cut(run_dir: Path, to: Path) -> Path:
    """A run's folder as it was after `STEPS` steps: its checkpoint."""
    shutil.copytree(run_dir, to)
    for path in checkpoints.step_checkpoints(to):
        if load(path)["global_step"] > STEPS:
            path.unlink()
    return checkpoints.step_path(to, STEPS)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, write_series, tiny_settings, two_processes) -> dict[str, Any]:
    """24 training windows, 8 a step: a run on one process, one on two, and each gone on with otherwise."""
    folder = tmp_path_factory.mktemp("processes")
    common = {
        **tiny_settings(write_series(folder / "short.csv", 91), folder / "checkpoints"),
        **SWITCHES,
        "dropout": 0.0,
    }
    one = {**common, "batch_size": 8, "model_comment": "one"}
    one_order, one_dir = watched(one)
    found = two_processes(
        folder,
        {
            "two": common,
            "one to two": {**one, "resume_from_checkpoint": str(cut(one_dir, folder / "cut one"))},
            "diverging": {**common, "learning_rate": 1e30, "lradj": "constant", "save_steps": 0},
        },
    )
    assert not [p["error"] for name in {*found} - {"diverging"} for p in found[name] if p["error"]]
    two_dir = Path(found["two"][0]["folder"])
    order, two_to_one = watched({**common, "resume_from_checkpoint": str(cut(two_dir, folder / "cut two"))})
    return {
        **found,
        "one": (one_order, one_dir),
        "two to one": (order, two_to_one),
        "common": common,
        "folder": folder,
    }


def test_a_loss_that_is_not_finite_is_the_same_error_in_all_processes(runs):
    """With an error in one alone the other waits for it; with its windows alone half the batch is hidden."""
    one, two = (process["error"] for process in runs["diverging"])
    assert one == two and one.startswith("NonFiniteLossError: the loss is") and "optimizer step 2" in one
    named = [int(row) for part in re.findall(r"rows \[([\d, ]+)\]", one) for row in part.split(",")]
    assert len(named) == len(set(named)) == 8


def all_processes(found: list[dict[str, Any]]) -> list[list[int]]:
    """Training windows of each optimizer step of two processes with 4 windows each, sorted."""
    assert [process["processes"] for process in found] == [2, 2]
    first, second = (process["order"] for process in found)
    return [sorted(first[i : i + 4] + second[i : i + 4]) for i in range(0, len(first), 4)]


def one_process(order: list[int]) -> list[list[int]]:
    return [sorted(order[i : i + 8]) for i in range(0, len(order), 8)]


def test_every_step_takes_the_windows_it_would_have_taken(runs):
    """Refused before: the other process's part of each global batch was missed, or taken twice."""
    steps = one_process(runs["one"][0])
    assert len(steps) == 6 and all(sorted(sum(steps[e : e + 3], [])) == list(range(24)) for e in (0, 3))
    assert all_processes(runs["two"]) == steps
    assert all_processes(runs["one to two"]) == steps[STEPS:]
    assert one_process(runs["two to one"][0]) == steps[STEPS:]


def close(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    for name, tensor in a.items():
        if not name.endswith("key_projection.bias"):  # its gradient is rounding alone
            torch.testing.assert_close(tensor, b[name], rtol=2e-3, atol=2e-5, msg=name)


def test_the_end_is_that_of_the_run_on_the_first_number_of_processes(runs):
    """Within rounding: sums are made in another order. Steps, rates and epochs are equal."""
    one, two = last_payload(runs["one"][1]), last_payload(Path(runs["two"][0]["folder"]))
    two_to_one, one_to_two = (
        last_payload(Path(runs["two to one"][1])),
        last_payload(Path(runs["one to two"][0]["folder"])),
    )
    for whole, resumed, processes in ((two, two_to_one, 1), (one, one_to_two, 2)):
        assert resumed["num_processes"] == processes and whole["num_processes"] != processes
        assert resumed["batch"]["windows"] == whole["batch"]["windows"] == 8
        assert resumed["progress"].keys() == whole["progress"].keys()
        for name in ("epoch", "epoch_steps", "global_step", "counter", "best_step"):
            assert resumed["progress"][name] == whole["progress"][name], name
        assert resumed["scheduler"] == whole["scheduler"]
        assert resumed["config"]["batch_size"] == whole["config"]["batch_size"]
        close(whole["model"], resumed["model"])
    log = (Path(runs["two to one"][1]) / "run.log").read_text()
    assert "took 8 windows a step (4 x 1 pass(es) x 2" in log and "takes 8 windows a step (4 x 2" in log


def test_the_mean_losses_since_the_last_validation_are_carried_over(runs):
    """Each process has sums of its own; with those of the first alone the next validation's line is off."""
    for whole, resumed in (
        (Path(runs["two"][0]["folder"]), Path(runs["two to one"][1])),
        (runs["one"][1], Path(runs["one to two"][0]["folder"])),
    ):
        lines = [[r for r in records(d) if r["event"] == "validation"] for d in (whole, resumed)]
        assert [r["step"] for r in lines[0]] == [r["step"] for r in lines[1]]
        for a, b in zip(*lines, strict=True):
            assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-4)
            assert a["validation"]["mse"] == pytest.approx(b["validation"]["mse"], rel=1e-4)


STOPPED = """
import json, os, signal, sys
from pathlib import Path
from unittest.mock import patch
import run_main
from accelerate.state import AcceleratorState, GradientState, PartialState
from utils.config import Config
from utils.training import trainer
from utils.training.metrics import ScoreSums
from utils.training.objective import Objective
from utils.training.stopping import RunStopped

trainer.ROUNDS_BETWEEN_LOOKS = 1
folder, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
for name, owner, method, call in (("step", Objective, "__call__", 3), ("validation", ScoreSums, "add", 1)):
    original, calls = getattr(owner, method), []

    def spied(*args, **kwargs):
        calls.append(1)
        if len(calls) == call and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args, **kwargs)

    try:
        with patch.object(owner, method, spied):
            config = Config.from_flat({**settings, "checkpoints": str(folder / name)})
            run_main.train(config, model="TimeLLM_Enhanced")
    except RunStopped as stopped:
        said = f"{stopped.code} {PartialState().num_processes} {stopped.message}"
        (folder / f"{name} {os.environ['RANK']}").write_text(said)
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
"""


def test_a_signal_to_one_process_stops_both_at_the_same_step(runs, tmp_path):
    """Were it that process alone, the other would wait for it in the next reduction until it is killed."""
    settings = {**runs["common"], "eval_batch_size": 1}
    script = tmp_path / "stopped.py"
    script.write_text(STOPPED)
    done = torchrun(script, str(tmp_path), json.dumps(settings), count=2)
    assert done.returncode == 0, done.stderr[-3000:]
    for moment, step in (("step", 3), ("validation", 2)):
        for rank, asked in ((0, "another process"), (1, "SIGTERM")):
            said = (tmp_path / f"{moment} {rank}").read_text()
            assert said.startswith(f"75 2 stopped by {asked} after optimizer step {step}; go on"), said
        (run_dir,) = (tmp_path / moment).iterdir()
        again = {**settings, "checkpoints": str(tmp_path / moment), "resume_from_checkpoint": "auto"}
        assert watched(again)[1] == run_dir
        close(last_payload(Path(runs["two"][0]["folder"]))["model"], last_payload(run_dir)["model"])
