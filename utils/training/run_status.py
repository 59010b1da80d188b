"""Whether a run is under way, and how it ended: ``status.json`` in its folder.

A process that is killed cannot say so; a reader looks whether it is still there (`is_alive`).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import psutil

from utils.errors import UserError
from utils.training import run_folder as folders
from utils.training.stopping import RunStopped

STATUS_FILE = "status.json"
SAME_START = 2.0
"""Seconds by which two readings of a process's start may differ."""


@dataclass(frozen=True)
class RunStatus:
    """What the process of a run said last."""

    state: Literal["running", "finished", "stopped", "failed"]
    message: str
    """Why it stopped or failed, one line."""
    host: str
    pid: int
    process_began: float
    """Seconds since 1970: with ``pid`` it tells a process from a later one of the same number."""
    updated: str
    """ISO time in UTC."""


@contextmanager
def status_kept(folder: Path, *, writes: bool) -> Iterator[None]:
    """Keep ``status.json`` true while the block runs and after it; processes that do not write do nothing."""
    if not writes:
        yield
        return
    _write(folder, "running")
    try:
        yield
    except RunStopped as stopped:
        _write(folder, "stopped", stopped.message)
        raise
    except BaseException as error:
        first_line = str(error).split("\n")[0]
        _write(folder, "failed", f"{type(error).__name__}: {first_line}".removesuffix(": "))
        raise
    _write(folder, "finished")


def read_status(folder: Path) -> RunStatus | None:
    """What the run in ``folder`` said last; None where it was made before there was such a file.

    Raises:
        ValueError: the file is not what `status_kept` writes.
    """
    path = folder / STATUS_FILE
    if not path.is_file():
        return None
    try:
        return RunStatus(**folders.read_json(path))
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: expected the status of a run, found: {error}") from error


def is_alive(status: RunStatus) -> bool | None:
    """Whether the process that wrote ``status`` still runs; None where another machine would know."""
    if status.host != socket.gethostname():
        return None
    try:
        began = psutil.Process(status.pid).create_time()
    except psutil.NoSuchProcess:
        return False
    return abs(began - status.process_began) < SAME_START


def _write(
    folder: Path, state: Literal["running", "finished", "stopped", "failed"], message: str = ""
) -> None:
    status = RunStatus(
        state=state,
        message=message,
        host=socket.gethostname(),
        pid=os.getpid(),
        process_began=psutil.Process().create_time(),
        updated=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    folders.write_json(folder / STATUS_FILE, asdict(status))
