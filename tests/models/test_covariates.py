"""Planted effects of what is known beside a series: learnt by real runs, and gone where it is permuted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import run_main
import run_main_enhanced
from data_provider.data_factory import build_data
from models import Forecaster
from models.registry import MODELS
from scripts import explain, predict
from tests.conftest import AsWords, Settings, TinySettings, forget_accelerator
from utils.batches import batched
from utils.config import Config, ConfigError
from utils.errors import UserError
from utils.training.experiment import resolve
from utils.training.forward import forecast_state
from utils.types import FitSource, covariates_of

NOISE, HORIZON, ROWS = 0.5, 8, 2400
STORES = {"a": "north", "b": "south", "c": "north", "OT": "south"}
SIZES = {"a": 1.0, "b": -1.0, "c": 2.0, "OT": 0.5}
SWAPPED = {"north": "south", "south": "north"}
EVALUATION = {"eval_stride": 4, "eval_batch_size": 512}
Plant = Callable[[str, Any, Any], Any]
PLANTED: dict[str, tuple[dict[str, Any], Plant]] = {
    "known": ({"known_covariates": "z"}, lambda name, z, past: 2 * z),
    "past": ({"past_covariates": "z"}, lambda name, z, past: 2 * past),
    "category": (
        {"known_covariates": "z", "static_path": "statics.csv", "static": "store"},
        lambda name, z, past: (2 if STORES[name] == "north" else -2) * z,
    ),
    "number": (
        {"known_covariates": "z", "static_path": "statics.csv", "static_numbers": "size"},
        lambda name, z, past: 2 * SIZES[name] * z,
    ),
}


def planted(effect: Plant, *, shuffled: bool = False) -> pd.DataFrame:
    """Rows of a daily cycle, noise and what z, or z a horizon before, does to each variable.

    With ``shuffled`` z is another than the one that did it.
    """
    rng = np.random.default_rng(3)
    z = rng.normal(size=ROWS + HORIZON)
    now, past = z[HORIZON:], z[:-HORIZON]
    cycle = np.sin(np.arange(ROWS) * np.pi / 12)
    columns = {n: cycle + effect(n, now, past) + NOISE * rng.normal(size=ROWS) for n in STORES}
    told = rng.permutation(now) if shuffled else now
    return pd.DataFrame({"date": pd.date_range("2020-01-01", periods=ROWS, freq="h"), **columns, "z": told})


def statics(*, swapped: bool = False) -> pd.DataFrame:
    rows = [
        {"name": n, "store": SWAPPED[s] if swapped else s, "size": -SIZES[n] if swapped else SIZES[n]}
        for n, s in STORES.items()
    ]
    return pd.DataFrame(rows)


@pytest.fixture(scope="module", params=PLANTED)
def trained(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    tiny_settings: TinySettings,
    as_words: AsWords,
) -> tuple[str, Path]:
    """The kind of an effect, and the folder of a run on it that took a step."""
    home = tmp_path_factory.mktemp(request.param)
    flags, effect = PLANTED[request.param]
    planted(effect).to_csv(home / "planted.csv", index=False)
    statics().to_csv(home / "statics.csv", index=False)
    forget_accelerator()
    settings = {**tiny_settings(home / "planted.csv", home / "checkpoints"), **flags}
    words = [*as_words({**settings, "start": "solved", "max_steps": 1, **EVALUATION}), "--levels"]
    return request.param, run_main.main(words).run_dir


def test_a_planted_effect_is_learnt_to_the_generators_noise(trained: tuple[str, Path]) -> None:
    """Covariates that are read and not used would leave the error at the effect's, far above the noise."""
    kind, run = trained
    forecaster = Forecaster.load(run, device="cpu")
    effect = PLANTED[kind][1]
    static = {"static": statics()} if kind in ("category", "number") else {}
    right = forecaster.backtest(planted(effect), 400, **static).scores["mse"]
    assert right.mean() < 1.2 * NOISE**2, right
    wrong = forecaster.backtest(planted(effect, shuffled=True), 400, **static).scores["mse"]
    assert wrong.mean() > 3 * NOISE**2, wrong
    if static:
        swapped = forecaster.backtest(planted(effect), 400, static=statics(swapped=True)).scores["mse"]
        assert swapped.mean() > 3 * NOISE**2, swapped


FLAGS = {
    "known_covariates": "z",
    "past_covariates": "late",
    "static_path": "statics.csv",
    "static": "store",
    "static_numbers": "size",
    "start": "solved",
    "max_steps": 2,
    "save_steps": 1,
}


def table() -> pd.DataFrame:
    """300 rows with all kinds, of which the past ones matter."""
    frame = planted(lambda name, now, past: now + past)[:300]
    return frame.assign(late=np.r_[np.zeros(HORIZON), frame.z[:-HORIZON]])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_settings: TinySettings) -> tuple[Path, Settings]:
    """The folder of a run with both modules and covariates of every kind, and its settings."""
    home = tmp_path_factory.mktemp("whole")
    table().to_csv(home / "all.csv", index=False)
    statics().to_csv(home / "statics.csv", index=False)
    settings = {**tiny_settings(home / "all.csv", home / "checkpoints"), **FLAGS}
    return home, {**settings, "use_tapr": True, "use_gram": True}


@pytest.fixture(scope="module")
def run(whole: tuple[Path, Settings], as_words: AsWords) -> Path:
    forget_accelerator()
    return run_main_enhanced.main(as_words(whole[1])).run_dir


def future() -> pd.DataFrame:
    dates = pd.date_range(table().date.iloc[-1], periods=HORIZON + 1, freq="h")[1:]
    return pd.DataFrame({"date": dates, "z": np.linspace(-1, 1, HORIZON)})


def test_the_command_forecasts_what_python_does(
    run: Path, whole: tuple[Path, Settings], tmp_path: Path
) -> None:
    """Both read the horizon's covariates alike; without them the first row that lacks one is named."""
    forecaster = Forecaster.load(run, device="cpu")
    found = forecaster.predict(table(), future=future())
    future().to_csv(tmp_path / "future.csv", index=False)
    words = ["--checkpoint", str(run), "--input", str(whole[0] / "all.csv"), "--cpu"]
    output = ["--output", str(tmp_path / "out.csv"), "--future", str(tmp_path / "future.csv")]
    assert predict.main([*words, *output]) == 0
    written = pd.read_csv(tmp_path / "out.csv", parse_dates=["date"])
    pd.testing.assert_frame_equal(written, found, rtol=1e-7, check_dtype=False)
    with pytest.raises(UserError, match=r"known covariates \(z\) .* from 2020-01-13 12:00:00 on.*--future"):
        forecaster.predict(table())


def test_a_window_is_explained_with_its_covariates(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each door to a run hands them over; the prompts tell each variable's own statics."""
    assert explain.main([str(run), "--window", "0", "--device", "cpu", "--out", str(tmp_path)]) == 0
    assert explain.main([str(run), "--window", "0", "--device", "cpu", "--dump_prompt"]) == 0
    told = capsys.readouterr().out
    assert "About the series: store north, size 1.\n" in told and "store south, size 0.5." in told


def test_what_is_past_of_a_past_covariate_alone_moves_a_forecast(run: Path) -> None:
    """Values of rows that are forecast would be read from the future; those of the lookback must count."""
    forecaster, frame = Forecaster.load(run, device="cpu"), table()
    middle = 100 + forecaster.seq_len

    def forecast(changed: slice) -> Any:
        late = frame.late.to_numpy(copy=True)
        late[changed] += 3.0
        series = forecaster.series(frame.assign(late=late))
        return forecaster.forecasts(forecaster.windows(series, first=100)).prediction

    same = forecast(slice(0, 0))
    assert np.array_equal(forecast(slice(middle, None)), same)
    assert not np.array_equal(forecast(slice(middle - HORIZON, middle)), same)


def test_a_resumed_run_goes_on_with_the_same_covariates_alone(
    run: Path, whole: tuple[Path, Settings], as_words: AsWords
) -> None:
    """On other covariates it is another run, and says so."""
    step = str(run / "checkpoint_step_1")
    forget_accelerator()
    again = run_main_enhanced.main([*as_words(whole[1]), "--resume_from_checkpoint", step])
    assert (
        again.results["last"]["test"]["mse"]
        == json.loads((run / "results.json").read_text())["last"]["test"]["mse"]
    )
    table().assign(z=0.5).to_csv(whole[0] / "other.csv", index=False)
    forget_accelerator()
    with pytest.raises(SystemExit):
        run_main_enhanced.main(
            [*as_words(whole[1] | {"data_path": "other.csv"}), "--resume_from_checkpoint", step]
        )


def test_every_way_in_begins_at_zero_and_learns(whole: tuple[Path, Settings]) -> None:
    """An untrained part would spoil the start; one that no gradient reaches would stay without effect."""
    config = Config.from_flat(
        {
            name: (value,)
            if name in ("known_covariates", "past_covariates", "static", "static_numbers")
            else value
            for name, value in whole[1].items()
        }
    )
    data = build_data(config)
    model: Any = MODELS["TimeLLM_Enhanced"](resolve(config, data))
    model.fit_statistics(FitSource(data.source, data.validation, words=data.words))
    batch = batched([data.train[i] for i in range(4)], model.prompts)
    model.eval()
    none = model.covariate_input.of_patches(covariates_of(batch))
    assert none.shape[-1] == config.backbone.d_model and not none.any()
    model.train()
    model.output_projection.linear.weight.data.normal_(std=0.1)
    forecast_state(model, batch).prediction.square().mean().backward()
    ways = (
        model.covariate_input.to_patches,
        model.covariate_input.static_embedding,
        model.covariate_input.to_share,
    )
    assert all(bool(part.weight.grad.any()) for part in ways)


@pytest.mark.parametrize("model", ["DLinear", "Ridge"])
def test_a_model_that_reads_no_covariates_refuses_them(model: str) -> None:
    """They would be left out of variables and forecast alike, in silence."""
    with pytest.raises(ConfigError, match=f"--known_covariates: {model} reads no covariates"):
        Config.from_flat({"model": model, "known_covariates": ("z",)}, models=MODELS)
