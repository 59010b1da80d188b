"""Flags that come and go: what earlier versions saved is read as it was meant."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils import cli, flag_history
from utils.config import Config, settings_then
from utils.flag_history import AUTO_WAS, Removed, left_unsaid, read_settings

THEN = settings_then() | AUTO_WAS
NAMES = sorted(THEN)
GONE = {
    "warp": Removed(False, "use --weft"),
    "depth": Removed(3, "use --llm_layers"),
    "bands": Removed((0.1, 0.9), "use --levels"),
    "folder": Removed(None, "use --checkpoints"),
    "unheard": Removed(None, None),
}


@pytest.fixture
def gone(monkeypatch):
    """Flags that were taken out."""
    monkeypatch.setattr(flag_history, "REMOVED", GONE)
    monkeypatch.setattr(cli, "REMOVED", GONE)


@given(st.sets(st.sampled_from(NAMES)))
def test_what_a_version_did_not_know_counts_as_it_did_then(missing):
    """Any setting that only one side knew made a checkpoint another run's."""
    config = Config.from_flat({"use_tapr": True, "seed": 7, "d_model": 32, "memory_size": "all"})
    saved = json.loads(json.dumps({k: v for k, v in config.flat().items() if k not in missing}))
    settings, lost = read_settings(saved)
    wanted = {**config.flat(), **{name: THEN[name] for name in missing}}
    assert Config.from_flat(settings) == Config.from_flat(wanted) and not lost


@pytest.mark.parametrize(
    ("saved", "words", "said"),
    [
        ({"warp": False}, ["--no-warp"], None),
        ({"warp": True}, ["--warp"], "--warp: taken out; use --weft"),
        ({"depth": 3}, ["--depth", "3"], None),
        ({"depth": 4}, ["--depth", "4"], "--depth: taken out; use --llm_layers"),
        ({"bands": [0.1, 0.9]}, ["--bands", "0.1", "0.9"], None),
        ({"bands": []}, ["--bands"], "--bands: taken out; use --levels"),
        ({"folder": None}, ["--folder", "none"], None),
        ({"folder": "x"}, ["--folder", "x"], "--folder: taken out; use --checkpoints"),
        ({"unheard": 7}, ["--unheard", "7"], None),
    ],
)
def test_a_flag_taken_out_is_passed_over_at_its_default_and_else_named(gone, saved, words, said, capsys):
    settings, lost = read_settings({**Config().flat(), **saved})
    assert lost == ([said] if said else []) and not settings.keys() & GONE.keys()
    if said is None:
        assert cli.parse_config(words) == Config()
        assert f"without effect: {words[0].replace('--no-', '--')}\n" in capsys.readouterr().err
        return
    with pytest.raises(SystemExit) as ended:
        cli.parse_config(words)
    assert ended.value.code == 2 and said in capsys.readouterr().err


@given(st.sets(st.sampled_from(NAMES)), st.sets(st.sampled_from(NAMES)))
def test_the_same_words_mean_what_they_did_when_a_run_was_begun(said_now, said_then):
    """With each default that changed, the command that began a run was another run's."""
    then, now = THEN, Config().flat()
    other = object()
    settings = {**now, **dict.fromkeys(said_now, other)}
    saved = {**then, **dict.fromkeys(said_then, "said")}
    unsaid = left_unsaid(settings, saved)
    changed = {name for name in NAMES if then[name] != now[name]}
    assert unsaid == {name: then[name] for name in changed - said_now - said_then}
    assert left_unsaid(settings, json.loads(json.dumps(saved))) == unsaid


def test_a_name_that_no_version_knew_stays_to_be_refused(gone):
    assert read_settings({"wrap": 1})[0]["wrap"] == 1
