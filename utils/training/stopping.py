"""Stopping early without losing anything: by SIGTERM, by SIGINT, or before a time limit.

While a run sets itself up there is nothing to finish, so a signal stops it at once. From the first
training step on a signal is only noted; the training loop looks at it once per optimizer step and
between the batches of an evaluation, agrees with the other processes, saves, and stops.
"""

from __future__ import annotations

import os
import shlex
import signal
import threading
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

STOPPED_STATUS = 75
"""Exit status of a run that can be gone on with: EX_TEMPFAIL of sysexits.h, "try again later"."""
SIGNALS = (signal.SIGTERM, signal.SIGINT)
MARGIN = 2.0
"""Of the longest time between two looks at the clock, kept free before the limit to finish and save."""


class RunStopped(SystemExit):
    """The run stopped early because it was asked to; the message says how to go on."""

    def __init__(self, message: str) -> None:
        """Exits with `STOPPED_STATUS` where nobody catches it."""
        super().__init__(STOPPED_STATUS)
        self.message = message


def how_to_go_on(checkpoint: Path | None) -> str:
    """The flag that goes on from a checkpoint, or from none."""
    if checkpoint is None:
        return "no checkpoint was saved: give the same command again"
    return f"go on with the same command and --resume_from_checkpoint {shlex.quote(str(checkpoint))}"


class StopRequest:
    """Whether this process has been asked to stop; as a context it listens to the signals.

    A second SIGINT ends the process at once. Signals are left alone outside the main thread, which
    alone may listen to them.
    """

    def __init__(self, max_minutes: float | None = None) -> None:
        """The time limit counts from here; None sets none."""
        self.reason: str | None = None
        """What asked first, in words; another process may have been asked instead."""
        self.can_wait = False
        """False: stop at once; True: note it, somebody asks."""
        self._limit = None if max_minutes is None else time.monotonic() + 60 * max_minutes
        self._minutes = max_minutes
        self._asked_at: float | None = None
        self._longest = 0.0
        self._interrupted = False
        self._process = os.getpid()
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        """Listen."""
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def asked(self) -> bool:
        """Whether to stop now. Call it wherever stopping is safe, as often as that is."""
        now = time.monotonic()
        if self._asked_at is not None:
            self._longest = max(self._longest, now - self._asked_at)
        self._asked_at = now
        if self.reason is None and self._limit is not None and now + MARGIN * self._longest >= self._limit:
            self.reason = f"--max_minutes {self._minutes:g}"
        return self.reason is not None

    def _note(self, number: int, frame: FrameType | None) -> None:
        """What a signal does."""
        if os.getpid() != self._process:  # a data worker, which inherited this: its parent decides
            if number == signal.SIGTERM:
                _die_of(number)
            return
        if number == signal.SIGINT and self._interrupted:
            _die_of(number)
        self._interrupted |= number == signal.SIGINT
        self.reason = self.reason or signal.Signals(number).name
        if not self.can_wait:
            self.can_wait = True  # a second signal must not interrupt what cleans up after the first
            raise RunStopped(
                f"stopped by {self.reason} while setting up: nothing is lost, give the same command again"
            )


def _die_of(number: int) -> None:
    """End this process as the signal does where nobody listens."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
