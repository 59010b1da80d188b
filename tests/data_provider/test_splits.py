from __future__ import annotations

import pytest

from data_provider.splits import Split, split_rows


def counts(data: str, rows: int, seq_len: int, pred_len: int, percent: int = 100) -> list[int]:
    parts = split_rows(data, rows, seq_len=seq_len, pred_len=pred_len, percent=percent)
    return [part.num_windows(seq_len, pred_len) for part in parts]


@pytest.mark.parametrize(("data", "rows"), [("ETTh1", 17420), ("ETTh2", 17420), ("ETTh1", 14400)])
def test_ett_hour_windows_are_the_published_numbers(data, rows):
    """Other borders, or a dropped last window, make every result incomparable."""
    assert counts(data, rows, 512, 96) == [8033, 2785, 2785]


def test_ett_minute_borders_are_four_times_those_of_the_hour():
    parts = split_rows("ETTm1", 69680, seq_len=512, pred_len=96)
    assert parts == (Split(0, 34560), Split(34560 - 512, 46080), Split(46080 - 512, 57600))


@pytest.mark.parametrize("rows", [26304, 52696, 7588, 1001, 999])
def test_fractions_restate_the_familys_rule(rows):
    train, test = int(rows * 0.7), int(rows * 0.2)
    validation = rows - train - test
    parts = split_rows("custom", rows, seq_len=48, pred_len=12)
    assert parts.train == (0, train)
    assert parts.validation == (train - 48, train + validation)
    assert parts.test == (rows - test - 48, rows)


@pytest.mark.parametrize("data", ["ETTh1", "custom"])
def test_forecast_rows_of_the_parts_meet_without_overlap(data):
    """An overlap leaks the test, a gap loses windows."""
    train, validation, test = split_rows(data, 14400, seq_len=96, pred_len=24)
    assert validation.begin + 96 == train.end
    assert test.begin + 96 == validation.end


@pytest.mark.parametrize("percent", [1, 5, 10, 33, 100])
def test_percent_shortens_training_alone(percent):
    full = split_rows("ETTh1", 17420, seq_len=512, pred_len=1)
    few = split_rows("ETTh1", 17420, seq_len=512, pred_len=1, percent=percent)
    assert few.train == (0, (8640 - 512) * percent // 100 + 512)
    assert few[1:] == full[1:]


def test_window_count_is_zero_rather_than_negative():
    assert Split(0, 100).num_windows(90, 10) == 1
    assert Split(0, 100).num_windows(91, 10) == 0
    assert Split(0, 100).num_windows(910, 10) == 0


@pytest.mark.parametrize(
    ("rows", "percent", "part"), [(60, 100, "train"), (400, 100, "test"), (3000, 1, "train")]
)
def test_a_part_too_short_for_one_window_names_the_flags(rows, percent, part):
    with pytest.raises(ValueError) as caught:
        split_rows("custom", rows, seq_len=96, pred_len=96 if part == "test" else 48, percent=percent)
    for word in ("--seq_len 96", "--pred_len", "--percent"):
        assert word in str(caught.value)


def test_the_message_names_the_part_that_is_short():
    with pytest.raises(ValueError, match="608 rows, the train part of custom has 534"):
        split_rows("custom", 4000, seq_len=512, pred_len=96, percent=1)
    with pytest.raises(ValueError, match="the validation part"):
        split_rows("custom", 800, seq_len=96, pred_len=96)


def test_an_incomplete_ett_file_is_refused():
    """A cut file would shift nothing and shorten the test in silence."""
    with pytest.raises(ValueError, match="--data ETTm2: expected 57600 rows or more, found 17420"):
        split_rows("ETTm2", 17420, seq_len=512, pred_len=96)
