"""Events that only texts announce: the numbers say nothing of them, and the held-out words are new."""

from __future__ import annotations

import re

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from data_provider.event_series import EventConfig, with_events
from data_provider.event_wordings import DOWN, HELD_OUT, SIZES, TEMPLATES, UP, wordings
from data_provider.synthetic import QUIET, main, make_series
from data_provider.text_dates import named_days, without_dates
from data_provider.text_files import read_texts, text_table
from data_provider.texts import visible_texts
from utils.errors import UserError

SPLITS = range(len(HELD_OUT))
BASE = make_series(rows=20_000, variables=1, seed=7, parts=QUIET)
FOUND = with_events(BASE, split=0, seed=7)
UNIT = BASE.values[:, -1].std()


@pytest.mark.parametrize("split", SPLITS)
def test_no_verb_size_or_template_is_in_both_halves(split):
    learned, kept = (wordings(split, held_out=held_out) for held_out in (False, True))
    for sign, words in ((1, UP), (-1, DOWN)):
        assert (len(learned.verbs[sign]), len(kept.verbs[sign])) == (12, 7)
        assert set(learned.verbs[sign]) | set(kept.verbs[sign]) == set(words)
    for size, words in SIZES.items():
        assert set(learned.sizes[size]) | set(kept.sizes[size]) == set(words)
        assert not set(learned.sizes[size]) & set(kept.sizes[size]) and len(kept.sizes[size]) >= 2
    assert set(learned.templates) | set(kept.templates) == set(TEMPLATES)
    assert not set(learned.templates) & set(kept.templates) and len(kept.templates) >= 4


def test_every_template_is_held_out_once_and_splits_differ():
    held = [place for own in HELD_OUT for place in own.templates]
    assert sorted(held) == list(range(len(TEMPLATES)))
    assert len({own.up for own in HELD_OUT}) == len({own.down for own in HELD_OUT}) == len(HELD_OUT) == 5


def test_each_notice_has_one_meaning():
    """Were a word in two lists, or one notice of two effects, no reader could be right."""
    halves = [wordings(split, held_out=held_out) for split in SPLITS for held_out in (False, True)]
    notices = {notice for half in halves for notice in half.notices()}
    assert len(dict(notices)) == len(notices)
    assert not re.search(r"\d", "".join(text for text, _ in notices))
    assert not any(named_days(text, near=BASE.dates[0].date()) for text, _ in list(notices)[::200])


def test_the_effects_have_the_variance_that_is_said():
    """+-0.5, +-1 and +-2, as likely: 1.75; in about half of the rows."""
    effects = FOUND.effects / UNIT
    assert set(np.round(np.abs(effects), 9)) == {0.5, 1.0, 2.0}
    assert (effects**2).mean() == pytest.approx(1.75, rel=0.15) and abs(effects.mean()) < 0.15
    added = (FOUND.series.values - BASE.values)[:, -1]
    assert (added != 0).mean() == pytest.approx(24 / 50, abs=0.03)
    assert added.var() / FOUND.series.values[:, -1].var() == pytest.approx(0.45, abs=0.1)


def test_the_level_is_another_in_the_rows_of_events_alone():
    added = (FOUND.series.values - BASE.values)[:, -1]
    for begin, effect in zip(FOUND.begins, FOUND.effects, strict=True):
        np.testing.assert_allclose(added[begin : begin + FOUND.length], effect)
    rows = (FOUND.begins[:, None] + np.arange(FOUND.length)).ravel()
    assert (np.delete(added, rows) == 0).all() and len(set(rows.tolist())) == len(rows)


def test_hidden_effects_are_those_that_begin_after_the_window():
    last = np.arange(100, 300)
    hidden = FOUND.hidden(last, 30)
    added = (FOUND.series.values - BASE.values)[:, -1]
    for window, row in enumerate(last):
        begun = FOUND.begins[(FOUND.begins <= row) & (FOUND.begins + FOUND.length > row)]
        ahead = added[row + 1 : row + 31].copy()
        for begin in begun:
            ahead[: max(0, begin + FOUND.length - row - 1)] = 0
        np.testing.assert_allclose(hidden[window], ahead, atol=1e-12)


def test_the_numbers_before_an_event_say_nothing_of_it():
    """A ridge on the lookback, and on the effects and pauses before, explains no more than chance."""
    y, e = FOUND.series.values[:, -1], FOUND.effects
    x = np.stack([y[a - 48 : a + 1] for a in FOUND.rows[3:] if a >= 48])
    pauses = np.diff(FOUND.begins)
    own = np.arange(len(e) - len(x), len(e))
    x = np.hstack(
        [x, np.stack([e[own - k] for k in (1, 2, 3)], 1), pauses[own - 1][:, None], pauses[own - 2][:, None]]
    )
    x = (x - x.mean(0)) / x.std(0)
    half = len(x) // 2
    left = e[own][half:] - Ridge(300).fit(x[:half], e[own][:half]).predict(x[half:])
    assert (left**2).mean() > 0.93 * (e[own][half:] ** 2).mean()


def test_the_words_give_the_effect_away_to_who_knows_them():
    known = {t: k for half in (False, True) for t, k in wordings(0, held_out=half).notices()}
    assert np.allclose([known[text] * UNIT for text in FOUND.texts["text"]], FOUND.effects)


def test_the_notices_of_the_test_part_alone_are_in_held_out_words():
    """A notice in held-out words before the test part would teach them."""
    begin = int(20_000 * 0.8)
    assert (FOUND.held_out == (FOUND.rows >= begin)).all() and 0.15 < FOUND.held_out.mean() < 0.25
    early = FOUND.begins[~FOUND.held_out] + FOUND.length
    assert early.max() <= begin
    learned = {text for text, _ in wordings(0, held_out=False).notices()}
    kept = {text for text, _ in wordings(0, held_out=True).notices()}
    assert (
        set(FOUND.texts["text"][~FOUND.held_out]) <= learned
        and set(FOUND.texts["text"][FOUND.held_out]) <= kept
    )


def test_a_notice_is_seen_by_default_before_its_event_and_not_before_its_row():
    table = text_table(FOUND.texts, "notices")
    first = visible_texts(table, FOUND.series.dates, count=1).first_rows
    assert (first == FOUND.rows + 1).all() and (first < FOUND.begins).all()
    assert all(without_dates(text) == text.replace(" next.", " next.") for text in table.texts)


def test_the_words_change_with_the_split_and_the_numbers_do_not():
    other = with_events(BASE, split=3, seed=7)
    assert (other.rows == FOUND.rows).all() and (other.texts["text"] != FOUND.texts["text"]).any()
    again = with_events(BASE, split=0, seed=7)
    assert again.series.content_hash == FOUND.series.content_hash and again.texts.equals(FOUND.texts)


@pytest.mark.parametrize(
    ("split", "events", "said"),
    [
        (5, EventConfig(), "0 to 4, found 5"),
        (0, EventConfig(length=0), "length of 1 row"),
        (0, EventConfig(length=30_000), "found 20000"),
    ],
)
def test_numbers_that_can_not_be_are_refused(split, events, said):
    with pytest.raises(UserError, match=said):
        with_events(BASE, split=split, seed=0, events=events)


def test_the_command_writes_both_files(tmp_path, capsys):
    series, notices = tmp_path / "s.csv", tmp_path / "n.csv"
    words = [str(series), "--rows", "2000", "--variables", "2", "--events", "1", "--texts", str(notices)]
    assert main(words) == 0 and "in held-out words" in capsys.readouterr().out
    assert len(read_texts(notices)) > 20
    assert main(words[:-2]) == 2 and "both or neither" in capsys.readouterr().err
