"""The sentences that tell the language model what a data set is."""

from __future__ import annotations

from utils.config import ETT_NAMES
from utils.paths import PROMPT_BANK

GENERAL = "custom"
"""The text for a series of which nothing is known."""


def describe(data_name: str) -> str:
    """The description of a data set, in plain sentences on one line.

    The ETT names share ``ETT.txt``. Any other name has ``<name>.txt`` where the prompt bank holds
    one, and the general ``custom.txt`` where it does not.
    """
    stem = "ETT" if data_name in ETT_NAMES else data_name
    known = {path.stem for path in PROMPT_BANK.glob("*.txt")}
    path = PROMPT_BANK / f"{stem if stem in known else GENERAL}.txt"
    return " ".join(path.read_text(encoding="utf-8").split())
