"""Pictures show what the run did, and say what it has not."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

import run_main
from scripts import plot, quickstart
from scripts.lib.inspect.options import LoadedRun, load, parser_for
from scripts.lib.inspect.plot_data import gather
from utils.reporting import plots, run_plots
from utils.training.run_folder import METRICS_FILE, RESULTS_FILE, read_json

PICTURES = {"forecasts.png", "errors.png", "training.png", "calibration.png"}


@pytest.fixture(scope="module")
def run(looked_at) -> LoadedRun:
    return load(parser_for("x").parse_args([str(looked_at), "--device", "cpu"]))


@pytest.fixture(scope="module")
def evidence(run):
    return gather(run, windows=None, levels=(0.5, 0.8, 0.95))


def test_every_picture_is_drawn(looked_at, tmp_path, capsys):
    assert plot.main([str(looked_at), "--out", str(tmp_path / "a" / "b"), "--windows", "10"]) == 0
    said = capsys.readouterr().out
    drawn = {path.name: path for path in (tmp_path / "a" / "b").iterdir()}
    assert drawn.keys() == PICTURES and all(str(path) in said for path in drawn.values())
    for path in drawn.values():
        pixels = imread(path)
        assert pixels.shape[1] > 1300 and pixels.shape[0] > 700 and pixels[..., :3].std() > 0.05
        assert path.stat().st_size < 200_000


def test_by_default_they_lie_in_the_runs_folder(looked_at, capsys):
    assert plot.main([str(looked_at), "--windows", "2"]) == 0
    assert {path.name for path in (looked_at / "plots").iterdir()} == PICTURES


def test_the_quick_start_draws_them_of_the_run_that_it_has_trained(run, looked_at):
    lines = quickstart.pictures_of(looked_at, run.forecaster.config.data.root_path)
    assert {Path(line).name for line in lines} == PICTURES


def test_the_errors_drawn_are_the_tests(evidence, looked_at):
    """All windows together give the scores of results.json."""
    test = read_json(looked_at / RESULTS_FILE)["best"]["test"]
    assert len(evidence.start) == test["windows"] == evidence.test_windows
    assert float((evidence.error**2).mean()) == pytest.approx(test["mse"], rel=1e-4)
    assert float(np.abs(evidence.error).mean()) == pytest.approx(test["mae"], rel=1e-4)
    assert evidence.scope == f"all {len(evidence.start)} test windows"


def test_the_coverage_drawn_is_the_tests(evidence, looked_at):
    intervals = read_json(looked_at / RESULTS_FILE)["best"]["intervals"]["levels"]
    for level in (0.8, 0.95):
        inside = run_plots._inside(evidence, level).mean()
        assert float(inside) == pytest.approx(intervals[str(level)]["coverage"], abs=1e-3)


def test_the_naive_forecast_repeats_the_last_season(evidence, run):
    season, start = run.data.season, int(evidence.start[0])
    values = run.series.values[start : start + 40]
    repeated = values[32 - season : 32][:8]
    wanted = (repeated - values[32:]) / evidence.std
    assert np.allclose(evidence.naive_error[0], wanted, atol=1e-4)


def test_without_a_whole_season_no_last_one_is_drawn_and_that_is_said(evidence, tmp_path, monkeypatch):
    """A season that the lookback cuts short was drawn as "last season repeated"."""
    said: list[str] = []
    monkeypatch.setattr(plots.Figure, "suptitle", lambda self, text, **_: said.append(text))
    short = replace(evidence, season=None)
    assert short.naive_error is None
    assert imread(run_plots.plot_errors(short, tmp_path / "errors.png")).std() > 0.05
    assert said[0].endswith(plots.NO_SEASON)


def test_times_on_the_axis_are_those_of_the_file(evidence, run):
    start = int(evidence.start[3])
    assert evidence.times[3, 0] == run.series.dates[start + 32].to_datetime64()
    assert evidence.lookback_times[3, -1] == run.series.dates[start + 31].to_datetime64()
    figure = plots.new_figure(6, 3)
    axis = figure.subplots()
    run_plots.draw_window(axis, evidence, 3, 1, levels=(0.8,))
    lines = {
        line.get_label(): (np.asarray(line.get_xdata()), np.asarray(line.get_ydata())) for line in axis.lines
    }
    assert np.allclose(lines["truth"][1][1:], evidence.truth[3, :, 1])
    assert np.allclose(lines["forecast"][1][1:], evidence.prediction[3, :, 1])
    assert lines["truth"][0][0] == evidence.lookback_times[3, -1]
    (band,) = [c for c in axis.collections if c.get_label() == "80% interval"]
    bounds = np.asarray(band.get_paths()[0].vertices)[:, 1]
    half = evidence.half_width[0.8][3, :, 1]
    assert bounds.max() == pytest.approx((evidence.prediction[3, :, 1] + half).max())


def test_a_run_without_calibration_or_steps_says_so(plain_run, tmp_path, capsys):
    assert plot.main([str(plain_run), "--out", str(tmp_path), "--windows", "4"]) == 0
    said = capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"forecasts.png", "errors.png"}
    assert "no calibration picture: expected intervals, found none: this run has no calibration" in said
    assert "no training curves: expected records of training steps, found none" in said


def test_a_run_from_before_gates_and_speeds_were_recorded_is_drawn(tmp_path):
    """The records of an older run lack them."""
    records = [
        {"event": "train", "step": s, "loss": 1 / s, "auxiliary": 0.1, "learning_rate": 1e-3} for s in (1, 2)
    ]
    out = run_plots.plot_training(records, tmp_path / "t.png", name="old")
    assert imread(out).shape[1] > 1000


def test_many_variables_have_room(evidence, tmp_path):
    """Names are turned, and numbers on bars left out."""
    from dataclasses import replace

    many = replace(
        evidence,
        targets=[f"v{i}" for i in range(20)],
        lookback=np.tile(evidence.lookback, 10),
        truth=np.tile(evidence.truth, 10),
        prediction=np.tile(evidence.prediction, 10),
        std=np.tile(evidence.std, 10),
        half_width={level: np.tile(half, 10) for level, half in evidence.half_width.items()},
    )
    for draw in (run_plots.plot_errors, run_plots.plot_calibration):
        assert draw(many, tmp_path / "many.png").is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: None, "--windows: expected 1 or more"),
        (lambda run: (run / "checkpoint").unlink(), "--checkpoint"),
    ],
)
def test_a_mistake_is_one_error(looked_at, tmp_path, capsys, change, message):
    copied = shutil.copytree(looked_at, tmp_path / "run")
    for step in copied.glob("checkpoint_step_*"):
        shutil.rmtree(step)
    change(copied)
    assert (copied / METRICS_FILE).is_file()
    assert plot.main([str(copied), "--windows", "0" if "windows" in message else "1"]) == 2
    assert message in capsys.readouterr().err


def test_a_run_whose_steps_were_not_logged_is_not_said_to_take_none(make_run, capsys, monkeypatch):
    """Six steps with --log_steps 10: "the model takes no steps"."""
    run = make_run(run_main.main, model="DLinear", max_steps=6, eval_steps=3, log_steps=10, levels=0.8)
    for other in ("plot_test_windows", "plot_errors", "plot_calibration"):
        monkeypatch.setattr(plot, other, lambda *_, **__: "another picture")
    assert plot.main([str(run), "--windows", "2"]) == 0
    said = capsys.readouterr().out
    assert "training.png (of the validations alone: every 10th step is logged (--log_steps 10)" in said
    assert "takes no steps" not in said and "step 6" in said
    assert (run / "plots" / "training.png").is_file()
