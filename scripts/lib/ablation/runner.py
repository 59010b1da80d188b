"""Runs the cells of studies: each in a process of its own, as a user would start it."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Any, NoReturn

from tqdm import tqdm

from scripts.lib.ablation.cells import Cell
from scripts.lib.ablation.store import finished_run, note_attempt
from utils.paths import PROJECT_ROOT
from utils.threads import own_cores
from utils.training.time_estimate import clock_text

GRACE = 120.0
"""Seconds that a run is given to finish its step and save, once it is asked to stop."""
PAUSE = 0.2
"""Seconds between two looks at the processes."""
SILENCE = 60.0
"""Seconds between two lines of the bar where it is written to a file."""
LOG = "cell.log"
LOCK = "lock"
TAIL = 12
"""Last lines of a failed cell's log that are shown."""


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    cells: list[Cell]
    folder: Path
    status: int
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether there are results."""
        return self.status == 0 and finished_run(self.folder) is not None

    def last_words(self) -> str:
        """The end of the cell's log."""
        lines = (self.folder / LOG).read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(f"    {line}" for line in lines[-TAIL:])


@dataclass
class _Running:
    cells: list[Cell]
    folder: Path
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    lock: IO[str]
    began: float = field(default_factory=time.monotonic)


class Interrupt:
    """As a context: SIGINT and SIGTERM are noted; a second one asks to hurry."""

    def __init__(self) -> None:
        """Nothing asked yet."""
        self.asked = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        """Take both signals over."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        """Give them back to whoever had them."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked += 1


@dataclass
class Outcome:
    """What became of a queue."""

    done: list[Ended] = field(default_factory=list)
    failed: list[Ended] = field(default_factory=list)
    busy: list[list[Cell]] = field(default_factory=list)
    """Cells that another runner is working on."""
    stopped: bool = False


def command(cell: Cell, folder: Path) -> list[str]:
    """The command of a cell, which goes on where an earlier one was cut off."""
    return [
        *(sys.executable, str(PROJECT_ROOT / cell.entry), *cell.words),
        *("--checkpoints", str(folder), "--resume_from_checkpoint", "auto"),
    ]


def run_queue(
    queue: Sequence[list[Cell]],
    *,
    runs: Path,
    jobs: int,
    before: int,
    finished: Callable[[Ended], None],
    seconds_left: Callable[[Sequence[list[Cell]]], float],
) -> Outcome:
    """Run every item of ``queue``, at most ``jobs`` at once, with a bar.

    Args:
        queue: cells that are one run each, see `scripts.lib.ablation.cells.queue_of`.
        runs: folder of the cells' folders.
        jobs: processes at once.
        before: items that were finished before, for the bar.
        finished: called with each run that has results, as soon as it ends.
        seconds_left: estimate for the cells that are still to run, one after the other.

    SIGINT and SIGTERM are handed to the runs, which save and end; the queue then ends.
    """
    outcome, waiting = Outcome(), list(queue)
    running: list[_Running] = []
    told = ("", 0.0)
    bar = tqdm(
        total=before + len(queue),
        initial=before,
        desc="cells",
        unit="cell",
        bar_format="{l_bar}{bar}| {n}/{total}{postfix}",
    )
    with bar, Interrupt() as interrupt, _nothing_left_running(running):
        while running or (waiting and not interrupt.asked):
            while waiting and len(running) < jobs and not interrupt.asked:
                item = waiting.pop(0)
                begun = _start(item, runs / item[0].key, jobs)
                if begun is None:
                    outcome.busy.append(item)
                    bar.update()
                else:
                    running.append(begun)
            told = _tell(bar, told, running, seconds_left([*(r.cells for r in running), *waiting]) / jobs)
            for one in [r for r in running if r.process.poll() is not None]:
                running.remove(one)
                _close(one, outcome, finished)
                bar.update()
            if interrupt.asked and running:
                _stop(running, hurry=lambda: interrupt.asked > 1)
                for one in running:
                    _close(one, outcome, finished, was_stopped=True)
                running.clear()
            time.sleep(PAUSE)
        outcome.stopped = bool(interrupt.asked)
    return outcome


def _tell(
    bar: tqdm[NoReturn], told: tuple[str, float], running: Sequence[_Running], left: float
) -> tuple[str, float]:
    """Show what runs and the time left, when that changes or some time has passed; what was told, when."""
    titles, now = "; ".join(r.cells[0].title for r in running), time.monotonic()
    if told[0] == titles and now - told[1] < (1 if sys.stderr.isatty() else SILENCE):
        return told
    done = max((now - r.began for r in running), default=0.0)
    bar.set_postfix_str(f"{clock_text(max(left - done, 0.0))} left | {titles}")
    return titles, now


def _start(cells: list[Cell], folder: Path, jobs: int) -> _Running | None:
    """Begin a run, or None where another runner, or a run that outlived its own, works in its folder.

    One run at a time is given what a user's is; several share the cores.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / LOCK).open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    environment = {**os.environ, "TQDM_DISABLE": "1"}
    if jobs > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, own_cores() // jobs)))
    log = (folder / LOG).open("ab")
    process = subprocess.Popen(
        command(cells[0], folder),
        stdout=log,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        cwd=PROJECT_ROOT,
        env=environment,
        pass_fds=(lock.fileno(),),  # the lock is held as long as either of us lives
        start_new_session=True,  # Ctrl-C reaches the runner alone, which decides
    )
    return _Running(cells, folder, process, log, lock)


def _close(
    one: _Running, outcome: Outcome, finished: Callable[[Ended], None], *, was_stopped: bool = False
) -> None:
    """Note how a run ended."""
    one.log.close()
    one.lock.close()
    status = one.process.wait()
    ended = Ended(one.cells, one.folder, status, time.monotonic() - one.began)
    note_attempt(one.folder, seconds=ended.seconds, status=status)
    if ended.ok:
        finished(ended)
        outcome.done.append(ended)
    elif not was_stopped:
        outcome.failed.append(ended)
        tqdm.write(f"FAILED (status {status}) {one.cells[0].title}; {one.folder / LOG} ends:")
        tqdm.write(ended.last_words())


def _stop(running: list[_Running], *, hurry: Callable[[], bool]) -> None:
    """Ask the runs to save and end; end them where they do not, or where there is no time."""
    for one in running:
        one.process.terminate()
    deadline = time.monotonic() + GRACE
    while any(r.process.poll() is None for r in running):
        if time.monotonic() > deadline or hurry():
            for one in running:
                one.process.kill()
        time.sleep(PAUSE)


@contextmanager
def _nothing_left_running(running: list[_Running]) -> Iterator[None]:
    """Where the runner itself fails, its runs end with it."""
    try:
        yield
    finally:
        for one in running:
            with suppress(ProcessLookupError):
                one.process.terminate()
