from __future__ import annotations

import json
import logging

import pytest

from tests.processes import python
from utils.log import MetricsFile, RunLogFile, setup_logging


def records(path):
    return [(r["event"], r["step"]) for r in MetricsFile(path).read()]


def test_records_are_lines_of_json(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    assert file.read() == []
    file.append(event="train", step=1, loss=0.5)
    file.append(event="validation", step=1, validation={"mse": 1.0})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["train", "validation"]
    assert file.read()[0] == {"event": "train", "step": 1, "loss": 0.5}


def test_cutting_back_keeps_the_checkpoints_own_step_and_forgets_all_after(tmp_path):
    """A resumed run writes the later steps again: without this they stand twice."""
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.cut_back(3)  # nothing there yet is no error
    for step in range(1, 6):
        file.append(event="train", step=step)
    file.cut_back(3)
    assert records(file.path) == [("train", 1), ("train", 2), ("train", 3)]
    file.append(event="train", step=4)
    assert records(file.path)[-1] == ("train", 4)
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_cutting_back_forgets_final_tests_of_earlier_weights(tmp_path):
    """The best weights may be from before the checkpoint, the test of them is not: it stood twice."""
    file = MetricsFile(tmp_path / "metrics.jsonl")
    for event, step in (("train", 1), ("validation", 1), ("train", 2), ("test", 2), ("test", 1)):
        file.append(event=event, step=step)
    file.cut_back(2)
    assert records(file.path) == [("train", 1), ("validation", 1), ("train", 2)]


@pytest.mark.parametrize("rest", ['{"event": "train", "st', "", "\n"])
def test_a_line_cut_off_in_writing_is_dropped(tmp_path, rest):
    """A killed run leaves half a line; the next record would be glued to it."""
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.append(event="train", step=1)
    with file.path.open("a") as raw:
        raw.write(rest)
    file.cut_back(5)
    file.append(event="train", step=2)
    assert records(file.path) == [("train", 1), ("train", 2)]


@pytest.fixture
def quiet_logging():
    """Give the root logger back as it was."""
    root = logging.getLogger()
    before = list(root.handlers)
    yield root
    for handler in list(root.handlers):
        if handler not in before:
            root.removeHandler(handler)


def test_set_up_twice_writes_each_line_once(quiet_logging, capsys):
    """Two runs in one process, as in a study."""
    setup_logging(main_process=True)
    setup_logging(main_process=True)
    logging.getLogger("utils.something").info("hello %d", 3)
    logging.getLogger("someone.else").info("not ours")
    assert capsys.readouterr().out == "hello 3\n"


def test_other_processes_only_warn(quiet_logging, capsys):
    setup_logging(main_process=False)
    logging.getLogger("utils.something").info("hello")
    logging.getLogger("utils.something").warning("careful")
    assert capsys.readouterr().out == "careful\n"
    setup_logging(main_process=True)


def test_the_runs_log_appends_and_stops_when_closed(quiet_logging, tmp_path):
    """A resumed run must not erase the log of what came before."""
    setup_logging(main_process=True)
    for text in ("first", "second"):
        file = RunLogFile(tmp_path / "run.log")
        logging.getLogger("utils.something").info(text)
        file.close()
        logging.getLogger("utils.something").info("outside")
    lines = (tmp_path / "run.log").read_text().splitlines()
    assert [line.split()[-1] for line in lines] == ["first", "second"]


def test_importing_logs_nothing_and_sets_nothing_up():
    """A library that configures logging on import takes it from its user."""
    code = "import logging, utils.log, utils.config, utils.cli; assert not logging.getLogger().handlers"
    done = python("-c", code)
    assert done.returncode == 0 and done.stdout == done.stderr == ""
