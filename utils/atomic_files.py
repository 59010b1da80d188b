"""Files that are there whole or not at all, whatever moment a process is killed at."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from utils.errors import using_file

PREFIX = ".writing-"


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes the name ``path`` when the block ends, and never before.

    Content and folder are flushed to disk, so that the name survives a power cut too. Where the
    block raises, what lay at ``path`` stays.

    Raises:
        FileError: the system refuses (no space left, no permission).
    """
    with using_file(path, "a place that can be written"):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(_temporary_name(path.name))  # not mkstemp: its files are private
        try:
            with temporary.open("w+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        _flush_folder(path.parent)
        _flush_folder(path.parent.parent)  # where path.parent itself may be new


def remove_leftovers(folder: Path) -> list[Path]:
    """Remove the unfinished files of `whole_file` whose writer, on this machine, is gone; which they were.

    They may lie in ``folder`` and in the folders right inside it.
    """
    removed = []
    for path in [*folder.glob(f"{PREFIX}*"), *folder.glob(f"*/{PREFIX}*")]:
        match = re.fullmatch(rf"{re.escape(PREFIX)}.+-{re.escape(socket.gethostname())}-(\d+)", path.name)
        if match and path.is_file() and not _is_alive(int(match.group(1))):
            path.unlink()
            removed.append(path)
    return removed


def _temporary_name(name: str) -> str:
    """Tells the machine and the process that write."""
    return f"{PREFIX}{name}-{socket.gethostname()}-{os.getpid()}"


def _is_alive(pid: int) -> bool:
    """Whether another process of this machine has this number."""
    if pid == os.getpid():  # the number of a writer that is gone, given to this process
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _flush_folder(folder: Path) -> None:
    """Make new names in a folder survive a power cut, where the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
