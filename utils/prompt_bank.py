"""The sentences that tell the language model what a data set is."""

from __future__ import annotations

from pathlib import Path

from utils.data_sets import CUSTOM, DATA_SETS
from utils.errors import FileMissingError, UserError, using_file
from utils.paths import PROMPT_BANK

GENERAL = CUSTOM
"""The text for a series of which nothing is known."""
MOST_CHARACTERS = 4000
"""Of a text of one's own: beyond it the prompt would be longer than any window."""


def describe(data_name: str) -> str:
    """The description of a data set of the table, in plain sentences on one line."""
    path = PROMPT_BANK / f"{DATA_SETS[data_name].prompt}.txt"
    return " ".join(path.read_text(encoding="utf-8").split())


def read_description(path: str | Path) -> str:
    """A description of one's own (``--prompt_file``), on one line.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: where it is empty, too long, or no UTF-8 text.
    """
    path = Path(path)
    if not path.is_file():
        raise FileMissingError(f"--prompt_file: expected a text file, found none at {path}")
    try:
        with using_file(path, "a text file that can be read (--prompt_file)"):
            text = " ".join(path.read_text(encoding="utf-8").split())
    except UnicodeDecodeError as error:
        raise UserError(f"--prompt_file: expected UTF-8 text in {path}, found {error}") from None
    if not 1 <= len(text) <= MOST_CHARACTERS:
        raise UserError(
            f"--prompt_file: expected 1 to {MOST_CHARACTERS} characters in {path}, found {len(text)}"
        )
    return text
