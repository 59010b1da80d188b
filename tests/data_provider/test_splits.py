from __future__ import annotations

import pytest

from data_provider.splits import Split, split_rows


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
