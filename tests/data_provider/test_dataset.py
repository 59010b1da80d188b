from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from data_provider.dataset import TrainingWindows, WindowDataset
from data_provider.splits import Split
from utils.types import Batch, WindowSource

T, N, L, H = 200, 3, 24, 8
VALUES = torch.from_numpy(np.random.default_rng(0).normal(size=(T, N))).float()
MARKS = torch.arange(T)[:, None].float().repeat(1, 2)
SERIES_ID = 2**62 + 12345
SPLIT = Split(50, 120)


def windows(split: Split = SPLIT, **changes: object) -> WindowDataset:
    return WindowDataset(
        VALUES, MARKS, split, seq_len=L, pred_len=H, series_id=SERIES_ID, **changes  # type: ignore[arg-type]
    )  # fmt: skip


def source(split: Split = SPLIT) -> TrainingWindows:
    return TrainingWindows(VALUES, split, seq_len=L, pred_len=H, series_id=SERIES_ID)


def test_joint_items_restate_plain_slicing():
    dataset = windows()
    assert len(dataset) == 70 - L - H + 1
    for index in range(len(dataset)):
        item = dataset[index]
        first = 50 + index
        assert torch.equal(item.x, VALUES[first : first + L])
        assert torch.equal(item.y, VALUES[first + L : first + L + H])
        assert torch.equal(item.x_mark, MARKS[first : first + L])
        assert torch.equal(item.y_mark, MARKS[first + L : first + L + H])
        assert (item.start.item(), item.series_id.item()) == (first, SERIES_ID)
        assert item.variable.tolist() == [0, 1, 2]


def test_single_items_take_one_variable_after_the_other():
    joint, single = windows(), windows(channel_sampling="single")
    assert len(single) == N * len(joint)
    for index in (0, 5, len(joint), 2 * len(joint) + 7, len(single) - 1):
        variable, window = index // len(joint), index % len(joint)
        item = single[index]
        assert item.x.shape == (L, 1) and item.y.shape == (H, 1)
        assert torch.equal(item.x[:, 0], joint[window].x[:, variable])
        assert torch.equal(item.y[:, 0], joint[window].y[:, variable])
        assert item.variable.tolist() == [variable] and item.start == joint[window].start


@pytest.mark.parametrize("stride", [1, 2, 7, 38, 39, 100])
def test_a_stride_takes_every_nth_window_from_the_first(stride):
    starts = [item.start.item() for item in windows(stride=stride)]  # type: ignore[attr-defined]
    assert starts == list(range(50, 120 - L - H + 1, stride))


def test_the_default_collation_makes_a_batch():
    batch = default_collate([windows()[i] for i in range(5)])
    assert isinstance(batch, Batch)
    assert [tuple(field.shape) for field in batch] == [
        (5, L, N), (5, H, N), (5, L, 2), (5, H, 2), (5,), (5,), (5, N), (5, 0), *7 * [(5, 0)],
    ]  # fmt: skip
    assert batch.x.dtype == batch.x_mark.dtype == torch.float32
    assert batch.start.dtype == batch.series_id.dtype == batch.variable.dtype == torch.int64


@pytest.mark.parametrize("index", [-1, 39])
def test_indices_outside_are_errors(index):
    """A negative index would read the rows of another part."""
    with pytest.raises(IndexError, match=f"0 to 38, found {index}"):
        windows()[index]


def test_a_split_beyond_the_series_is_an_error():
    with pytest.raises(ValueError, match="rows up to 201"):
        windows(Split(0, 201))


def test_source_rows_restate_plain_slicing():
    found = source()
    assert isinstance(found, WindowSource)
    assert (found.num_windows, found.num_variables, found.num_rows) == (39, N, 39 * N)
    index = torch.tensor([0, 38, 39, 100, 116, 5, 5])
    rows = found.rows(index)
    for i, row in enumerate(index.tolist()):
        variable, start = row // 39, 50 + row % 39
        assert torch.equal(rows.lookback[i], VALUES[start : start + L, variable])
        assert torch.equal(rows.future[i], VALUES[start + L : start + L + H, variable])
        assert [rows.variable[i], rows.start[i], rows.series_id[i]] == [variable, start, SERIES_ID]


def test_lookbacks_are_found_again_by_position():
    found = source()
    rows = found.rows(torch.randperm(found.num_rows))
    assert torch.equal(
        found.lookbacks(series_id=rows.series_id, variable=rows.variable, start=rows.start), rows.lookback
    )
    own = rows.series_id
    last = found.lookbacks(series_id=own[:1], variable=torch.tensor([2]), start=torch.tensor([120 - L]))
    assert found.holds(own) and not found.holds(own + 1)
    with pytest.raises(IndexError, match="series_id"):
        found.lookbacks(series_id=own[:1] + 1, variable=torch.tensor([2]), start=torch.tensor([60]))
    assert torch.equal(last[0], VALUES[120 - L : 120, 2])


@pytest.mark.parametrize(("variable", "start"), [(0, 49), (0, 120 - L + 1), (3, 60), (-1, 60)])
def test_lookbacks_outside_the_training_part_are_errors(variable, start):
    """A memory restored beside other data would read validation or test rows."""
    with pytest.raises(IndexError, match="expected .* in the training part, found"):
        found = source()
        found.lookbacks(
            series_id=torch.full((2,), found.series_id),
            variable=torch.tensor([0, variable]),
            start=torch.tensor([60, start]),
        )


def test_source_rows_outside_are_errors_and_none_is_fine():
    with pytest.raises(IndexError, match="row: expected 0 to 116"):
        source().rows(torch.tensor([117]))
    assert source().rows(torch.empty(0, dtype=torch.int64)).lookback.shape == (0, L)


def test_source_reads_no_row_after_its_part():
    """Futures from the validation part in the memory are a leak."""
    changed = VALUES.clone()
    changed[SPLIT.end :] = torch.nan
    found = TrainingWindows(changed, SPLIT, seq_len=L, pred_len=H, series_id=1)
    rows = found.rows(torch.arange(found.num_rows))
    assert rows.lookback.isfinite().all() and rows.future.isfinite().all()
