from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from data_provider import data_factory
from data_provider.data_factory import build_data, evaluation_loader, training_loader
from data_provider.dataset import WindowDataset
from data_provider.download import LocalFile
from utils.config import Config
from utils.types import Batch, DataBundle


def configuration(path: Path, **changes: object) -> Config:
    values = {"data": "custom", "root_path": str(path.parent), "data_path": path.name}
    small = {"seq_len": 24, "pred_len": 8, "label_len": 0, "batch_size": 16}
    return Config.from_flat({**values, **small, **changes})


def starts(loader: torch.utils.data.DataLoader[Batch]) -> list[int]:
    return [start for batch in loader for start in batch.start.tolist()]


def size(part: object) -> int:
    assert isinstance(part, WindowDataset)
    return len(part)


def test_etth1_has_the_published_windows_and_steps(etth1_root):
    """Steps per epoch tell a user of a cut-off session where they were: 251 joint, 1757 single."""
    config = Config.from_flat({"root_path": etth1_root})
    bundle = build_data(config)
    assert [size(p) for p in (bundle.train, bundle.validation, bundle.test)] == [8033, 2785, 2785]
    assert bundle.source.num_rows == 8033 * 7
    assert (bundle.name, bundle.frequency, bundle.season) == ("ETTh1", "h", 24)
    assert len(training_loader(bundle, config)) == 251
    single = config.replace(channel_sampling="single")
    assert len(training_loader(build_data(single), single)) == 1757


@pytest.mark.parametrize("percent", [10, 50, 100])
def test_the_scaler_sees_the_used_training_rows_alone(write_csv, percent):
    """Few-shot runs of the family fit the scaler on all training rows; some on the whole file."""
    path = write_csv(1000)
    bundle = build_data(configuration(path, percent=percent))
    values = pd.read_csv(path).drop(columns="date").to_numpy()
    used = values[: (700 - 24) * percent // 100 + 24]
    np.testing.assert_allclose(bundle.standardisation.mean, used.mean(0), rtol=1e-12)
    np.testing.assert_allclose(bundle.standardisation.std, used.std(0), rtol=1e-12)
    assert bundle.source.num_windows == size(bundle.train) == len(used) - 24 - 8 + 1
    assert ("percent" in bundle.notes) == (percent < 100)


def test_later_rows_change_nothing_in_training(write_csv):
    """Any influence of validation or test rows on what training sees is a leak."""
    path = write_csv(600)
    before = build_data(configuration(path))
    frame = pd.read_csv(path)
    frame.loc[420:, ["a", "b", "OT"]] += 100.0
    frame.to_csv(path, index=False)
    after = build_data(configuration(path))
    assert torch.equal(before.standardisation.mean, after.standardisation.mean)
    rows = torch.arange(before.source.num_rows)
    assert torch.equal(before.source.rows(rows).lookback, after.source.rows(rows).lookback)
    assert torch.equal(before.source.rows(rows).future, after.source.rows(rows).future)


@pytest.mark.parametrize("workers", [0, 2])
def test_every_evaluation_window_comes_once_and_in_order(write_csv, workers):
    """The family drops the last test batch and shuffles validation."""
    bundle = build_data(configuration(write_csv(600)))
    for part in (bundle.validation, bundle.test):
        loader = evaluation_loader(part, 16, workers)
        found = starts(loader)
        first = part[0].start.item()
        assert len(part) % 16  # type: ignore[arg-type]
        assert found == list(range(int(first), int(first) + size(part)))
        assert starts(loader) == found


def test_the_validation_stride_is_noted_and_leaves_the_test_alone(write_csv):
    """A strided validation that nobody mentions reads as a full one."""
    path = write_csv(600)
    full, strided = (build_data(configuration(path, eval_stride=s)) for s in (1, 5))
    assert size(strided.validation) == -(-size(full.validation) // 5)
    assert size(strided.test) == size(full.test) and size(strided.train) == size(full.train)
    assert "every 5th of 53 validation windows" in strided.notes["validation"]
    assert "validation" not in full.notes


def test_the_test_stride_takes_every_nth_test_window_and_is_noted(write_csv):
    """A score over some of the windows that reads as one over all of them is no score."""
    path = write_csv(600)
    full, strided = (build_data(configuration(path, test_stride=s)) for s in (1, 4))
    every = [full.test[i].start for i in range(size(full.test))]
    assert [strided.test[i].start for i in range(size(strided.test))] == every[::4]
    assert size(strided.validation) == size(full.validation) and size(strided.train) == size(full.train)
    assert f"every 4th of {len(every)} test windows (--test_stride 4)" == strided.notes["test"]
    assert "test" not in full.notes


@pytest.mark.parametrize("sampling", ["joint", "single"])
def test_the_training_order_follows_from_the_seed_alone(write_csv, sampling):
    """With 0 and 2 workers, whatever the global random state: else no run can be repeated."""
    path = write_csv(600)
    orders = []
    for workers, disturbance in ((0, 1), (2, 2), (0, 3)):
        torch.manual_seed(disturbance)
        config = configuration(path, num_workers=workers, channel_sampling=sampling, seed=7)
        loader = training_loader(build_data(config), config)
        loader.sampler.set_epoch(3)  # type: ignore[attr-defined]
        orders.append([batch.start.tolist() + batch.variable.flatten().tolist() for batch in loader])
        if workers:  # live workers must hear of the next epoch
            loader.sampler.set_epoch(4)  # type: ignore[attr-defined]
            assert [batch.start.tolist() for batch in loader] != [o[:16] for o in orders[-1]]
    assert orders[0] == orders[1] == orders[2]
    config = configuration(path, channel_sampling=sampling, seed=8)
    other = starts(training_loader(build_data(config), config))
    assert other[:16] != orders[0][0][:16]


@pytest.mark.parametrize("workers", [0, 2])
def test_iterating_leaves_the_global_random_states_alone(write_csv, workers):
    """A DataLoader without a generator of its own draws from the global one: validating more often
    would change the training."""
    config = configuration(write_csv(600), num_workers=workers)
    bundle = build_data(config)
    loaders = [training_loader(bundle, config), evaluation_loader(bundle.test, 16, workers)]
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    for loader in loaders:
        starts(loader)
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]


def test_training_batches_are_full_and_distinct(write_csv):
    config = configuration(write_csv(600))
    loader = training_loader(build_data(config), config)
    assert all(len(batch.start) == 16 for batch in loader)
    found = starts(loader)
    assert len(set(found)) == len(found) == 389 // 16 * 16


def test_fewer_windows_than_a_batch_is_an_error(write_csv):
    """drop_last would otherwise leave an epoch of no steps that trains nothing and says so nowhere."""
    config = configuration(write_csv(400), batch_size=300)
    with pytest.raises(ValueError, match="--batch_size 300.*found 249 training items"):
        training_loader(build_data(config), config)
    config = config.replace(batch_size=100)
    assert len(training_loader(build_data(config), config)) == 2
    with pytest.raises(ValueError, match="on each of 3 processes"):
        training_loader(build_data(config), config, num_processes=3)


@pytest.mark.parametrize(("freq", "season"), [("h", 24), ("15min", 96), ("D", 7), ("6h", 4)])
def test_the_season_follows_the_frequency_and_a_longer_one_is_said(write_csv, freq, season):
    path = write_csv(400, freq=freq)
    bundle = build_data(configuration(path))
    assert bundle.season == season
    assert ("season" in bundle.notes) == (season > 24)
    assert build_data(configuration(path, season=12)).season == 12
    assert "longer than the lookback of 24" in build_data(configuration(path, season=1000)).notes["season"]


def test_a_bundle_says_what_it_was_made_of(write_csv):
    bundle = build_data(configuration(write_csv(400, name="weather.csv")))
    assert isinstance(bundle, DataBundle)
    assert (bundle.name, list(bundle.columns), bundle.frequency) == ("weather", ["a", "b", "OT"], "h")
    assert len(bundle.content_hash) == len(bundle.notes["file_sha256"]) == 64


def test_the_synthetic_series_needs_no_file_and_is_called_so(tmp_path):
    config = Config.from_flat({"data": "synthetic", "root_path": str(tmp_path), "freq": "H"})
    bundle = build_data(config)
    assert bundle.name == "synthetic" and "no real data" in bundle.notes["data"]
    assert build_data(config.replace(seed=5)).content_hash == bundle.content_hash
    assert list(build_data(config.replace(features="S")).columns) == ["OT"]
    assert not list(tmp_path.iterdir())


def test_a_public_file_is_fetched_only_under_its_own_name(tmp_path, monkeypatch, write_csv):
    """--data ETTh1 --data_path mine.csv asks for that file, not for a download."""
    asked: list[str] = []

    def remember(name: str, root: str) -> list[LocalFile]:
        asked.append(name)
        return [LocalFile(write_csv(400, name="ETTh1.csv"), "0" * 64)]

    monkeypatch.setattr(data_factory, "ensure_data", remember)
    with pytest.raises(FileNotFoundError, match="mine.csv"):
        build_data(Config.from_flat({"data_path": "mine.csv", "root_path": str(tmp_path)}))
    assert not asked
    with pytest.raises(ValueError, match="--data ETTh1: expected 14400 rows or more, found 400"):
        build_data(Config.from_flat({"root_path": str(tmp_path)}))
    assert asked == ["ETTh1"]
