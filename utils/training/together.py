"""Steps that all processes take alike: what fails in one of them ends all, and none waits for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from accelerate import Accelerator, PartialState
from accelerate.utils import gather_object

from utils.ending import OtherProcessError
from utils.errors import UserError

T = TypeVar("T")


@contextmanager
def agreed(accelerator: Accelerator | PartialState) -> Iterator[None]:
    """A block in which processes do not wait for each other; at its end all of them know how it went.

    Raises:
        Exception: this process's own error.
        UserError: another process's, a user's, where this one has none.
        OtherProcessError: another process's, a fault, where this one has none.
    """
    if accelerator.num_processes == 1:
        yield
        return
    own: Exception | None = None
    try:
        yield
    except Exception as error:
        own = error
    told = None if own is None else (accelerator.process_index, isinstance(own, UserError), str(own))
    failures = [failure for failure in gather_object([told]) if failure is not None]
    if own is not None:
        raise own
    if failures:
        process, users, text = failures[0]
        raise (UserError if users else OtherProcessError)(f"process {process}: {text}")


def main_first(accelerator: Accelerator | PartialState, make: Callable[[], T]) -> T:
    """What ``make`` gives, on the main process first: it downloads and converts, the others find it done.

    Raises:
        Exception: as `agreed` does.
    """
    made: list[T] = []
    for turn in (True, False) if accelerator.num_processes > 1 else (True,):
        with agreed(accelerator):
            if accelerator.is_main_process == turn:
                made.append(make())
    return made[0]
