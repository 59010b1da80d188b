"""One run of `scripts.crash_test` in processes of its own, watched, and killed where that is wanted.

The first process reports on a pipe when each phase begins and ends. A kill comes either from outside,
a share of the phase's usual time after it began, or, within saves, from inside right before one of
the calls that touch the disk.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import select
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeVar

import torch
from accelerate.utils.other import get_free_port

import run_main_enhanced  # noqa: F401  everything is imported before the first fork
from run_main import train
from utils.config import Config
from utils.training import checkpoint as checkpoints
from utils.training import checkpoint_state as checkpoint_state
from utils.training import experiment, trainer

PHASES = ("start", "memory", "step", "save", "validate", "test")
FAULTS = ("random_state", "sampler")
Result = TypeVar("Result")
PATIENCE = 300
"""Seconds after which a run that says nothing is taken for stuck."""


@dataclass(frozen=True)
class Kill:
    """When to kill a run."""

    phase: str
    turn: int
    """In which of the phase's turns, from 0."""
    delay: float = 0.0
    """Seconds after the turn began."""
    call: int = -1
    """Or right before this call that touches the disk in that turn, from 0; -1 for none."""


@dataclass
class Outcome:
    """What became of a run."""

    run_dir: Path | None = None
    """None where it did not end by itself."""
    turns: list[tuple[str, float, int]] = field(default_factory=list)
    """Each phase that ended: name, seconds, calls that touch the disk."""
    died_in: str = ""
    """The innermost phase that had begun; ``between`` two of them; or ``after the end``."""

    def draw(self, phase: str, drawn: random.Random) -> Kill:
        """A moment within ``phase``, by what this run, which was not killed, took for it."""
        turns = [turn for turn in self.turns if turn[0] == phase]
        number = drawn.randrange(len(turns))
        _, seconds, calls = turns[number]
        if phase == "save" and drawn.random() < 0.7:
            return Kill(phase, number, call=drawn.randrange(calls))
        return Kill(phase, number, delay=0.9 * drawn.random() * seconds)


def start_run(
    settings: dict[str, Any],
    *,
    processes: int,
    log: Path,
    kill: Kill | None = None,
    fault: str | None = None,
) -> Outcome:
    """Run the enhanced model to its end, or to where it is killed; its output goes to ``log``."""
    reader, writer = os.pipe()
    port = get_free_port()
    pids = []
    for rank in range(processes):
        pid = os.fork()
        if not pid:
            os.close(reader)
            _be_process(settings, rank, processes, port, writer if rank == 0 else None, log, kill, fault)
        pids.append(pid)
    os.close(writer)
    with os.fdopen(reader, "rb", buffering=0) as lines:
        outcome = _watch(lines, pids, kill)
    for pid in pids:
        if outcome.run_dir is None:
            _kill_group(pid)
        os.waitpid(pid, 0)
    return outcome


def _watch(lines: BinaryIO, pids: list[int], kill: Kill | None) -> Outcome:
    """Follow a run's report to its end, and kill it from outside when its moment comes."""
    outcome, open_phases, begun = Outcome(), [""], Counter[str]()
    for line in _lines(lines):
        what, _, rest = line.partition(" ")
        if what == "begin":
            open_phases.append(rest)
            if kill and kill.call < 0 and (rest, begun[rest]) == (kill.phase, kill.turn):
                time.sleep(kill.delay)
                for pid in pids:
                    _kill_group(pid)
            begun[rest] += 1
        elif what == "end":
            phase, seconds, calls = rest.split()
            outcome.turns.append((phase, float(seconds), int(calls)))
            open_phases.remove(phase)
        elif what == "done":
            outcome.run_dir = Path(rest)
    outcome.died_in = (open_phases[-1] or "between") if outcome.run_dir is None else "after the end"
    return outcome


def _lines(lines: BinaryIO) -> Iterator[str]:
    """What a run reports, until its end of the pipe is closed."""
    rest = b""
    while True:
        ready, _, _ = select.select([lines], [], [], PATIENCE)
        if not ready:
            raise TimeoutError(f"a run has said nothing for {PATIENCE} s")
        block = lines.read(65536)
        if not block:
            return
        *whole, rest = (rest + block).split(b"\n")
        yield from (line.decode() for line in whole)


def _kill_group(pid: int) -> None:
    """End a process and its data workers, as a power cut would."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:  # it is gone
        return


def apart(function: Callable[..., Result], *args: Any) -> Result:
    """What a function returns, called in a process of its own.

    It may start threads, after which this process could not be forked safely.

    Raises:
        RuntimeError: the function failed; its error has been printed.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def call() -> None:
        sender.send(function(*args))

    process = context.Process(target=call)
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise RuntimeError(f"{function.__name__} failed, its error is above") from None
    finally:
        process.join()


# In the process that runs


def _be_process(
    settings: dict[str, Any],
    rank: int,
    processes: int,
    port: int,
    report: int | None,
    log: Path,
    kill: Kill | None,
    fault: str | None,
) -> NoReturn:
    """Be one process of a run, as a launcher starts it; never returns."""
    os.setsid()
    status = 1
    try:
        with log.open("ab", buffering=0) as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        if processes > 1:
            launched = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
            os.environ.update({name: str(value) for name, value in launched.items()}, MASTER_ADDR="127.0.0.1")
        os.environ["TQDM_DISABLE"] = "1"
        torch.set_num_threads(1)
        _plant(fault)
        reporter = _Reporter(report, kill)
        reporter.listen()
        result = train(Config.from_flat(settings), model="TimeLLM_Enhanced")
        reporter.say(f"done {result.run_dir}")
        status = 0
    except BaseException:  # whatever it is, it is in the log, and this fork must not go on as its parent
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


class _Reporter:
    """Tells the parent when phases begin and end, and kills this process before a call to the disk."""

    def __init__(self, report: int | None, kill: Kill | None) -> None:
        self.report, self.kill = report, kill
        self.begun = Counter[str]()
        self.calls = 0
        self.saving = False
        if report is not None:  # a data worker would hold the pipe open after this process is gone
            os.register_at_fork(after_in_child=lambda: os.close(report))

    def say(self, text: str) -> None:
        """One line; a process without a pipe says nothing."""
        if self.report is not None:
            os.write(self.report, f"{text}\n".encode())

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What happens inside belongs to this phase."""
        self.saving, self.calls = name == "save", 0
        self.say(f"begin {name}")
        began = time.perf_counter()
        yield
        self.begun[name] += 1
        self.saving = False
        self.say(f"end {name} {time.perf_counter() - began:.6f} {self.calls}")

    def listen(self) -> None:
        """Wrap what makes up the phases; the start lasts until the model is prepared."""
        start = self.phase("start")
        start.__enter__()
        prepare = experiment._prepare_model

        def prepare_model(*args: Any) -> None:
            start.__exit__(None, None, None)
            with self.phase("memory"):
                prepare(*args)

        experiment._prepare_model = prepare_model  # type: ignore[assignment]
        checkpoint_state._save = self._within("save", checkpoint_state._save)
        trainer.Trainer.train_step = self._within("step", trainer.Trainer.train_step)  # type: ignore[method-assign]
        evaluate = trainer.Trainer.evaluate

        def evaluate_named(own: Any, loader: Any, *, name: str, **more: Any) -> dict[str, float]:
            with self.phase("validate" if name == "validation" else "test"):
                return evaluate(own, loader, name=name, **more)

        trainer.Trainer.evaluate = evaluate_named  # type: ignore[assignment,method-assign]
        for owner, name in (
            (os, "fsync"),
            (os, "replace"),
            (Path, "unlink"),
            (Path, "rmdir"),
            (Path, "mkdir"),
            (checkpoints._HashedWriter, "write"),
        ):
            setattr(owner, name, self._counted(getattr(owner, name)))

    def _within(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, as a phase."""

        def wrapped(*args: Any) -> Any:
            with self.phase(phase):
                return function(*args)

        return wrapped

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, counted within saves, where this process may be killed before it."""

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if self.saving:
                kill = self.kill
                if kill and (kill.turn, kill.call) == (self.begun["save"], self.calls):
                    os.killpg(os.getpid(), signal.SIGKILL)
                self.calls += 1
            return function(*args, **kwargs)

        return wrapped


def _plant(fault: str | None) -> None:
    """Make this process resume wrongly, in one of two ways."""
    if fault == "random_state":
        checkpoints.restore_random_state = lambda state: None
    if fault == "sampler":
        skip = trainer.skip_first_batches
        trainer.skip_first_batches = lambda loader, batches: skip(loader, batches - 1)
