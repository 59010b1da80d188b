"""Signals and the time limit: what they stop, when, and that nothing is lost."""

from __future__ import annotations

import os
import signal
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import run_main
from layers.GRAM import PatternValueDualRetriever
from tests.processes import python
from tests.utils.training.comparing import last_payload, load, records, unequal
from utils.config import Config
from utils.training import checkpoint as checkpoints
from utils.training import stopping
from utils.training.experiment import RunResult
from utils.training.metrics import ScoreSums
from utils.training.objective import Objective
from utils.training.stopping import RunStopped, StopRequest

SETTINGS: dict[str, Any] = {
    "use_tapr": True,
    "use_gram": True,
    "train_epochs": 2,
    "eval_steps": 4,
    "save_steps": 5,
    "save_total_limit": 0,
    "eval_batch_size": 2,
    "dropout": 0.2,
}
"""Two epochs of 11 steps; validations of 3 batches, tests of 9."""


def signal_at(monkeypatch: Any, owner: Any, method: str, call: int, number: int) -> None:
    """Send this process a signal right before the ``call``-th call of a method."""
    original: Callable[..., Any] = getattr(owner, method)
    calls = []

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), number)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, method, wrapped)


MOMENTS = {
    "step": (Objective, "__call__", 7, "after optimizer step 7"),
    "step before a validation": (Objective, "__call__", 8, "after optimizer step 8"),
    "validation": (ScoreSums, "add", 2, "after optimizer step 4"),
    "last batch of a validation": (ScoreSums, "add", 3, "after optimizer step 5"),
    "validation at the epoch's border": (ScoreSums, "add", 7, "after optimizer step 12"),
    "last step": (Objective, "__call__", 22, "after optimizer step 22"),
    "test of the last weights": (ScoreSums, "add", 20, "in the test"),
}


@pytest.fixture(scope="module")
def whole(series_file, tiny_settings, tmp_path_factory) -> RunResult:
    """The run that is never stopped."""
    settings = {**tiny_settings(series_file, tmp_path_factory.mktemp("whole")), **SETTINGS}
    return run_main.train(Config.from_flat(settings), model="TimeLLM_Enhanced")


QUICK = ("step before a validation", "validation", "test of the last weights")


@pytest.mark.parametrize(
    "moment", [pytest.param(m, marks=[] if m in QUICK else [pytest.mark.slow]) for m in MOMENTS]
)
def test_a_stopped_run_goes_on_as_if_nothing_had_been(start_run, whole, monkeypatch, moment):
    """Finish the step, save, say how to go on; then weights, moments, random state and metrics equal
    those of the run that was never stopped, to the bit."""
    owner, method, call, place = MOMENTS[moment]
    with monkeypatch.context() as patch:
        signal_at(patch, owner, method, call, signal.SIGTERM)
        with pytest.raises(RunStopped) as caught:
            start_run(**SETTINGS)
    assert caught.value.code == 75
    said = caught.value.message
    assert said.startswith(f"stopped by SIGTERM {place}; go on with the same command and")
    path = said.split("--resume_from_checkpoint ")[1]
    assert checkpoints.load(Path(path))
    resumed = start_run(**SETTINGS, resume_from_checkpoint=path)
    assert said in (resumed.run_dir / "run.log").read_text()
    different = unequal(last_payload(whole.run_dir), last_payload(resumed.run_dir))
    assert not [u for u in different if not u.startswith(("/config/resume_from", "/config/checkpoints"))]
    assert records(resumed.run_dir) == records(whole.run_dir)
    assert resumed.results["best"] == whole.results["best"]
    assert not unequal(
        load(whole.run_dir / "checkpoint")["model"], load(resumed.run_dir / "checkpoint")["model"]
    )


def test_a_signal_while_the_memory_is_built_stops_at_once(start_run, monkeypatch, tmp_path):
    """There is nothing to save yet, and nothing half-made is left to go on from."""
    with monkeypatch.context() as patch:
        signal_at(patch, PatternValueDualRetriever, "refresh", 1, signal.SIGINT)
        with pytest.raises(RunStopped, match="75") as caught:
            start_run(**SETTINGS, resume_from_checkpoint="auto")
    assert "while setting up: nothing is lost" in caught.value.message
    assert not list((tmp_path / "checkpoints").glob("*/checkpoint*"))
    assert start_run(max_steps=1, use_gram=True, resume_from_checkpoint="auto").results["last"]["step"] == 1


def test_a_stop_is_saved_even_where_step_checkpoints_are_off(start_run, monkeypatch):
    with monkeypatch.context() as patch:
        signal_at(patch, Objective, "__call__", 3, signal.SIGTERM)
        with pytest.raises(RunStopped, match="75") as caught:
            start_run(save_steps=0)
    assert "checkpoint_step_3/checkpoint.pt" in caught.value.message
    resumed = start_run(save_steps=0, resume_from_checkpoint="auto")
    assert "resumed at optimizer step 3" in (resumed.run_dir / "run.log").read_text()


def test_a_time_limit_saves_and_stops_like_a_signal(start_run):
    """A job with a wall-clock limit is killed at its end: the run must be gone before."""
    with pytest.raises(RunStopped, match="75") as caught:
        start_run(max_minutes=1e-6)
    assert caught.value.message.startswith("stopped by --max_minutes 1e-06 after optimizer step 1;")
    again = start_run(resume_from_checkpoint="auto")
    assert again.results["last"]["step"] == 11


def test_the_time_limit_leaves_room_for_the_longest_wait_seen(monkeypatch):
    """Stopping at the limit itself would be too late: a step and a save come after it."""
    now = [0.0]
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now[0])
    request = StopRequest(max_minutes=1)
    found = []
    for moment in (20, 21, 22, 30, 39, 43, 44):
        now[0] = moment
        found.append(request.asked())
    assert found == [False] * 5 + [True, True]  # 9 s between two looks: 18 s are kept free of the 60
    assert request.reason == "--max_minutes 1"


def test_signals_are_given_back(tmp_path):
    """A notebook that ran a training must be interruptible again."""
    before = [signal.getsignal(n) for n in stopping.SIGNALS]
    with StopRequest() as request:
        request.can_wait = True
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.asked() and request.reason == "SIGTERM"
    assert [signal.getsignal(n) for n in stopping.SIGNALS] == before


SCRIPT = """
import os, signal, time
from utils.training.stopping import StopRequest
with StopRequest() as request:
    request.can_wait = True
    os.kill(os.getpid(), signal.SIGINT)
    assert request.asked()
    {more}
print("alive")
"""


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ("os.kill(os.getpid(), signal.SIGINT)", -signal.SIGINT),
        ("os.kill(os.getpid(), signal.SIGTERM)", 0),
        (
            "child = os.fork()\n    if not child: os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)\n"
            "    assert os.waitpid(child, 0)[1] == signal.SIGTERM",
            0,
        ),
    ],
    ids=["second SIGINT kills", "SIGTERM after SIGINT waits", "a worker dies of its parent's SIGTERM"],
)
def test_what_a_second_signal_does(more, status):
    """Someone who presses Ctrl-C twice wants out, checkpoint or not."""
    done = python("-c", textwrap.dedent(SCRIPT).format(more=more))
    assert done.returncode == status, done.stderr
    assert ("alive" in done.stdout) == (status == 0)
