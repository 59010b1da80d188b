"""One of several processes says how they ended, and all end alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import distributed

from utils import ending
from utils.ending import OtherProcessError, command, errors_kept, first_of_machine, told
from utils.errors import UserError


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Act as this process of a group, whose store is kept in the fixture."""
    store = distributed.HashStore()
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed.distributed_c10d, "_get_default_store", lambda: store)
    monkeypatch.setattr(ending, "_PATIENCE", 0.01)

    def act_as(rank: int) -> None:
        monkeypatch.setattr(distributed, "get_rank", lambda: rank)

    return act_as


def test_what_all_processes_find_is_said_by_the_first(group, capsys):
    """A faulty file gave 84 lines on two processes, the last from the collective library."""
    for rank in (0, 1, 2):
        group(rank)
        assert told(UserError("bad.csv: no numbers")) == 2
    assert capsys.readouterr().err == "error: bad.csv: no numbers\n"


def test_what_one_process_finds_alone_is_said_and_its_consequences_are_not(group, capsys):
    """The others lose their connection, which is no fault of theirs."""
    group(1)
    assert told(UserError("out of memory")) == 2
    group(0)
    assert told(RuntimeError("Connection closed by peer")) == 2
    assert capsys.readouterr().err == "error: out of memory\n"


def test_each_fault_that_no_log_keeps_shows_its_traceback(group, capsys):
    for rank in (0, 1):
        group(rank)
        assert told(KeyError("planted")) == 1
        assert "KeyError: 'planted'" in capsys.readouterr().err


def test_a_fault_in_another_process_is_its_own_to_tell(group, capsys):
    group(0)
    assert told(OtherProcessError("process 1: planted")) == 1
    assert not capsys.readouterr().err


def test_faults_of_all_processes_lie_in_one_log_and_are_one_line(group, capsys, tmp_path: Path):
    log = tmp_path / "run.log"
    for rank in (0, 1):
        group(rank)
        try:
            with errors_kept(log, process=rank):
                raise KeyError("planted")
        except KeyError as error:
            assert told(error) == 1
    said = capsys.readouterr().err
    assert said == f"error: KeyError: 'planted' (a fault of this program; its traceback: {log})\n"
    assert log.read_text().count("Traceback") == 2 and "process 1: " in log.read_text()


def test_a_log_that_cannot_be_written_loses_no_traceback(capsys, tmp_path: Path):
    with pytest.raises(KeyError) as caught, errors_kept(tmp_path / "gone" / "run.log"):
        raise KeyError("planted")
    assert told(caught.value) == 1 and "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID"]
)
def test_before_processes_know_each_other_the_first_of_a_machine_speaks(monkeypatch, capsys, name):
    for number, first in (("0", True), ("1", False)):
        monkeypatch.setenv(name, number)
        assert first_of_machine() is first
        assert told(UserError("--seed: wrong")) == 2 and bool(capsys.readouterr().err) is first


def test_a_command_gives_its_own_status_or_that_of_its_error(capsys):
    statuses = {None: 7, UserError("no"): 2, ValueError("ours"): 1}

    @command
    def main(error: Exception | None) -> int:
        if error is not None:
            raise error
        return 7

    assert {error: main(error) for error in statuses} == statuses
