"""From runs that the real entry point makes to forecasts of tables, from Python and on the command line."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import run_main
from data_provider.data_factory import build_data
from layers.llm.sources import LLMUnavailableError
from models import Forecaster
from models.registry import MODELS
from scripts import predict
from tests.conftest import forget_accelerator
from tests.processes import python
from utils.config import Config
from utils.conformal import LevelError
from utils.errors import UserError
from utils.paths import PROJECT_ROOT
from utils.training import checkpoint as checkpoints
from utils.training.checkpoint import CheckpointError
from utils.training.experiment import RunResult

ROWS, LOOKBACK, HORIZON = 300, 32, 8
FREQUENCIES = ["h", "15min", "D", "W-MON", "ME", "B", "QS-OCT"]
Runs = Callable[..., RunResult]


def frame_of(rows: int = ROWS, *, freq: str = "h", seed: int = 0) -> pd.DataFrame:
    """Columns a, b and OT around 100, 1 and -5: units that a forecast must come back to."""
    time = np.arange(rows)
    noise = np.random.default_rng(seed).normal(0, 0.3, (rows, 3))
    waves = np.sin(time[:, None] * np.pi / 12 + np.arange(3)) + noise
    frame = pd.DataFrame(waves * [10, 0.1, 1] + [100, 1, -5], columns=["a", "b", "OT"])
    frame.insert(0, "date", pd.date_range("2020-01-01", periods=rows, freq=freq).astype(str))
    return frame


@pytest.fixture(scope="module")
def csv(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "mine.csv"
    frame_of().to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def runs(csv, tiny_gpt2, tmp_path_factory) -> Runs:
    """Runs by model and settings, each made once."""
    made: dict[str, RunResult] = {}
    home = tmp_path_factory.mktemp("runs")

    def run(model: str = "Ridge", **changes: Any) -> RunResult:
        settings = {
            "data": "custom", "root_path": str(csv.parent), "data_path": csv.name, "seq_len": LOOKBACK,
            "label_len": 8, "pred_len": HORIZON, "llm_model_path": str(tiny_gpt2), "llm_layers": 1,
            "d_model": 16, "d_ff": 16, "n_heads": 2, "num_tokens": 20, "d_repr": 16, "memory_size": 400,
            "batch_size": 16, "train_epochs": 1, "max_steps": 4, "aux_warmup_steps": 2, "save_steps": 0,
            "cpu": True, "checkpoints": str(home), "moving_avg": 5, **changes,
        }  # fmt: skip
        if model != "TimeLLM_Enhanced":
            settings["model"] = model
        name = repr((model, sorted(changes.items())))
        if name not in made:
            forget_accelerator()
            made[name] = run_main.train(Config.from_flat(settings), model=model)
        return made[name]

    return run


@pytest.fixture(scope="module")
def enhanced(runs) -> RunResult:
    return runs("TimeLLM_Enhanced", use_tapr=True, use_gram=True)


def load(run: RunResult | Path, **options: Any) -> Forecaster:
    return Forecaster.load(run if isinstance(run, Path) else run.run_dir, device="cpu", **options)


def altered(run: RunResult, folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """A copy of a run's best checkpoint, its payload changed."""
    payload = checkpoints.load(run.run_dir / "checkpoint")
    change(payload)
    checkpoints.save(payload, folder / "checkpoint")
    return folder / "checkpoint"


# The same forecasts as the run's own


BOTH = {"use_tapr": True, "use_gram": True}
OTHER_PARTS = [
    {"use_time_marks": True, "llm_ablation": "none"},
    {"mixed_precision": "bf16", "llm_ablation": "attention"},
    {**BOTH, "peft": "lora", "llm_ablation": "random"},
    {**BOTH, "max_channels_per_step": 2},
]


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        *((name, {"features": "MS"} if name == "Autoformer" else {}) for name in MODELS),
        *(("TimeLLM_Enhanced", parts) for parts in OTHER_PARTS),
    ],
)
def test_every_model_forecasts_as_its_run_did(runs, model, changes):
    """Units, weights, memory, marks and precision: all of them are those of the run's own test."""
    run = runs(model, **changes)
    forecaster = load(run)
    assert forecaster.model.name == model
    test = forecaster.own_data().test
    kept = np.load(run.run_dir / "forecasts.npz")
    windows = [next(i for i in range(len(test)) if test[i].start == start) for start in kept["start"]]  # type: ignore[arg-type]
    batches = forecaster.states([test[i] for i in windows])  # type: ignore[arg-type]
    found = np.concatenate([state.prediction.numpy() for _, state in batches])
    assert found.dtype in (np.float32, np.float64)
    np.testing.assert_allclose(found, kept["prediction"], atol=1e-5)


@pytest.mark.parametrize("features", ["M", "S", "MS"])
def test_what_is_forecast_are_the_run_s_variables(runs, csv, features):
    run = runs("TimeLLM", features=features, target="b")
    frame = load(run).predict(csv)
    expected = {"M": ["a", "b", "OT"], "S": ["b"], "MS": ["b"]}[features]
    assert list(frame) == ["date", *expected] and len(frame) == HORIZON
    known = pd.read_csv(csv)
    for name in expected:
        assert abs(frame[name].mean() - known[name].mean()) < 5 * known[name].std()


# Times


@pytest.mark.parametrize(
    ("trained", "given"), [*((freq, freq) for freq in FREQUENCIES), ("W-MON", "W-THU"), ("ME", "MS")]
)
def test_the_future_has_the_series_own_times(runs, tmp_path, trained, given):
    """Month ends are no fixed number of hours; weeks on another day are the same frequency."""
    frame_of(freq=trained).to_csv(tmp_path / "mine.csv", index=False)
    run = runs("Persistence", root_path=str(tmp_path), data_path="mine.csv")
    found = load(run).predict(frame_of(freq=given))["date"]
    expected = pd.date_range("2020-01-01", periods=ROWS + HORIZON, freq=given)[ROWS:]
    assert found.tolist() == expected.tolist()


# Tables


def test_a_file_a_frame_and_a_frame_with_dates_as_its_index_are_the_same(runs, csv):
    forecaster = load(runs())
    frame = pd.read_csv(csv)
    parsed = frame.assign(date=pd.to_datetime(frame["date"]))
    wanted = forecaster.predict(csv)
    for table in (str(csv), frame, parsed):
        pd.testing.assert_frame_equal(forecaster.predict(table), wanted)
    for name in ("date", None):
        found = forecaster.predict(parsed.set_index("date").rename_axis(name))
        pd.testing.assert_frame_equal(found, wanted.set_index("date").rename_axis(name))


def test_other_columns_are_passed_over_and_named_and_their_order_does_not_matter(runs, csv, caplog):
    forecaster = load(runs())
    frame = pd.read_csv(csv)
    more = frame[["OT", "b", "date", "a"]].assign(comment="text", weight=1.0)
    with caplog.at_level(logging.WARNING):
        found = forecaster.predict(more)
    pd.testing.assert_frame_equal(found, forecaster.predict(frame))
    assert "columns that are not read: comment, weight" in caplog.text


def test_the_input_frame_is_left_as_it_was(runs, csv):
    frame = pd.read_csv(csv)
    copy = frame.copy(deep=True)
    load(runs()).backtest(frame, 3)
    pd.testing.assert_frame_equal(frame, copy)


BAD = {
    "no_column": (
        lambda f: f.drop(columns="b"),
        r"expected the columns a, b, OT.*found no b among date, a, OT",
    ),
    "column_twice": (
        lambda f: pd.concat([f, f[["b"]]], axis=1),
        "expected each column once, found b more than once",
    ),
    "no_date": (
        lambda f: f.drop(columns="date"),
        "expected a column named 'date' or an index of dates, found neither",
    ),
    "no_rows": (lambda f: f.iloc[:0], "expected rows, found none"),
    "too_few": (
        lambda f: f.iloc[-31:],
        r"expected 32 rows or more, a lookback of 32 for each of 1 window.*found 31",
    ),
    "one_row": (lambda f: f.iloc[-1:], "expected 3 rows or more, found 1"),
    "other_frequency": (
        lambda f: f.assign(date=pd.date_range("2020-01-01", periods=len(f), freq="15min")),
        "expected rows at the frequency h, which the model was trained on, found 15min",
    ),
    "gap": (
        lambda f: f.drop(index=200),
        "data row 201: expected steps of h as in most rows.*accept them with --freq h",
    ),
    "missing": (
        lambda f: f.assign(a=f["a"].where(f.index != 7)),
        "column 'a', data row 8: expected a finite number",
    ),
    "huge": (
        lambda f: f.assign(a=f["a"].where(f.index != 5, 1e300)),
        "column 'a', data row 6: .*found 1e[+]300",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_table_that_does_not_fit_is_one_clear_error(runs, name):
    change, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        load(runs()).predict(change(frame_of()))


def test_gaps_and_missing_numbers_are_accepted_where_that_is_said(runs, csv, caplog):
    forecaster = load(runs())
    frame = pd.read_csv(csv)
    gap = frame.drop(index=200)
    reading = predict.ReadOptions(freq="h")
    with caplog.at_level(logging.WARNING):
        assert len(forecaster.predict(gap, reading=reading)) == HORIZON
    assert "1 steps are not h" in caplog.text
    missing = frame.assign(a=frame["a"].where(frame.index != 299))
    filled = forecaster.predict(missing, reading=predict.ReadOptions(fill_missing="ffill"))
    by_hand = frame.assign(a=frame["a"].where(frame.index != 299, frame["a"][298]))
    pd.testing.assert_frame_equal(filled, forecaster.predict(by_hand))
    with pytest.raises(ValueError, match="found 15min"):
        forecaster.predict(
            frame.assign(date=pd.date_range("2020", periods=300, freq="15min")),
            reading=predict.ReadOptions(freq="15min"),
        )


def test_missing_numbers_are_filled_as_in_training(runs, csv):
    frame = pd.read_csv(csv)
    missing = frame.assign(a=frame["a"].where(frame.index != 290))
    forecaster = load(runs("Ridge", fill_missing="interpolate"))
    by_hand = missing.assign(a=missing["a"].interpolate())
    pd.testing.assert_frame_equal(forecaster.predict(missing), forecaster.predict(by_hand))


# Backtests and intervals


def test_a_backtest_of_the_test_windows_gives_the_run_s_own_scores(enhanced, csv):
    """MSE, MAE, coverage and width: one truth in results.json and here, in standardised units."""
    scores = enhanced.results["best"]
    windows = int(scores["test"]["windows"])
    tested = load(enhanced).backtest(csv, windows, levels=(0.8, 0.95))
    own = tested.mean
    assert own["mse_standardised"] == pytest.approx(scores["test"]["mse"], rel=1e-5)
    assert own["mae_standardised"] == pytest.approx(scores["test"]["mae"], rel=1e-5)
    for level in ("0.8", "0.95"):
        kept = scores["intervals"]["levels"][level]
        name = f"{100 * float(level):g}"
        assert own[f"covered_{name}"] == pytest.approx(kept["coverage"], abs=2e-3)
        assert own[f"width_{name}_standardised"] == pytest.approx(kept["width"], rel=1e-4)
    assert own[["mse", "mae", "width_80", "width_95"]].isna().all(), "no mean of unlike units"


def test_a_backtest_holds_every_window_with_its_truth(runs, csv):
    """By hand from the frame: the table is whole, in original units, and its errors are the scores."""
    tested = load(runs()).backtest(csv, 5, levels=(0.8,))
    frame, known = tested.frame, pd.read_csv(csv, parse_dates=["date"]).set_index("date")
    assert len(frame) == 5 * HORIZON and frame["origin"].nunique() == 5
    assert frame["origin"].max() + pd.Timedelta(hours=HORIZON) == known.index[-1] == frame["date"].max()
    for name in ("a", "b", "OT"):
        np.testing.assert_allclose(frame[f"{name}_true"], known[name].loc[frame["date"]], rtol=1e-5)
        error = frame[name] - frame[f"{name}_true"]
        assert tested.scores.loc[name, "mse"] == pytest.approx((error**2).mean(), rel=1e-6)
        assert tested.scores.loc[name, "mae"] == pytest.approx(error.abs().mean(), rel=1e-6)
        inside = frame[f"{name}_true"].between(frame[f"{name}_lo_80"], frame[f"{name}_hi_80"])
        assert tested.scores.loc[name, "covered_80"] == pytest.approx(inside.mean())
        np.testing.assert_allclose(
            frame[f"{name}_hi_80"] - frame[name], frame[name] - frame[f"{name}_lo_80"], rtol=1e-6
        )


def test_intervals_widen_with_their_level_and_any_level_can_be_asked_for(runs, csv):
    frame = load(runs()).predict(csv, levels=(0.5, 0.625, 0.9))
    assert (frame["OT_lo_90"] <= frame["OT_lo_62.5"]).all() and (
        frame["OT_lo_62.5"] <= frame["OT_lo_50"]
    ).all()
    assert (frame["OT_hi_90"] >= frame["OT_hi_62.5"]).all() and (
        frame["OT_hi_62.5"] >= frame["OT_hi_50"]
    ).all()
    with pytest.raises(LevelError, match="0.99 takes 99 windows of calibration or more, found 23"):
        load(runs()).predict(csv, levels=(0.99,))
    with pytest.raises(LevelError, match="expected numbers between 0 and 1, such as 0.8 0.95, found 80"):
        load(runs()).predict(csv, levels=(80,))


def test_recalibrated_intervals_rest_on_the_windows_right_before(runs, csv):
    """By hand: the 10 windows whose step is known when the table ends."""
    forecaster = load(runs("Persistence"))
    frame = pd.read_csv(csv)
    found = forecaster.predict(frame, levels=(0.8,), recalibrate=10)
    values = frame["OT"].to_numpy()
    for step in range(HORIZON):
        origins = range(ROWS - 1 - step - 10, ROWS - 1 - step)  # the last known row of each
        errors = sorted(abs(values[o + step + 1] - values[o]) for o in origins)
        assert found["OT_hi_80"][step] - found["OT"][step] == pytest.approx(errors[8], rel=1e-4)


def test_recalibrated_intervals_need_their_windows(runs, csv):
    forecaster = load(runs())
    with pytest.raises(ValueError, match="expected 59 rows or more, for --recalibrate 20 windows"):
        forecaster.predict(frame_of(58), levels=(0.8,), recalibrate=20)
    assert len(forecaster.predict(frame_of(59), levels=(0.8,), recalibrate=20)) == HORIZON
    with pytest.raises(LevelError, match="0.95 takes 19 windows of calibration or more, found 18"):
        forecaster.predict(csv, levels=(0.95,), recalibrate=18)


@pytest.mark.parametrize("windows", [0, 262])
def test_a_backtest_that_the_table_is_too_short_for_says_how_many_there_are(runs, csv, windows):
    with pytest.raises(ValueError, match=f"--backtest: expected 1 to 261 windows.*300 rows.*found {windows}"):
        load(runs()).backtest(csv, windows)
    assert len(load(runs()).backtest(csv, 261).frame) == 261 * HORIZON


def test_windows_that_were_trained_on_are_named(runs, csv, caplog):
    """Of 300 rows 210 are trained on: a backtest into them is no test."""
    forecaster = load(runs())
    with caplog.at_level(logging.WARNING):
        forecaster.backtest(csv, 83)
        assert "trained on" not in caplog.text
        forecaster.backtest(csv, 90)
    assert "7 of these 90 windows forecast rows that the model was trained on" in caplog.text


# Retrieval


def neighbours(forecaster: Forecaster, series: Any, *, first: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Starts of the memory's rows that were found for one window, and their distances; per series."""
    ((_, state),) = forecaster.states(forecaster.windows(series, first=first))
    assert state.retrieval is not None
    found = state.retrieval.rows
    memory = forecaster.model.get_submodule("gram.retriever").memory_start
    return memory[found].masked_fill(found < 0, -(10**6)), state.retrieval.distance  # type: ignore[index]


def test_a_window_of_the_training_series_does_not_find_itself(enhanced, csv):
    """Nor one that overlaps it; also where the series has gone on since. Another series is masked nowhere."""
    forecaster = load(enhanced)
    frame = pd.read_csv(csv)
    longer = pd.concat([frame, frame_of(340).iloc[300:]], ignore_index=True)
    for table in (csv, longer, frame):
        starts, distance = neighbours(forecaster, forecaster.series(table), first=60)
        assert bool(((starts - 60).abs() >= LOOKBACK + HORIZON).all()) and bool((distance > 0.01).all())
    other = frame.assign(a=frame["a"].where(frame.index != 0, 99.0))
    starts, distance = neighbours(forecaster, forecaster.series(other), first=60)
    assert bool(((starts - 60).abs() < LOOKBACK + HORIZON).any())
    assert bool((distance.min(dim=1).values < 1e-6).any()), "the very window is in the memory"


def test_the_oracle_of_a_study_cannot_look_into_the_future(runs, csv):
    forecaster = load(runs("TimeLLM_Enhanced", use_gram=True, retrieval_control="oracle"))
    with pytest.raises(ValueError, match="reads the true future, which is still to come"):
        forecaster.predict(csv)
    assert len(forecaster.backtest(csv, 2).frame) == 2 * HORIZON


# Which checkpoint


def test_a_run_s_folder_means_its_best_weights(runs, csv):
    run = runs("DLinear", max_steps=6, eval_steps=2, save_steps=3, save_total_limit=0, learning_rate=0.01)
    best = load(run)
    assert (
        best.path == run.run_dir / "checkpoint" and best.facts["global_step"] == run.results["best"]["step"]
    )
    step = load(run.run_dir / "checkpoint_step_3")
    assert step.facts["global_step"] == 3
    assert not step.predict(csv).equals(best.predict(csv))
    assert load(step.path).predict(csv).equals(step.predict(csv))
    with pytest.raises(
        CheckpointError, match="expected a calibration for intervals, found none.*--recalibrate N"
    ):
        step.predict(csv, levels=(0.8,))


def test_weights_alone_are_refused(enhanced, tmp_path):
    payload = checkpoints.load(enhanced.run_dir / "checkpoint")
    torch.save(payload["model"], tmp_path / "weights")
    with pytest.raises(CheckpointError, match="found weights without config, llm, data"):
        load(tmp_path / "weights")


def test_a_checkpoint_of_old_forecasts_and_says_what_it_lacks(enhanced, csv, tmp_path):
    """Without calibration, the series' identity and the model's name, as they were before."""

    def age(payload: dict[str, Any]) -> None:
        del payload["calibration"], payload["model_name"]
        del payload["config"]["levels"], payload["config"]["interval_score"]
        for name in ("series_id", "trained_rows", "trained_id"):
            del payload["data"][name]

    old = load(altered(enhanced, tmp_path, age))
    new = load(enhanced)
    assert old.model.name == "TimeLLM_Enhanced" and old.identity is None and old.calibration is None
    pd.testing.assert_frame_equal(old.predict(csv), new.predict(csv))
    assert torch.equal(
        neighbours(old, old.series(csv), first=60)[0], neighbours(new, new.series(csv), first=60)[0]
    )
    with pytest.raises(CheckpointError, match="expected a calibration for intervals, found none"):
        old.predict(csv, levels=(0.8,))
    pd.testing.assert_frame_equal(
        old.predict(csv, levels=(0.8,), recalibrate=9), new.predict(csv, levels=(0.8,), recalibrate=9)
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"warp": 9}, "--warp: no such setting"), ({"d_ff": 8}, "its weights do not fit its settings")],
)
def test_settings_of_another_version_or_of_other_weights_are_refused(enhanced, tmp_path, changes, said):
    path = altered(enhanced, tmp_path, lambda payload: payload["config"].update(changes))
    with pytest.raises(CheckpointError, match=said):
        load(path)


# Which LLM


def test_the_llm_is_found_again_wherever_it_lies_now(runs, csv, tiny_gpt2, tmp_path):
    place = tmp_path / "llm"
    shutil.copytree(tiny_gpt2, place)
    run = runs("TimeLLM", llm_model_path=str(place))
    wanted = load(run).predict(csv)
    moved = tmp_path / "elsewhere"
    place.rename(moved)
    with pytest.raises(LLMUnavailableError, match="expected its LLM.*say where with --llm_model_path"):
        load(run)
    pd.testing.assert_frame_equal(load(run, llm_model_path=str(moved)).predict(csv), wanted)


def test_another_llm_is_refused_with_both_names(runs, tiny_gpt2, tmp_path):
    run = runs("TimeLLM")
    other = tmp_path / "llm"
    shutil.copytree(tiny_gpt2, other)
    weights = other / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(
        CheckpointError, match=r"trained with another LLM.*its content_hash: expected \w+, found \w+"
    ):
        load(run, llm_model_path=str(other))


def test_what_auto_once_took_is_looked_for_by_its_name(enhanced, tmp_path, monkeypatch):
    """On this machine auto may mean another LLM today."""
    from models import loading

    def forget(payload: dict[str, Any]) -> None:
        payload["config"].update(llm_model="auto", llm_model_path=None)
        payload["llm"]["name"] = "SMOLLM2"

    asked = []
    real = loading.load_llm

    def watched(config: Any, **options: Any) -> Any:
        asked.append(config.llm_model)
        return real(
            type(config)(llm_model_path=str(enhanced.results["llm"]["name"]), llm_layers=1), **options
        )

    monkeypatch.setattr(loading, "load_llm", watched)
    load(altered(enhanced, tmp_path, forget))
    assert asked == ["SMOLLM2"]


# Together with others


def test_threads_get_what_one_gets(enhanced, csv, monkeypatch):
    """Tokenizers and hooks on the LLM cannot be shared: passes must take turns, and give the same bits."""
    forecaster = load(enhanced, batch_size=3)
    tables = [frame_of(ROWS + 7 * i, seed=i) for i in range(4)]
    alone = [forecaster.backtest(table, 4, levels=(0.8,)).frame for table in tables]
    forward, active, most = forecaster.model.forward, [], []

    def watched(*args: Any, **options: Any) -> Any:
        active.append(1)
        most.append(len(active))
        time.sleep(0.01)  # lets the other threads in, if they may
        try:
            return forward(*args, **options)
        finally:
            active.pop()

    monkeypatch.setattr(forecaster.model, "forward", watched)
    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(forecaster.backtest, tables[i % 4], 4, levels=(0.8,)) for i in range(16)]
    for i, job in enumerate(jobs):
        pd.testing.assert_frame_equal(job.result().frame, alone[i % 4], check_exact=True)
    assert len(most) == 32 and max(most) == 1


def test_the_batch_size_changes_nothing_but_the_passes(enhanced, csv):
    one, all_at_once = (load(enhanced, batch_size=size).backtest(csv, 7).frame for size in (1, 7))
    pd.testing.assert_frame_equal(one, all_at_once, rtol=1e-5)
    with pytest.raises(ValueError, match="--batch_size: expected 1 or more, found 0"):
        load(enhanced, batch_size=0)


def test_loading_and_forecasting_leave_the_random_state(enhanced, csv):
    before = torch.get_rng_state()
    load(enhanced).backtest(csv, 2)
    assert torch.equal(before, torch.get_rng_state())


# The command


def command(run: RunResult, csv: Path, output: Path, *words: str) -> list[str]:
    return ["--checkpoint", str(run.run_dir), "--input", str(csv), "--output", str(output), "--cpu", *words]


def test_the_command_needs_no_other_flag(enhanced, csv, tmp_path):
    """As a user types it, in a folder of theirs; three lines of Python give the same."""
    words = command(enhanced, csv, tmp_path / "new" / "forecast.csv")[:-1]
    done = python(PROJECT_ROOT / "scripts/predict.py", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (
        "8 rows, 2020-01-13 12:00:00 to 2020-01-13 19:00:00" in done.stdout
        and "TimeLLM_Enhanced, step" in done.stdout
    )
    written = pd.read_csv(tmp_path / "new" / "forecast.csv", parse_dates=["date"])
    pd.testing.assert_frame_equal(written, load(enhanced).predict(csv), rtol=1e-6, check_dtype=False)


def test_the_command_backtests_and_says_its_units(runs, csv, tmp_path, capsys):
    assert predict.main(command(runs(), csv, tmp_path / "b.csv", "--backtest", "4", "--levels")) == 0
    said = capsys.readouterr().out
    assert "own units (squared for mse), or standardised as in training" in said and "covered_95" in said
    written = pd.read_csv(tmp_path / "b.csv")
    assert len(written) == 4 * HORIZON and {"origin", "date", "a", "a_true", "a_lo_95"} <= set(written)


def test_an_output_that_is_there_is_replaced_only_where_that_is_said(runs, csv, tmp_path, capsys):
    output = tmp_path / "forecast.csv"
    output.write_text("mine")
    assert predict.main(command(runs(), csv, output)) == 2
    assert "is there already; name another, or say --overwrite" in capsys.readouterr().err
    assert output.read_text() == "mine"
    assert predict.main(command(runs(), csv, output, "--overwrite")) == 0
    assert len(pd.read_csv(output)) == HORIZON


def test_an_output_is_written_whole_or_not_at_all(runs, csv, tmp_path, monkeypatch):
    """A full disk while it is written: what was there stays."""
    output = tmp_path / "forecast.csv"
    output.write_text("mine")

    def full(*_: object, **__: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_csv", full)
    assert predict.main(command(runs(), csv, output, "--overwrite")) == 2
    assert output.read_text() == "mine" and [p.name for p in tmp_path.iterdir()] == ["forecast.csv"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--backtest", "0"], "--backtest: expected 1 or more, found 0"),
        (["--batch_size", "0"], "--batch_size: expected 1 or more, found 0"),
        (["--recalibrate", "9"], "--recalibrate: it calibrates intervals; say which with --levels"),
        (["--levels", "95"], "--levels: expected numbers between 0 and 1"),
        (["--input", "nothing.csv"], "found none at nothing.csv"),
        (["--checkpoint", "nothing"], "--checkpoint: expected a checkpoint file"),
    ],
)
def test_a_mistake_is_one_message_and_status_2(runs, csv, tmp_path, capsys, words, message):
    assert predict.main(command(runs(), csv, tmp_path / "f.csv", *words)) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "f.csv").exists()


def test_the_input_is_never_written_over(runs, csv, tmp_path, capsys):
    copy = tmp_path / "mine.csv"
    shutil.copy(csv, copy)
    assert predict.main(command(runs(), copy, copy, "--overwrite")) == 2
    assert "expected another file than --input" in capsys.readouterr().err
    assert copy.read_text() == csv.read_text()


@pytest.mark.parametrize("name", ["OT_lo_80", "OT_hi_97.5", "OT_true", "origin"])
def test_a_variable_called_like_a_column_of_a_forecast_is_refused_before_training(tmp_path, name):
    """OT and OT_lo_80: two columns of one name; a run was trained, and its backtests were refused."""
    frame_of().rename(columns={"b": name}).to_csv(tmp_path / "mine.csv", index=False)
    settings = {
        "data": "custom",
        "root_path": str(tmp_path),
        "data_path": "mine.csv",
        "seq_len": 32,
        "pred_len": 8,
    }
    with pytest.raises(ValueError, match=f"mine: .*found the variable '{name}' .*rename"):
        build_data(Config.from_flat(settings))
    alone = Config.from_flat({**settings, "features": "S", "target": "OT"})
    assert build_data(alone).targets == ("OT",)


def test_a_run_of_old_with_such_a_variable_is_refused_before_any_forecast(runs, tmp_path):
    """Its checkpoint forecasts what it can."""
    frame = frame_of().rename(columns={"b": "OT_lo_80"})
    run = runs("Persistence", model_comment="clash")
    path = altered(run, tmp_path, lambda p: p["data"].update(columns=["a", "OT_lo_80", "OT"]))
    forecaster = Forecaster.load(path, device="cpu")
    assert len(forecaster.predict(frame)) == HORIZON
    with pytest.raises(ValueError, match="leave OT_lo_80 to the forecast's own columns"):
        forecaster.predict(frame, levels=(0.8,))


def test_a_variable_called_all_has_a_row_of_its_own(runs, csv, tmp_path, capsys):
    """The mean over the variables was written over its row."""
    frame = frame_of().rename(columns={"a": "all", "b": "(mean of all)"})
    frame.to_csv(tmp_path / "mine.csv", index=False)
    run = runs("Persistence", root_path=str(tmp_path), data_path="mine.csv")
    tested = load(run).backtest(frame, 3)
    error = tested.frame["all"] - tested.frame["all_true"]
    assert list(tested.scores.index) == ["all", "(mean of all)", "OT"]
    assert tested.scores.loc["all", "mse"] == pytest.approx((error**2).mean(), rel=1e-9)
    assert tested.mean["mse_standardised"] == pytest.approx(tested.scores["mse_standardised"].mean())
    assert run.results["best"]["by_variable"].keys() == {"all", "(mean of all)", "OT"}
    assert predict.main(command(run, tmp_path / "mine.csv", tmp_path / "f.csv", "--backtest", "3")) == 0
    shown = capsys.readouterr().out
    assert f"{tested.scores.loc['all', 'mse']:.4f}" in shown


# Dates: written, in zones, with holidays


def trained_on(frame: pd.DataFrame, runs: Runs, folder: Path, **changes: Any) -> Forecaster:
    """A run on this table that only repeats its last row."""
    frame.to_csv(folder / "mine.csv", index=False)
    return load(runs("Persistence", root_path=str(folder), model_comment=folder.name, **changes))


def dated(frame: pd.DataFrame, dates: Any) -> pd.DataFrame:
    return frame.iloc[: len(dates)].assign(date=dates)


def test_a_new_file_is_read_in_the_format_of_the_training_file(runs, tmp_path):
    """Trained day first, predicted month first: 6 February was forecast as 3 May, status 0."""
    uk = "%d/%m/%Y %H:%M"
    known = pd.date_range("2020-01-20", periods=ROWS, freq="h")
    forecaster = trained_on(dated(frame_of(), known.strftime(uk)), runs, tmp_path)
    assert forecaster.facts["data"]["date_format"] == uk
    assert "read as %d/%m/%Y" in (forecaster.path.parent / "results.json").read_text()
    day = dated(frame_of(), pd.date_range("2020-02-05", periods=48, freq="h").strftime(uk))
    assert forecaster.predict(day)["date"][0] == pd.Timestamp("2020-02-07")
    day.to_csv(tmp_path / "day.csv", index=False)
    words = ["--checkpoint", str(forecaster.path), "--input", str(tmp_path / "day.csv"), "--cpu"]
    words += ["--output", str(tmp_path / "out.csv")]
    assert predict.main(words) == 0
    assert pd.read_csv(tmp_path / "out.csv")["date"][0] == "2020-02-07 00:00:00"
    iso = dated(frame_of(), pd.date_range("2020-02-05", periods=48, freq="h").astype(str))
    with pytest.raises(ValueError, match="data row 1: .*--date_format 'ISO8601'"):
        forecaster.predict(iso)
    reading = predict.ReadOptions(date_format="ISO8601")
    pd.testing.assert_frame_equal(forecaster.predict(iso, reading=reading), forecaster.predict(day))


def test_a_run_on_business_days_forecasts_no_weekend_and_accepts_the_holidays_it_is_told_of(runs, tmp_path):
    """A run trained with B was told by predict that its rows were D."""
    days = pd.bdate_range("2019-01-01", periods=ROWS + 10).delete(range(9, ROWS, 31))[:ROWS]
    forecaster = trained_on(dated(frame_of(), days.astype(str)), runs, tmp_path, freq="B")
    assert (forecaster.frequency, forecaster.config.data.season) == ("B", 5)
    with pytest.raises(ValueError, match="accept them with --freq B"):
        forecaster.predict(tmp_path / "mine.csv")
    ahead = forecaster.predict(tmp_path / "mine.csv", reading=predict.ReadOptions(freq="B"))["date"]
    assert ahead.tolist() == pd.bdate_range(days[-1], periods=HORIZON + 1)[1:].tolist()


def test_a_zone_comes_back_with_the_forecast_and_stays_with_the_run(runs, tmp_path):
    """Zones were dropped, and a clock change was "keep one row per time"."""
    berlin = pd.date_range("2020-10-14", periods=ROWS + HORIZON, freq="h", tz="Europe/Berlin")
    known, ahead = berlin[:ROWS], berlin[ROWS:]
    table = dated(frame_of(), known)
    plain = load(runs("Persistence"))  # of a file without zones
    assert plain.predict(table)["date"].tolist() == ahead.tolist()
    tested = plain.backtest(table, 3).frame
    assert str(tested["origin"].dt.tz) == str(tested["date"].dt.tz) == "Europe/Berlin"
    with pytest.raises(UserError, match=r"found \+02:00 and \+01:00; name their zone"):
        trained_on(table, runs, tmp_path)
    zoned = trained_on(table, runs, tmp_path, time_zone="Europe/Berlin")
    for same in (table, table.assign(date=known.tz_convert("UTC")), table.assign(date=known.astype(str))):
        assert zoned.predict(same)["date"].tolist() == ahead.tolist()
    written = zoned.predict(tmp_path / "mine.csv")["date"]
    assert written.tolist() == ahead.tolist() and str(written.dt.tz) == "Europe/Berlin"


def test_a_run_that_rounded_its_times_rounds_new_ones(runs, tmp_path):
    whole = pd.date_range("2020-01-01", periods=ROWS + HORIZON, freq="h")
    late = pd.to_timedelta(np.random.default_rng(0).integers(0, 20, ROWS), unit="s")
    forecaster = trained_on(
        dated(frame_of(), (whole[:ROWS] + late).astype(str)), runs, tmp_path, round_dates=True
    )
    assert forecaster.predict(tmp_path / "mine.csv")["date"].tolist() == whole[ROWS:].tolist()
