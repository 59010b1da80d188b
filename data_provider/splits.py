"""Where training, validation and test begin and end: fixed by `utils.data_sets`, or one rule for all.

Validation and test begin one lookback early, so that their first forecast starts right after the
part before; the forecast rows themselves never overlap between parts. The ETT borders are those of
Informer (Zhou et al. 2021), the fractions those of Autoformer (Wu et al. 2021) and after.
"""

from __future__ import annotations

from typing import NamedTuple

from utils.data_sets import DATA_SETS
from utils.errors import UserError

TRAIN_FRACTION, TEST_FRACTION = 0.7, 0.2


class Split(NamedTuple):
    """Rows of one part, ``begin`` included and ``end`` not."""

    begin: int
    end: int

    def num_windows(self, seq_len: int, pred_len: int) -> int:
        """How many windows of lookback and horizon lie wholly inside, 0 at least."""
        return max(0, self.end - self.begin - seq_len - pred_len + 1)


class Splits(NamedTuple):
    """The three parts of a series."""

    train: Split
    validation: Split
    test: Split


def split_rows(data: str, rows: int, *, seq_len: int, pred_len: int, percent: int = 100) -> Splits:
    """The parts of a series of ``rows`` rows.

    Args:
        data: the data set; where the table fixes no borders, fractions 0.7/0.1/0.2.
        rows: length of the series.
        seq_len: lookback L.
        pred_len: horizon H, only to check that each part holds a window.
        percent: share of the training part that is used, counted from its beginning and applied
            to the rows after the first lookback; validation and test stay as they are.

    Raises:
        ValueError: if the file is shorter than the table or a part shorter than one window.
    """
    train, validation, test = _part_lengths(data, rows)
    train_end = (train - seq_len) * percent // 100 + seq_len
    splits = Splits(
        Split(0, train_end),
        Split(train - seq_len, train + validation),
        Split(train + validation - seq_len, train + validation + test),
    )
    for name, part in splits._asdict().items():
        if part.begin < 0 or part.num_windows(seq_len, pred_len) < 1:
            found = part.end - max(0, part.begin)
            hint = " or raise --percent" if name == "train" and percent < 100 else ""
            raise UserError(
                f"--seq_len {seq_len} --pred_len {pred_len}: one window needs {seq_len + pred_len} rows, "
                f"the {name} part of {data} has {found} of {rows} (--percent {percent}); "
                f"shorten the lookback or the horizon{hint}, or use a longer file"
            )
    return splits


def _part_lengths(data: str, rows: int) -> tuple[int, int, int]:
    """Rows of training, validation and test, lookback not counted."""
    fixed = DATA_SETS[data].parts
    if fixed is not None:
        if rows < sum(fixed):
            raise UserError(
                f"--data {data}: expected {sum(fixed)} rows or more, found {rows}; "
                "use the complete file, or --data custom for a file of your own"
            )
        return fixed
    train, test = int(rows * TRAIN_FRACTION), int(rows * TEST_FRACTION)
    return train, rows - train - test, test
