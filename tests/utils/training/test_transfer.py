"""Few-shot and zero-shot: what a run learns from, and what it is tested on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import run_main
from data_provider.data_factory import build_data, transfer_config
from models import TimeLLM_Enhanced
from tests.utils.training.comparing import load
from utils.config import Config, ConfigError
from utils.training import checkpoint as checkpoints
from utils.training.experiment import resolve
from utils.training.forward import forecast_state, stacked
from utils.types import FitSource, unsolved

BOTH = {"use_tapr": True, "use_gram": True}


@pytest.fixture
def other(tmp_path: Path, write_series) -> Path:
    """Another series with the columns of the first, and other values."""
    return write_series(tmp_path / "other" / "others.csv", rows=200, seed=5)


@pytest.fixture(autouse=True)
def folder_of_the_other(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()


def to(other: Path, **more: Any) -> dict[str, Any]:
    place = {"eval_root_path": str(other.parent), "eval_data_path": other.name}
    return {"eval_data": "custom", **place, **more}


def test_zero_shot_trains_here_and_tests_there(start_run, other, tiny):
    """Weights, scaler, memory and validation are those of a run without; the test is the other series'."""
    plain = start_run(**BOTH)
    found = start_run(**BOTH, **to(other))
    assert found.run_dir != plain.run_dir and found.results["tested_on"] == "others"
    best = [load(r.run_dir / checkpoints.BEST) for r in (plain, found)]
    assert all(torch.equal(best[0]["model"][name], best[1]["model"][name]) for name in best[0]["model"])
    assert found.results["best"]["validation_mse"] == plain.results["best"]["validation_mse"]
    windows = 40 - 8 + 1  # a fifth of 200 rows
    assert found.results["best"]["test"]["windows"] == windows
    assert found.results["best"]["test"]["mse"] != plain.results["best"]["test"]["mse"]
    assert "of which nothing was trained on" in found.results["notes"]["eval_data"]


def test_the_other_series_is_standardised_by_its_own_training_part(other, tiny):
    bundle = build_data(Config.from_flat({**tiny, **to(other)}))
    raw = pd.read_csv(other)[["a", "OT"]].to_numpy()
    scaled = (raw - raw[:140].mean(axis=0)) / raw[:140].std(axis=0)
    first = bundle.test[0]
    assert first.start.item() == 160 - 32 and first.series_id != bundle.train[0].series_id
    np.testing.assert_allclose(first.x, scaled[128:160], atol=1e-5)
    np.testing.assert_allclose(first.y, scaled[160:168], atol=1e-5)
    assert bundle.source.series_id == bundle.train[0].series_id


def test_a_checkpoint_is_tested_on_another_series(start_run, other):
    """The same scores as in one run, and the run's own results stay."""
    both = start_run(**BOTH, **to(other))
    plain = start_run(**BOTH)
    before = (plain.run_dir / "results.json").read_text()
    later = start_run(
        **BOTH, **to(other), is_training=0, resume_from_checkpoint=str(plain.run_dir / checkpoints.BEST)
    )
    assert later.run_dir == plain.run_dir
    assert later.results["checkpoint"]["test"] == both.results["best"]["test"]
    assert (plain.run_dir / "results.json").read_text() == before
    written = json.loads((plain.run_dir / "results_test_only_others.json").read_text())
    assert written["tested_on"] == "others" and (plain.run_dir / written["forecasts"]).is_file()
    by_flags = start_run(**BOTH, **to(other), is_training=0)
    assert by_flags.results["checkpoint"]["test"] == both.results["best"]["test"]


def test_nothing_is_masked_across_series(other, tiny):
    """A window of another series overlaps none of the memory, wherever it begins."""
    settings = {**tiny, **BOTH, **to(other), "memory_size": "all", "retrieval_key": "raw"}
    config = Config.from_flat(settings)
    bundle = build_data(config)
    torch.manual_seed(0)
    model = TimeLLM_Enhanced.Model(resolve(config, bundle)).eval()
    model.fit_statistics(FitSource(bundle.source, once=unsolved))
    assert set(model.gram.retriever.memory_series.tolist()) == {bundle.source.series_id}
    batch = stacked([bundle.test[0]], torch.device("cpu"))
    moved = batch._replace(start=torch.tensor([0]))  # as the training rows, by number alone
    with torch.no_grad():
        states = [forecast_state(model, b) for b in (batch, moved)]
        own = forecast_state(model, stacked([bundle.train[0]], torch.device("cpu")))
    assert all(state.retrieval is not None for state in (*states, own))
    assert torch.equal(states[0].retrieval.rows, states[1].retrieval.rows)  # type: ignore[union-attr]
    assert states[0].retrieval.matched.all()  # type: ignore[union-attr]
    starts = model.gram.retriever.memory_start[own.retrieval.rows.clamp(min=0)]  # type: ignore[union-attr]
    assert bool((starts[own.retrieval.rows >= 0] >= 40).all())  # type: ignore[union-attr]


def test_other_variables_need_neighbours_of_any(start_run, other, tiny):
    frame = pd.read_csv(other)
    frame["third"] = frame["a"] * 2
    frame.to_csv(other, index=False)
    with pytest.raises(ConfigError, match="--retrieval_scope: expected all, since others has"):
        start_run(**BOTH, **to(other))
    found = start_run(**BOTH, **to(other), retrieval_scope="all")
    assert found.results["best"]["test"]["matched_share"] == 1.0
    with np.load(found.run_dir / found.results["forecasts"]) as kept:
        assert kept["columns"].tolist() == ["a", "OT", "third"] and kept["y"].shape[-1] == 3
    with pytest.raises(ConfigError, match="as many variables as the 2 of waves, found 3"):
        start_run(features="MS", **to(other))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"eval_data_path": "x.csv"}, "--eval_data_path: there is nothing"),
        ({"eval_data": "custom"}, "--eval_data custom: expected its file's name"),
        ({"eval_data": "M4"}, "--eval_data: expected one long series, found M4"),
        ({"eval_data": "ETTh9"}, "--eval_data: expected one of ETTh1"),
    ],
)
def test_a_test_that_can_not_be_is_refused(flags, said):
    with pytest.raises(ConfigError, match=said):
        Config.from_flat(flags)


def test_the_etts_lie_together_and_others_in_their_own_folder(tmp_path):
    given = Config.from_flat({"root_path": str(tmp_path), "eval_data": "etth2"}).data
    assert (transfer_config(given).root_path, transfer_config(given).file_name) == (
        str(tmp_path),
        "ETTh2.csv",
    )
    away = Config.from_flat({"root_path": str(tmp_path), "eval_data": "Weather"}).data
    assert transfer_config(away).root_path == "./dataset/weather"


def test_a_closed_form_trains_on_the_few_shot_part_too(tiny):
    config = Config.from_flat({**tiny, "model": "Ridge"})
    fits = {}
    for percent in (60, 100):
        few = config.replace(percent=percent)
        fits[percent] = run_main.train(few, model="Ridge").results["best"]["test"]["mse"]
    assert fits[60] != fits[100]
