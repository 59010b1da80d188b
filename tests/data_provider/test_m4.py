"""M4's windows: what is trained, validated and tested on, and what is masked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from data_provider.data_factory import build_data, evaluation_loader, training_loader
from data_provider.m4 import read_competition, scale_of, training_places
from data_provider.panel_windows import PanelDataset, PanelSource
from utils.config import Config, ConfigError
from utils.data_sets import M4_PATTERNS
from utils.m4_scores import mase_scale, naive2
from utils.types import DataBundle

WriteM4 = Callable[..., Path]
H, L = 8, 16
LENGTHS = [16, 17, 24, 40, 60]


@pytest.fixture
def write_m4(tmp_path: Path) -> WriteM4:
    """Write both files of a group in the competition's form; series of these lengths."""

    def write(pattern: str = "Quarterly", lengths: list[int] = LENGTHS, seed: int = 0) -> Path:
        rng = np.random.default_rng(seed)
        horizon = M4_PATTERNS[pattern].horizon
        folder = tmp_path / "m4"
        folder.mkdir(exist_ok=True)
        widest = max(lengths)
        series = [1000 * (s + 1) + rng.normal(0, 30, n + horizon).cumsum() for s, n in enumerate(lengths)]
        for part in ("train", "test"):
            cut = [values[:-horizon] if part == "train" else values[-horizon:] for values in series]
            width = widest if part == "train" else horizon
            lines = [",".join(f'"V{i + 1}"' for i in range(width + 1))]
            for number, values in enumerate(cut):
                fields = [f'"{pattern[0]}{number + 1}"', *(f"{v:.2f}" for v in values)]
                lines.append(",".join(fields) + "," * (width - len(values)))
            (folder / f"{pattern}-{part}.csv").write_text("\n".join(lines) + "\n")
        return folder

    return write


def config_of(folder: Path, **changes: object) -> Config:
    values = {"data": "M4", "root_path": str(folder), "seasonal_patterns": "Quarterly", "batch_size": 4}
    return Config.from_flat({**values, **changes})


def raw(folder: Path, part: str) -> list[np.ndarray]:
    """The file's series, read line by line."""
    lines = (folder / f"Quarterly-{part}.csv").read_text().splitlines()[1:]
    return [np.array([float(f) for f in line.split(",")[1:] if f]) for line in lines]


def parts(bundle: DataBundle) -> list[PanelDataset]:
    found = [bundle.train, bundle.validation, bundle.test]
    assert all(isinstance(part, PanelDataset) for part in found)
    return found  # type: ignore[return-value]


def test_the_flags_of_each_group_are_the_competitions(tmp_path):
    for name, pattern in M4_PATTERNS.items():
        config = Config.from_flat({"data": "m4", "seasonal_patterns": name})
        assert (config.data.pred_len, config.data.seq_len) == (pattern.horizon, 2 * pattern.horizon)
        assert (config.run.task_name, config.training.loss) == ("short_term_forecast", "SMAPE")
        assert config.data.root_path == "./dataset/m4" and config.patch_count >= 3
    horizons = {name: (p.horizon, p.season) for name, p in M4_PATTERNS.items()}
    assert horizons == {
        "Yearly": (6, 1), "Quarterly": (8, 4), "Monthly": (18, 12),
        "Weekly": (13, 1), "Daily": (14, 1), "Hourly": (48, 24),
    }  # fmt: skip


def test_validation_is_the_training_files_end_and_the_test_the_test_files(write_m4):
    """The family validates on the test set."""
    folder = write_m4()
    known, asked = raw(folder, "train"), raw(folder, "test")
    bundle = build_data(config_of(folder))
    _, validation, test = parts(bundle)
    for number, values in enumerate(known):
        scale = scale_of(values[:-H])
        np.testing.assert_allclose(validation[number].y[:, 0] * scale, values[-H:], rtol=1e-5)
        np.testing.assert_allclose(test[number].y[:, 0] * scale, asked[number], rtol=1e-5)
        np.testing.assert_allclose(test[number].x[:, 0] * scale, values[-L:], rtol=1e-5)
        assert bundle.standardisation.std[number] == pytest.approx(scale)
        assert test[number].start.item() == len(values) - L
        assert test[number].series_id == validation[number].series_id


def test_training_reads_nothing_of_validation_and_test(write_m4):
    folder = write_m4()
    before = build_data(config_of(folder))
    lines = (folder / "Quarterly-train.csv").read_text().splitlines()
    for number, line in enumerate(lines[1:], start=1):
        fields = line.rstrip(",").split(",")
        empty = line[len(line.rstrip(",")) :]
        fields[-H:] = [str(float(f) + 500.0) for f in fields[-H:]]
        lines[number] = ",".join(fields) + empty
    (folder / "Quarterly-train.csv").write_text("\n".join(lines) + "\n")
    after = build_data(config_of(folder))
    rows = torch.arange(before.source.num_rows)
    assert torch.equal(before.standardisation.std, after.standardisation.std)
    for name in ("lookback", "future", "start"):
        assert torch.equal(getattr(before.source.rows(rows), name), getattr(after.source.rows(rows), name))


def test_training_windows_are_those_that_can_be_counted_by_hand(write_m4):
    """One known row, the whole future, within the last 1.5 horizons, the last horizon kept for validation."""
    folder = write_m4()
    bundle = build_data(config_of(folder))
    train = parts(bundle)[0]
    wanted = []
    for number, length in enumerate(LENGTHS):
        usable = length - H
        wanted += [(number, cut) for cut in range(max(1, usable - 12), usable - H + 1)]
    own, cuts = (part.tolist() for part in train.places.of_all())
    assert list(zip(own, cuts, strict=True)) == wanted
    assert set(own) == {1, 2, 3, 4}  # the first has 16 rows: 8 to know, 8 held out
    assert "4 are long enough" in bundle.notes["series"]
    known = raw(folder, "train")
    for index, (number, cut) in enumerate(wanted):
        values, scale = known[number], scale_of(known[number][:-H])
        item = train[index]
        there = min(cut, L)
        np.testing.assert_allclose(item.x[-there:, 0] * scale, values[cut - there : cut], rtol=1e-5)
        np.testing.assert_allclose(item.y[:, 0] * scale, values[cut : cut + H], rtol=1e-5)
        assert item.x_mark[:, 0].tolist() == [0.0] * (L - there) + [1.0] * there
        assert item.start.item() == cut - L
        if there < L:
            assert item.x[: L - there, 0].numpy() == pytest.approx(float(item.x[-there:, 0].mean()), rel=1e-5)


def test_long_series_keep_to_their_recent_history():
    series, cut = training_places(np.array([100, 20]), 8, history=1.5).of_all()
    assert cut[series == 0].tolist() == [88, 89, 90, 91, 92]
    assert cut[series == 1].tolist() == [8, 9, 10, 11, 12]


def test_the_source_numbers_rows_as_the_training_items_and_finds_them_again(write_m4):
    bundle = build_data(config_of(write_m4()))
    source, train = bundle.source, parts(bundle)[0]
    assert isinstance(source, PanelSource) and source.num_rows == len(train)
    rows = source.rows(torch.arange(len(train)))
    for index in range(len(train)):
        assert torch.equal(rows.lookback[index], train[index].x[:, 0])
        assert torch.equal(rows.future[index], train[index].y[:, 0])
        assert rows.series_id[index] == train[index].series_id and rows.start[index] == train[index].start
    again = source.lookbacks(series_id=rows.series_id, variable=rows.variable, start=rows.start)
    assert torch.equal(again, rows.lookback) and source.holds(rows.series_id)
    assert not source.holds(torch.tensor([source.series_id]))
    with pytest.raises(IndexError, match="series_id"):
        source.lookbacks(series_id=torch.tensor([7]), variable=torch.tensor([0]), start=torch.tensor([0]))
    with pytest.raises(IndexError, match="row: expected"):
        source.rows(torch.tensor([len(train)]))


def test_what_forecasts_are_scored_with_is_in_sample_alone(write_m4):
    folder = write_m4()
    _, validation, test = parts(build_data(config_of(folder)))
    for part, held_out in ((validation, H), (test, 0)):
        reference = part.reference
        assert reference is not None and bool((reference.series_id.diff() > 0).all())
        for number, values in enumerate(raw(folder, "train")):
            known = values[: len(values) - held_out] / scale_of(values[:-H])
            row = int((reference.series_id == part[number].series_id).nonzero())
            assert float(reference.scale[row]) == pytest.approx(mase_scale(known, 4), rel=1e-4)
            np.testing.assert_allclose(reference.naive2[row], naive2(known, H, 4), rtol=1e-4)


def test_loaders_take_series_of_different_lengths(write_m4):
    config = config_of(write_m4())
    bundle = build_data(config)
    batch = next(iter(training_loader(bundle, config)))
    assert batch.x.shape == (4, L, 1) and batch.y.shape == (4, H, 1) and batch.x_mark.shape == (4, L, 1)
    assert [len(b.start) for b in evaluation_loader(bundle.test, 4)] == [4, 1]
    strided = build_data(config.replace(eval_stride=2))
    assert len(parts(strided)[1]) == 3 and len(parts(strided)[2]) == 5


def test_a_scale_is_never_zero_nor_far_below_the_level():
    assert scale_of(np.zeros(5)) == scale_of(np.array([])) == 1.0
    assert scale_of(np.full(9, 200.0)) == 2.0
    values = np.array([100.0, 140.0, 60.0])
    assert scale_of(values) == pytest.approx(values.std())


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("Q2", "Q1", "series Q1: expected finite values, found a second one"),
        ('"Q3",', '"Q3",x', "line 4, series Q3: expected numbers"),
        ('"Q3",', '"Q3",nan,', "series Q3: expected finite values, found one that is missing"),
        ('"Q3",', '"Q3",,', "line 4, series Q3: expected numbers"),
        ("Q5", "Q9", "expected the series of Quarterly-train.csv in their order, found Q"),
    ],
)
def test_a_file_at_fault_is_named_with_series_and_line(write_m4, old, new, said):
    folder = write_m4()
    path = folder / "Quarterly-train.csv"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(ValueError, match=said):
        build_data(config_of(folder))


def test_lengths_that_do_not_fit_are_named(write_m4):
    with pytest.raises(ValueError, match="series Q1: expected more than 8 values, found 8"):
        build_data(config_of(write_m4(lengths=[8, 30])))
    with pytest.raises(ValueError, match="expected series of 17 values or more"):
        build_data(config_of(write_m4(lengths=[12, 16])))
    folder = write_m4(lengths=[30])
    with pytest.raises(ValueError, match="series Q1: expected 6 values, found 8"):
        read_competition(folder / "Quarterly-train.csv", folder / "Quarterly-test.csv", horizon=6)
    (folder / "Quarterly-test.csv").write_text("V1\n")
    with pytest.raises(ValueError, match="found none"):
        build_data(config_of(folder))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pred_len": 12}, "--pred_len: expected 8, the horizon of M4 Quarterly, found 12"),
        ({"percent": 10}, "--percent: expected 100"),
        ({"features": "MS"}, "--features: expected M"),
        ({"eval_data": "ETTh1"}, "--eval_data: expected None"),
        ({"task_name": "long_term_forecast"}, "--task_name long_term_forecast: expected short_term"),
        ({"data": "ETTh1", "task_name": "short_term_forecast"}, "found --data ETTh1"),
        ({"data": "ETTh1", "loss": "SMAPE"}, "--loss SMAPE: expected --task_name short_term_forecast"),
    ],
)
def test_settings_that_do_not_fit_the_competition_are_refused(changes, said, tmp_path):
    with pytest.raises(ConfigError, match=said):
        config_of(tmp_path, **changes)
