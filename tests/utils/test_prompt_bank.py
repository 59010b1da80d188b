from __future__ import annotations

import pytest

from utils.config import ETT_NAMES
from utils.paths import PROMPT_BANK
from utils.prompt_bank import describe


def test_each_known_name_has_its_description_and_others_the_general_one():
    assert len({describe(name) for name in ETT_NAMES}) == 1
    assert len({describe(name) for name in ("ETTh1", "synthetic", "custom")}) == 3
    assert describe("weather") == describe("custom")


@pytest.mark.parametrize("name", ["ETTh1", "synthetic", "custom"])
def test_a_description_is_a_few_sentences_on_one_line(name):
    """Line breaks and length would cost prompt tokens in every window."""
    text = describe(name)
    assert "\n" not in text and text == text.strip()
    assert 2 <= text.count(".") <= 4 and len(text) < 500


def test_a_name_can_not_leave_the_prompt_bank():
    """The name comes from the command line."""
    assert describe(f"../prompt_bank/{next(PROMPT_BANK.glob('*.txt')).stem}") == describe("custom")
