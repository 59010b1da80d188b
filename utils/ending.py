"""How every command ends: a user's error is one message, a fault of ours one line beside its traceback.

A run's traceback lies in its log (`kept_in`); one of several processes speaks, so that a mistake that all
of them find is said once.
"""

from __future__ import annotations

import functools
import os
import re
import sys
import time
import traceback
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from utils.errors import UserError

USER_STATUS = 2
"""Exit status where a user can mend what is wrong."""
FAULT_STATUS = 1
"""Exit status of a fault of the program."""
_LOCAL = (
    "LOCAL_RANK",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "MPI_LOCALRANKID",
    "MV2_COMM_WORLD_LOCAL_RANK",
    "SLURM_LOCALID",
)
"""Where launchers number the processes of a machine: torchrun, Open MPI, Intel MPI, MVAPICH2, srun."""
_KEPT = "its traceback: "
_FIRST = "the first failure"
"""Key of the processes' common store."""
_PATIENCE = 2.0
"""Seconds that a process lets the main one speak before it speaks itself."""
_LOOK = 0.05
"""Seconds between two looks at whether it has."""


class OtherProcessError(RuntimeError):
    """Another process has failed and says how; this one ends with it."""


Main = Callable[..., int]


def command(
    main: Main | None = None,
    *,
    parser: Callable[[], ArgumentParser] | None = None,
    others: str = "give them as the run is trained",
) -> Any:
    """A decorator of a command's ``main``: 2 for a user's error and 1 for a fault, said on standard error.

    Args:
        main: gives the status where nothing fails.
        parser: of the command, where it does not take all flags of a run: advice that names others says so.
        others: what to do with flags of a run that the command does not take.
    """

    def decorated(main: Main) -> Main:
        @functools.wraps(main)
        def wrapped(*args: Any, **kwargs: Any) -> int:
            try:
                return main(*args, **kwargs)
            except Exception as error:
                return told(error, advice_on(str(error), parser(), others) if parser is not None else "")

        return wrapped

    return decorated if main is None else decorated(main)


def advice_on(text: str, parser: ArgumentParser, others: str) -> str:
    """A line on the flags that a message names and a command does not take; empty where it takes all."""
    taken = {option for action in parser._actions for option in action.option_strings}
    lacking = [flag for flag in dict.fromkeys(re.findall(r"--[a-z]\w*", text)) if flag not in taken]
    if not lacking:
        return ""
    return f"\n({', '.join(lacking)}: flags of a training run; {others})"


@contextmanager
def errors_kept(log: Path, *, process: int = 0) -> Iterator[None]:
    """What fails inside is written to the end of a run's log (`kept_in`), by whichever process fails."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, OtherProcessError):
            kept_in(log, error, process=process)
        raise


@contextmanager
def ending() -> Iterator[None]:
    """As `command`, for what gives no status: the process ends.

    Raises:
        SystemExit: in place of any error, which is its cause.
    """
    try:
        yield
    except Exception as error:
        raise SystemExit(told(error)) from error


def kept_in(log: Path, error: BaseException, *, process: int = 0) -> None:
    """Write an error to the end of a run's log: a fault with its traceback, a user's error as it is said.

    Any process may write; the error then says where its traceback lies.
    """
    text = str(error) if isinstance(error, UserError) else "".join(traceback.format_exception(error)).rstrip()
    when = datetime.now().isoformat(" ", "milliseconds").replace(".", ",")
    try:
        with log.open("a", encoding="utf-8") as file:
            file.write(f"{when} ERROR process {process}: {text}\n")
    except OSError:  # the disk that ended the run; what is not kept is shown
        return
    error.add_note(f"{_KEPT}{log}")


def told(error: Exception, advice: str = "") -> int:
    """Say an error on standard error, where no other process has; the exit status.

    ``advice`` is put behind a user's error.
    """
    users, is_echo = isinstance(error, UserError), isinstance(error, OtherProcessError)
    own = USER_STATUS if users else FAULT_STATUS
    first, status = _first_failure(own)
    kept = [note for note in getattr(error, "__notes__", ()) if note.startswith(_KEPT)]
    if users and first:
        print(f"error: {error}{advice}", file=sys.stderr, flush=True)
    elif not users and not is_echo and not kept and (first or status != USER_STATUS):
        traceback.print_exception(error)
    elif not users and not is_echo and first:
        words = traceback.format_exception_only(error)[0].strip().splitlines()[0]
        print(f"error: {words} (a fault of this program; {kept[0]})", file=sys.stderr, flush=True)
    return status


def first_of_machine() -> bool:
    """Whether this process is the first, or the only one, that a launcher started on this machine."""
    return next((os.environ[name] for name in _LOCAL if name in os.environ), "0") == "0"


def _first_failure(own: int) -> tuple[bool, int]:
    """Whether this process is the first that says how it failed, and the status of the first.

    Before processes know each other the first of each machine is.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return first_of_machine() or own == FAULT_STATUS, own
    store = distributed.distributed_c10d._get_default_store()
    rank = distributed.get_rank()
    try:
        patience = time.monotonic() + _PATIENCE
        while rank and time.monotonic() < patience and not store.check([_FIRST]):
            time.sleep(_LOOK)
        first, status = store.compare_set(_FIRST, "", f"{rank} {own}").decode().split()
    except RuntimeError:  # the store's process is gone
        return True, own
    return int(first) == rank, int(status)
