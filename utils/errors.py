"""What a user can mend, told from faults of the program by its class.

Every command says a `UserError` as one message and ends with status 2 (`utils.ending`); anything else is
a fault of ours and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(ValueError):
    """Settings, data, files or a machine that do not fit.

    The message names what was expected, what was found and what to do. A ValueError, so that a caller in
    Python needs no class of ours.
    """


class FileError(UserError, OSError):
    """A file or folder that cannot be had or written; an OSError too."""


class FileMissingError(FileError, FileNotFoundError):
    """A file that is not there; a FileNotFoundError too."""


@contextmanager
def using_file(path: Path | str, wanted: str = "a file that can be read") -> Iterator[None]:
    """What the system refuses inside names the file.

    Raises:
        FileError: in place of any other OSError.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, UserError):
            raise
        kind = FileMissingError if isinstance(error, FileNotFoundError) else FileError
        raise kind(f"{path}: expected {wanted}, found: {error.strerror or error}") from error
