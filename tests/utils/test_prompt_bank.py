from __future__ import annotations

import pytest

from utils.data_sets import COMPETITIONS, DATA_SETS
from utils.paths import PROMPT_BANK
from utils.prompt_bank import MOST_CHARACTERS, describe, read_description


def test_each_data_set_has_its_own_description_and_the_ett_names_share_one():
    assert len({describe(name) for name in DATA_SETS if name.startswith("ETT")}) == 1
    packaged = len(COMPETITIONS) - 1  # of as many fields that nothing is said of, as of one's own data
    assert len({describe(name) for name in DATA_SETS}) == len(DATA_SETS) - 3 - packaged
    assert {one.prompt for one in DATA_SETS.values()} == {path.stem for path in PROMPT_BANK.glob("*.txt")}


@pytest.mark.parametrize("name", DATA_SETS)
def test_a_description_is_a_few_sentences_on_one_line(name):
    """Line breaks and length would cost prompt tokens in every window."""
    text = describe(name)
    assert "\n" not in text and text == text.strip()
    assert 2 <= text.count(".") <= 4 and len(text) < 500


def test_a_text_of_ones_own_is_read_on_one_line(tmp_path):
    (tmp_path / "mine.txt").write_text("Tides in a harbour,\n  in metres.\n\nHalf a day apart.\n")
    assert read_description(tmp_path / "mine.txt") == "Tides in a harbour, in metres. Half a day apart."


@pytest.mark.parametrize("content", [b"", b" \n", b"x" * (MOST_CHARACTERS + 1), b"\xff\xfe\x00"])
def test_a_text_that_says_nothing_or_too_much_is_refused(tmp_path, content):
    (tmp_path / "mine.txt").write_bytes(content)
    with pytest.raises(ValueError, match="--prompt_file: expected"):
        read_description(tmp_path / "mine.txt")


def test_a_text_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="--prompt_file.*none.txt"):
        read_description(tmp_path / "none.txt")
