"""The list of runs: what tells them apart, how they ended, and that no broken folder hides the others."""

from __future__ import annotations

import json
import os
import shutil
import socket

import pytest

import run_main
from scripts import runs
from utils.config import Config
from utils.training.run_folder import METRICS_FILE, STATUS_FILE, read_json
from utils.training.stopping import RunStopped
from utils.training.trainer import Trainer


@pytest.fixture(scope="module")
def home(tmp_path_factory, tiny_settings, series_file):
    """A folder of real runs: two finished, one stopped, one failed."""
    home = tmp_path_factory.mktemp("runs")

    def start(**changes):
        settings = {**tiny_settings(series_file, home), **changes}
        return run_main.train(Config.from_flat(settings), model="TimeLLM_Enhanced")

    start(model_comment="first")
    start(model_comment="second", learning_rate=0.01, use_gram=True)
    with pytest.raises(RunStopped):
        start(model_comment="stopped", max_minutes=0.0)
    with pytest.raises(ValueError, match="training items"):
        start(model_comment="failed", batch_size=46)
    return home


@pytest.fixture
def copy(home, tmp_path):
    """One's own copy of the runs."""
    return shutil.copytree(home, tmp_path / "runs")


def listed(folder, capsys) -> dict[str, dict]:
    assert runs.main([str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    return {run["name"].rsplit("-", 1)[1]: run for run in found["runs"]} | {"all": found}


def folder_of(home, comment):
    (found,) = home.glob(f"*-{comment}")
    return found


def test_runs_are_listed_with_what_they_scored(home, capsys):
    found = listed(home, capsys)
    for name in ("first", "second"):
        results = read_json(folder_of(home, name) / "results.json")
        assert found[name]["status"] == "finished" and found[name]["step"] == 11
        assert found[name]["test_mse"] == results["best"]["test"]["mse"]
        assert found[name]["test_mae"] == results["best"]["test"]["mae"]
        assert found[name]["validation_mse"] == results["best"]["validation_mse"]
    assert found["stopped"]["status"].startswith("cut off at step 1: stopped by --max_minutes 0")
    assert found["stopped"]["test_mse"] is None
    assert found["failed"]["status"].startswith("failed at step 0: UserError: --batch_size 46")


def test_only_the_settings_that_differ_are_shown(home, capsys):
    found = listed(home, capsys)
    differing = "use_gram batch_size learning_rate model_comment max_minutes"
    assert found["all"]["differing"] == differing.split()
    assert found["second"]["settings"]["learning_rate"] == 0.01
    assert runs.main([str(home)]) == 0
    text = capsys.readouterr().out
    assert "learning_rate=0.01" in text and "learning_rate=0.0005" in text and "seq_len" not in text
    assert "use_gram=True" in text and "test mse -" in text


def test_one_run_can_be_named(home, capsys):
    assert runs.main([str(folder_of(home, "first"))]) == 0
    text = capsys.readouterr().out
    assert "finished" in text and "model_comment=" not in text


def test_a_setting_that_an_older_run_did_not_know_is_no_difference(copy, capsys):
    settings = read_json(folder_of(copy, "first") / "config.json")
    del settings["report_to"], settings["padding_patch"]
    (folder_of(copy, "first") / "config.json").write_text(json.dumps(settings))
    assert "padding_patch" not in listed(copy, capsys)["all"]["differing"]


def test_broken_folders_are_named_and_hide_nothing(copy, capsys):
    (copy / "empty").mkdir()
    (copy / "a file").write_text("")
    (folder_of(copy, "first") / "config.json").write_text("{")
    (folder_of(copy, "second") / "results.json").write_text('{"best": {}}')
    (folder_of(copy, "failed") / STATUS_FILE).write_text('{"state": "running"}')
    found = listed(copy, capsys)
    assert [run["name"].rsplit("-")[-1] for run in found["all"]["runs"]] == ["stopped"]
    reasons = {b["name"].rsplit("-")[-1]: b["reason"] for b in found["all"]["broken"]}
    assert reasons.keys() == {"empty", "first", "second", "failed"}
    assert reasons["empty"] == "no config.json" and "test" in reasons["second"]
    assert runs.main([str(copy)]) == 0
    assert capsys.readouterr().out.count("NOT READ") == 4


def test_half_a_line_of_metrics_is_passed_over(copy, capsys):
    """What a run leaves that is killed in the middle of writing."""
    metrics = folder_of(copy, "stopped") / METRICS_FILE
    metrics.write_text(metrics.read_text() + '{"event": "train", "st')
    assert listed(copy, capsys)["stopped"]["step"] == 1


def test_a_run_from_before_there_was_a_status_is_known_by_its_results(copy, capsys):
    for name in ("first", "stopped"):
        (folder_of(copy, name) / STATUS_FILE).unlink()
    found = listed(copy, capsys)
    assert found["first"]["status"] == "finished" and found["stopped"]["status"] == "cut off at step 1"


def test_a_killed_process_is_no_running_one(copy, capsys):
    """Nor is another that has its number now."""
    path = folder_of(copy, "stopped") / STATUS_FILE
    said = read_json(path) | {"state": "running", "message": "", "host": socket.gethostname()}
    path.write_text(json.dumps(said | {"pid": os.getpid(), "process_began": said["process_began"] - 99}))
    assert listed(copy, capsys)["stopped"]["status"] == "cut off at step 1"
    path.write_text(json.dumps(said | {"pid": os.getpid()}))
    assert listed(copy, capsys)["stopped"]["status"] == "running, at step 1"
    path.write_text(json.dumps(said | {"host": "elsewhere"}))
    assert listed(copy, capsys)["stopped"]["status"].startswith("running on elsewhere since")


def test_no_folder_is_one_error(tmp_path, capsys):
    assert runs.main([str(tmp_path / "none")]) == 2
    assert "expected a folder of runs" in capsys.readouterr().err
    assert runs.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == "no runs\n"


def test_a_run_is_seen_running_while_it_trains(tiny_settings, series_file, tmp_path, monkeypatch):
    seen: list[str] = []
    step = Trainer.train_step

    def watched(trainer, batch):
        seen.append(runs.read_runs(tmp_path)[0][0].status)
        return step(trainer, batch)

    monkeypatch.setattr(Trainer, "train_step", watched)
    settings = {**tiny_settings(series_file, tmp_path), "max_steps": 3}
    run_main.train(Config.from_flat(settings), model="TimeLLM_Enhanced")
    assert seen[-1] == "running, at step 2"
