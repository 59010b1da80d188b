"""A run's prediction intervals: which errors they rest on, where they are kept, what cuts them off."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import run_main
from data_provider.data_factory import build_data
from models.registry import MODELS
from tests.utils.training.comparing import load, records, unequal
from utils.config import Config
from utils.conformal import rank_of
from utils.training import checkpoint as checkpoints
from utils.training import intervals
from utils.training.experiment import RunResult
from utils.training.forward import forecast_state, stacked
from utils.training.intervals import ErrorCollector, calibrated, std_of, still_valid
from utils.training.trainer import Trainer
from utils.types import ForecastState
from utils.windows import floored_std

COMMON: dict[str, Any] = {
    "use_gram": True,
    "max_steps": 6,
    "eval_steps": 2,
    "save_steps": 2,
    "save_total_limit": 0,
    "dropout": 0.2,
    "eval_batch_size": 5,
}
"""Of 300 rows: 23 windows of validation and 53 of test."""


@pytest.fixture(scope="module")
def longer(tmp_path_factory, write_series) -> dict[str, Any]:
    """A series with enough validation windows for a level of 95%."""
    path = write_series(tmp_path_factory.mktemp("series") / "longer.csv", 300)
    return {"root_path": str(path.parent), "data_path": path.name}


@pytest.fixture(scope="module")
def whole(longer, tiny_settings, tmp_path_factory) -> RunResult:
    """A run with the common settings that nothing cuts off."""
    folder = tmp_path_factory.mktemp("whole")
    settings = tiny_settings(Path(longer["root_path"]) / longer["data_path"], folder)
    return run_main.train(Config.from_flat({**settings, **COMMON}), model="TimeLLM_Enhanced")


class Killed(BaseException):
    """A power cut."""


def by_hand(run_dir: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Absolute errors [n, H, M] and lookback deviations [n, M] of the best weights, window by window."""
    kept = checkpoints.load(run_dir / "checkpoint")
    config = Config.from_flat(kept["config"])
    model: Any = MODELS[kept["model_name"]](config)
    model.load_state_dict(kept["model"])
    model.eval()
    windows: Any = getattr(build_data(config), part)
    errors, deviations = [], []
    for i in range(len(windows)):
        batch = stacked([windows[i]], torch.device("cpu"))
        with torch.no_grad():
            errors.append((forecast_state(model, batch).prediction - batch.y).abs()[0].numpy())
        deviations.append(np.maximum(batch.x[0].numpy().std(axis=0), 0.1))
    return np.stack(errors), np.stack(deviations)


@pytest.mark.parametrize("score", ["absolute", "scaled"])
def test_the_results_say_what_the_intervals_covered(start_run, longer, score):
    """Quantiles of validation, counts of test: all by hand, and no other window."""
    run = start_run(**longer, **COMMON, interval_score=score, levels=(0.8, 0.9))
    validation, spread = by_hand(run.run_dir, "validation")
    test, test_spread = by_hand(run.run_dir, "test")
    found = run.results["best"]["intervals"]
    assert found["score"] == score and found["calibration_windows"] == 23 and found["windows"] == 53
    for level in (0.8, 0.9):
        scores = validation / spread[:, None] if score == "scaled" else validation
        half = np.sort(scores, axis=0)[rank_of(level, 23) - 1] * np.ones((53, 1, 1))  # [53, H, M]
        half = half * test_spread[:, None] if score == "scaled" else half
        inside = test <= half
        own = found["levels"][f"{level:g}"]
        tolerance = 3 / inside.size  # errors that lie on a bound may fall either way with the batch
        assert own["coverage"] == pytest.approx(inside.mean(), abs=tolerance)
        assert own["width"] == pytest.approx(2 * half.mean(), rel=1e-4)
        np.testing.assert_allclose(own["coverage_by_step"], inside.mean(axis=(0, 2)), atol=3 / 106)
        np.testing.assert_allclose(own["width_by_step"], 2 * half.mean(axis=(0, 2)), rtol=1e-4)
        assert list(own["coverage_by_variable"]) == ["a", "OT"]
        np.testing.assert_allclose(
            list(own["width_by_variable"].values()), 2 * half.mean(axis=(0, 1)), rtol=1e-4
        )


def test_the_best_checkpoint_keeps_the_calibration_and_everything_else(start_run, longer, whole):
    """Weights, optimizer, random states to the bit; and it is not taken for newer than the last step's."""
    plain, run = start_run(**longer, **COMMON, levels=()), whole
    kept, before = load(run.run_dir / "checkpoint"), load(plain.run_dir / "checkpoint")
    state = kept.pop("calibration")
    assert state["count"] == 23 and state["asked"] == "auto" and state["values"].shape[1:] == (8, 2)
    assert "intervals" not in plain.results["best"] and "calibration" not in plain.results["phases"]
    but = ("checkpoints", "levels")
    assert not unequal(kept, before, but=but)
    assert checkpoints.stated_checksum(run.run_dir / "checkpoint")
    assert checkpoints.newest_in(run.run_dir) == checkpoints.step_path(run.run_dir, 6)
    for step in (2, 4, 6):
        a, b = (load(checkpoints.step_path(r.run_dir, step)) for r in (run, plain))
        assert "calibration" not in a and not unequal(a, b, but=but), "training goes on as without"


def test_a_level_that_the_windows_are_too_few_for_is_left_out_and_said(start_run, caplog):
    """5 validation windows bound one more at 80%, not at 95%."""
    with caplog.at_level(logging.INFO):
        run = start_run(max_steps=2)
    assert list(run.results["best"]["intervals"]["levels"]) == ["0.8"]
    assert "0.95 takes 19 windows of calibration or more, found 5" in caplog.text
    assert "5 windows are too few to choose a score by; absolute" in caplog.text


def test_a_test_of_the_checkpoint_covers_the_same(start_run, longer, whole):
    run = whole
    tested = start_run(**longer, **COMMON, is_training=0, resume_from_checkpoint=str(run.run_dir))
    assert tested.results["checkpoint"]["intervals"] == run.results["best"]["intervals"]
    alone = start_run(
        **longer, **COMMON, is_training=0, resume_from_checkpoint=str(run.run_dir / "checkpoint_step_2")
    )
    assert "intervals" not in alone.results["checkpoint"], "a step's weights have none of their own"


# Cut off


def same_end(a: Path, b: Path) -> None:
    """Two runs left the same, but for clocks and places."""
    but = ("checkpoints", "resume_from_checkpoint", "phases", "saving", "run_dir", "seconds")
    assert not unequal(load(a / "checkpoint"), load(b / "checkpoint"), but=but)
    results = [json.loads((folder / "results.json").read_text()) for folder in (a, b)]
    assert not unequal(*results, but=but)
    assert records(a) == records(b)


@pytest.mark.parametrize("moment", ["before it is stored", "while it is written", "after it is stored"])
def test_a_run_killed_around_its_calibration_goes_on(start_run, longer, whole, tmp_path, monkeypatch, moment):
    real_store, real_replace = intervals._store, os.replace

    def store(*args: Any) -> None:
        if moment == "before it is stored":
            raise Killed
        if moment == "while it is written":
            monkeypatch.setattr(os, "replace", broken)
        real_store(*args)
        raise Killed

    def broken(*_: object) -> None:
        monkeypatch.setattr(os, "replace", real_replace)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(intervals, "_store", store)
        with pytest.raises(Killed):
            start_run(**longer, **COMMON)
    monkeypatch.setattr(os, "replace", real_replace)
    (run_dir,) = (tmp_path / "checkpoints").glob("long_term*")
    assert ("calibration" in load(run_dir / "checkpoint")) == (moment == "after it is stored")
    passes = []
    evaluate = Trainer.evaluate

    def watched(own: Any, loader: Any, *, name: str, **more: Any) -> Any:
        passes.append(name)
        return evaluate(own, loader, name=name, **more)

    monkeypatch.setattr(Trainer, "evaluate", watched)
    resumed = start_run(**longer, **COMMON, resume_from_checkpoint="auto")
    assert resumed.run_dir == run_dir and "validation" not in passes, "nothing is trained again"
    assert ("calibration" in passes) == (moment != "after it is stored")
    same_end(whole.run_dir, run_dir)


def test_a_run_that_trains_on_gets_a_new_calibration(start_run, longer, whole, tmp_path):
    """The old one belongs to the old weights."""
    shutil.copytree(whole.run_dir, tmp_path / "copy")
    before = load(tmp_path / "copy" / "checkpoint")
    again = start_run(**longer, **{**COMMON, "max_steps": 12}, resume_from_checkpoint=str(tmp_path / "copy"))
    after = load(again.run_dir / "checkpoint")
    assert after["global_step"] > before["global_step"]
    errors, _ = by_hand(again.run_dir, "validation")
    assert after["calibration"]["values"].shape == before["calibration"]["values"].shape
    assert not torch.equal(after["calibration"]["values"], before["calibration"]["values"])
    if after["calibration"]["score"] == "absolute":
        np.testing.assert_allclose(after["calibration"]["values"][-1], errors.max(axis=0), rtol=1e-4)


def test_a_calibration_is_kept_only_for_what_was_asked():
    rng = np.random.default_rng(0)
    errors = intervals.Errors(
        np.abs(rng.normal(size=(50, 2, 1))).astype(np.float32), np.ones((50, 1), np.float32), np.arange(50)
    )
    state = calibrated(errors, asked="auto", levels=[0.8])
    assert state["choice"] and state["score"] == min(state["choice"], key=state["choice"].get)
    assert still_valid(state, asked="auto", levels=[0.8]) and still_valid(state, asked="auto", levels=[0.999])
    assert not still_valid(state, asked="scaled", levels=[0.8])
    assert not still_valid(None, asked="auto", levels=[])
    many = calibrated(
        intervals.Errors(
            np.repeat(errors.absolute, 40, axis=0), np.repeat(errors.std, 40, axis=0), np.arange(2000)
        ),
        asked="scaled",
        levels=[0.8],
    )
    assert many["score"] == "scaled" and not many["choice"]
    assert not still_valid(many, asked="scaled", levels=[0.8765])


# The errors


def test_the_deviation_is_that_of_each_lookback(start_run, longer):
    """Of the variables that are forecast alone, floored as everywhere."""
    config = Config.from_flat(
        {
            "data": "custom",
            **longer,
            "seq_len": 32,
            "pred_len": 8,
            "label_len": 0,
            "features": "MS",
            "target": "a",
        }
    )
    windows: Any = build_data(config).test
    batch = stacked([windows[0], windows[1]], torch.device("cpu"))
    assert batch.x.shape[-1] == 2
    expected = [floored_std(x[None, :, -1]).item() for x in batch.x]
    assert std_of(batch).squeeze(1).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("stride", [1, 2, 8])
def test_many_windows_are_thinned_evenly_whatever_the_stride(longer, monkeypatch, stride):
    """Windows 8 rows apart all have an even start: by the start itself, all or none would be kept."""
    values = {"data": "custom", **longer, "seq_len": 32, "pred_len": 8, "label_len": 0, "eval_stride": stride}
    windows: Any = build_data(Config.from_flat(values)).validation
    monkeypatch.setattr(intervals, "MOST_BYTES", len(windows) * 8 * 2 * 4 // 3)
    monkeypatch.setattr(intervals, "gather_object", list)
    collector = ErrorCollector(windows, stride=stride)
    for i in range(len(windows)):
        batch = stacked([windows[i]], torch.device("cpu"))
        collector.add(ForecastState(torch.zeros_like(batch.y), None, None), batch)
    starts = collector.gather().start
    assert set(np.diff(starts)) <= {3 * stride, 4 * stride} and len(set(np.diff(starts))) <= 1
    assert len(starts) <= -(-len(windows) // 3) and starts[0] == windows[0].start
