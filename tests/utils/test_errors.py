"""What the system refuses names the file, and is the user's."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from utils.atomic_files import whole_file
from utils.errors import FileError, FileMissingError, UserError, using_file
from utils.log import MetricsFile
from utils.training.run_folder import claim_folder


def test_every_kind_is_a_value_error_and_those_of_files_os_errors():
    """Callers in Python catch what they always caught."""
    assert issubclass(UserError, ValueError) and issubclass(FileError, OSError | ValueError)
    assert issubclass(FileMissingError, FileNotFoundError) and str(FileMissingError("said")) == "said"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/elsewhere"), FileError),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), FileMissingError),
        (OSError(errno.ENOSPC, "No space left on device"), FileError),
    ],
)
def test_what_the_system_says_of_a_file_is_said_with_its_path(error, kind):
    said = f"^/data/x.csv: expected a table, found: {error.strerror}$"
    with pytest.raises(kind, match=said) as caught, using_file("/data/x.csv", "a table"):
        raise error
    assert type(caught.value) is kind and caught.value.__cause__ is error


def test_a_users_error_and_a_fault_inside_pass_as_they_are():
    for error in (FileMissingError("as it is"), KeyError("ours")):
        with pytest.raises(type(error)) as caught, using_file("x"):
            raise error
        assert caught.value is error


def test_no_place_to_write_is_the_users_error_with_the_path(tmp_path: Path):
    """A folder of runs under a file was a traceback of pathlib's."""
    (tmp_path / "file").write_text("")
    below = tmp_path / "file" / "below"
    for write in (
        lambda: claim_folder(below, "run"),
        lambda: whole_file(below / "x.json").__enter__(),
        lambda: MetricsFile(below / "x.jsonl").append(event="train", step=1),
    ):
        with pytest.raises(FileError, match=f"{below}.*: expected .*, found: .*"):
            write()
