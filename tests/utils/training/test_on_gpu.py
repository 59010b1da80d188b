"""Whole runs on a real GPU, for whoever has one: ``pytest -m gpu``."""

from __future__ import annotations

import json
import math

import pandas as pd
import pytest
import torch

import run_main_enhanced
from models import Forecaster
from utils.training.checkpoint import step_path

pytestmark = pytest.mark.gpu
BOTH = {"use_tapr": True, "use_gram": True, "cpu": False}


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_run_with_both_modules_trains_evaluates_and_forecasts(precision, make_run):
    torch.cuda.reset_peak_memory_stats()
    run = make_run(run_main_enhanced.main, **BOTH, max_steps=12, mixed_precision=precision)
    assert torch.cuda.max_memory_allocated() > 0
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    assert math.isfinite(results["last"]["test"]["mse"])
    table = pd.read_csv(run.parents[1] / "waves.csv")
    on_gpu = Forecaster.load(run, device="cuda").predict(table)
    on_cpu = Forecaster.load(run, device="cpu").predict(table)
    assert list(on_gpu["date"]) == list(on_cpu["date"])
    found, wanted = (frame.drop(columns="date").to_numpy() for frame in (on_gpu, on_cpu))
    assert found == pytest.approx(wanted, abs=0.02 if precision == "no" else 0.2)


def test_a_run_goes_on_where_it_stopped(make_run):
    run = make_run(run_main_enhanced.main, **BOTH, max_steps=12, save_steps=6)
    whole = json.loads((run / "results.json").read_text(encoding="utf-8"))
    path = str(step_path(run, 6))
    again = make_run(run_main_enhanced.main, **BOTH, max_steps=12, save_steps=6, resume_from_checkpoint=path)
    resumed = json.loads((again / "results.json").read_text(encoding="utf-8"))
    assert resumed["last"]["test"]["mse"] == pytest.approx(whole["last"]["test"]["mse"], rel=1e-3)
