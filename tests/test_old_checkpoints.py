"""A run of an earlier version goes on: it loads, predicts and resumes with what is here now.

The folders under `tests/old_checkpoints` were each made once, at the commit that they are named after, by
`make.py` beside them.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import run_main_enhanced
from models import Forecaster
from tests.conftest import forget_accelerator
from utils.config import iter_settings, settings_then
from utils.flag_history import REMOVED, read_settings
from utils.training import checkpoint as checkpoints

FOLDERS = sorted(path.parent for path in Path(__file__).parent.glob("old_checkpoints/*/expected.json"))
FOLDER_BYTES = 300_000
CLOSE = 2e-3
"""Other kernels, and prompts whose statistics are computed in another precision, on deviations of about 1."""


@pytest.fixture(params=FOLDERS, ids=lambda path: path.name)
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An old folder's copy, its run under the name it had."""
    shutil.copytree(request.param, tmp_path / "old")
    runs = tmp_path / "old" / "checkpoints"
    runs.mkdir()
    (tmp_path / "old" / "run").rename(runs / expected(tmp_path / "old")["name"])
    return tmp_path / "old"


def expected(home: Path) -> dict[str, Any]:
    """What the version that made a folder found."""
    content: dict[str, Any] = json.loads((home / "expected.json").read_text())
    return content


def saved_step(home: Path) -> Path:
    """The one checkpoint of the folder."""
    (path,) = home.glob("checkpoints/*/checkpoint_step_*/checkpoint.pt")
    return path


def settings_of(home: Path) -> dict[str, Any]:
    """The flags that began the run: what differs from the defaults of then."""
    defaults = json.loads((home / "defaults.json").read_text())
    saved = json.loads((saved_step(home).parents[1] / "config.json").read_text())
    resolved = {name: saved[name] for name in ("season", "enc_in", "freq")} | {"retrieval_key": "hybrid"}
    return {n: value for n, value in saved.items() if value != defaults[n] and resolved.get(n) != value}


def words_of(home: Path) -> list[str]:
    """The command that began the run, with its files where they are now."""
    places = {"root_path": home, "llm_model_path": home / "llm", "checkpoints": home / "checkpoints"}
    given = {**settings_of(home), **places}
    switches = [f"--{name}" for name, value in given.items() if value is True]
    return [*(w for k, v in given.items() if not isinstance(v, bool) for w in (f"--{k}", str(v))), *switches]


def test_there_are_old_checkpoints_and_they_are_small():
    assert FOLDERS
    for folder in FOLDERS:
        assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < FOLDER_BYTES


def test_no_setting_is_lost_and_none_changes_what_it_was():
    """A flag that is gone without a word, or a changed default without `then`, makes old runs others."""
    then, names = settings_then(), {name for _, name, _ in iter_settings()}
    for folder in FOLDERS:
        defaults = json.loads((folder / "defaults.json").read_text())
        assert defaults.keys() <= names | REMOVED.keys()
        kept = {name: value for name, value in read_settings(defaults)[0].items() if name in defaults}
        assert json.loads(json.dumps(kept)) == json.loads(json.dumps({name: then[name] for name in kept}))
    assert not names & REMOVED.keys()


def test_an_old_checkpoint_predicts_what_it_did(home):
    forecast = Forecaster.load(
        saved_step(home).parent, llm_model_path=str(home / "llm")
    ).predict(pd.read_csv(home / "series.csv"))  # fmt: skip
    wanted = expected(home)
    assert [str(date) for date in forecast.get("date", forecast.index)] == wanted["dates"]
    for name, values in wanted["forecast"].items():
        assert forecast[name].tolist() == pytest.approx(values, abs=CLOSE), name


@pytest.mark.parametrize("where", ["auto", "path"])
def test_an_old_run_goes_on_to_the_end_it_had(home, where, caplog):
    """Under another name today, `auto` passed it over; a new flag made it another run's."""
    forget_accelerator()
    step = saved_step(home)
    with caplog.at_level(logging.INFO):
        run = run_main_enhanced.main(
            [*words_of(home), "--resume_from_checkpoint", str(step) if where == "path" else "auto"]
        )
    assert "resumed at optimizer step 4" in caplog.text
    assert run.run_dir == step.parents[1]
    for name, value in expected(home)["last"].items():
        assert run.results["last"]["test"][name] == pytest.approx(value, abs=CLOSE, rel=CLOSE), name


def test_a_flag_that_came_later_counts_as_it_did_then(home, monkeypatch):
    """Each new flag made every earlier checkpoint unreadable."""
    saved = checkpoints.load(saved_step(home))["config"]
    old = json.loads((saved_step(home).parents[1] / "config.json").read_text())
    assert {name: saved[name] for name in settings_then().keys() - old.keys()} == {
        name: value for name, value in settings_then().items() if name not in old
    }


def test_a_flag_that_was_taken_out_is_said_once_where_it_asked_for_something(home, monkeypatch, caplog):
    """Its checkpoints could not be read any more."""
    from utils.flag_history import Removed

    checkpoints._say_once.cache_clear()
    gone = {"seed": Removed(2021, "there is one seed"), "log_steps": Removed(50, "see --verbose")}
    monkeypatch.setattr("utils.flag_history.REMOVED", gone)
    for _ in range(2):
        saved = checkpoints.load(saved_step(home))["config"]
    assert "log_steps" not in saved or saved["log_steps"] == settings_then()["log_steps"]
    assert [r.getMessage().split(": ", 1)[1] for r in caplog.records] == [
        "--log_steps: taken out; see --verbose"
    ]
