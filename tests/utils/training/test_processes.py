"""Training on two real processes (gloo, on the CPU), against the same run on one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data_provider.data_factory import build_data, evaluation_loader
from models.registry import MODELS as BUILDERS
from utils.config import Config
from utils.training.details import read_details
from utils.training.passes import forecast_state
from utils.training.run_folder import DETAILS_FILE
from utils.training.tracking import TENSORBOARD_FOLDER

pytestmark = pytest.mark.slow

MODULES: dict[str, dict[str, Any]] = {
    "baseline": {},
    "tapr": {"use_tapr": True},
    "gram": {"use_gram": True},
    "both": {"use_tapr": True, "use_gram": True},
    "lora": {"use_tapr": True, "peft": "lora"},
    "random": {"llm_ablation": "random"},
    "attention": {"use_tapr": True, "llm_ablation": "attention"},
    "none": {"use_tapr": True, "use_gram": True, "llm_ablation": "none"},
}


@pytest.fixture(scope="module")
def found(tmp_path_factory, write_series, tiny_settings, two_processes) -> dict[str, list[dict[str, Any]]]:
    """All runs in one launch: starting two processes costs more than the runs.

    91 rows: 24 training windows, 3 for validation (one batch: the second process gets none) and 11
    for the test (three batches of 4, the last of 3).
    """
    folder = tmp_path_factory.mktemp("processes")
    common = {
        **tiny_settings(write_series(folder / "short.csv", 91), folder / "checkpoints"),
        "memory_size": 20,
        "eval_batch_size": 4,
        "train_epochs": 2,
        "dropout": 0.0,
    }
    runs = {name: {**common, **switches} for name, switches in MODULES.items()}
    saved = {**common, "dropout": 0.2, "use_gram": True, "save_steps": 1, "save_total_limit": 0, "seed": 3}
    runs["whole"] = saved
    watched = {"report_to": "tensorboard", "debug_shapes": True, "log_steps": 1, "model_comment": "watched"}
    runs["watched"] = {**common, **MODULES["gram"], **watched}
    runs["tested"] = {**common, "is_training": 0}
    # in mid-epoch of the second epoch, in the same folder: steps 5 and 6 are taken again
    runs["resumed"] = {**saved, "resume_from_checkpoint": "{whole}/checkpoint_step_4/checkpoint.pt"}
    found = two_processes(folder, runs)
    assert not [process["error"] for processes in found.values() for process in processes if process["error"]]
    return {**found, "_": [common]}


@pytest.mark.parametrize("name", [*MODULES, "whole", "resumed"])
def test_two_processes_end_with_the_same_weights_and_memory(found, name):
    """find_unused_parameters=False holds for every switch (a parameter without a gradient would stop
    DDP), and the memory with its keys is the same everywhere without broadcasting buffers."""
    one, two = found[name]
    assert one["processes"] == two["processes"] == 2 and one["backend"] == "gloo"
    assert one["model"].keys() == two["model"].keys()
    assert all(torch.equal(tensor, two["model"][key]) for key, tensor in one["model"].items())
    if "gram" in one["model"]:
        assert any("memory" in key for key in one["model"])


@pytest.mark.parametrize("name", [*MODULES, "tested"])
def test_each_window_is_scored_once(found, name):
    """accelerate's default counted 16 of 11 windows over two processes."""
    results = [json.loads(process["results"]) for process in found[name]]
    for entry in ("last", "best") if name != "tested" else ("checkpoint",):
        assert [r[entry]["test"]["windows"] for r in results] == [11, 11]
        assert results[0][entry]["test"] == results[1][entry]["test"]
    assert Path(found[name][0]["folder"]) == Path(found[name][1]["folder"])


@pytest.mark.parametrize("name", ["baseline", "both"])
def test_errors_window_by_window_are_those_of_one_process(found, name):
    """Three batches over two processes, the last one smaller: in order, each window once, exact."""
    folder = Path(found[name][0]["folder"])
    kept = read_details(folder / DETAILS_FILE)["last"]
    scores = json.loads(found[name][0]["results"])["last"]["test"]
    assert len(kept.squared) == 11 and (np.diff(kept.start) == 1).all()
    assert kept.squared.mean(dtype=np.float64) == pytest.approx(scores["mse"], rel=1e-6)
    assert kept.horizon_squared.mean() == pytest.approx(scores["mse"], rel=1e-9)
    data = build_data(Config.from_flat(found["_"][0]))
    config = Config.from_flat({**found["_"][0], **MODULES[name]})
    model = BUILDERS["TimeLLM_Enhanced"](config)
    model.load_state_dict(torch.load(folder / "checkpoint", weights_only=True)["model"])
    batch = next(iter(evaluation_loader(data.test, 11)))
    with torch.no_grad():
        error = forecast_state(model.eval(), batch).prediction - batch.y
    best = read_details(folder / DETAILS_FILE).get("best", kept)
    np.testing.assert_allclose(best.squared, error.square().mean(dim=(1, 2)), rtol=1e-4)
    if name == "both":
        assert best.gate_counts.sum() == 22


def test_each_training_window_is_taken_once_an_epoch(found):
    one, two = (process["order"] for process in found["baseline"])
    assert len(one) == len(two) == 24
    for epoch in (slice(0, 12), slice(12, 24)):
        assert sorted(one[epoch] + two[epoch]) == list(range(24))
    assert set(one[:12]) != set(one[12:])


@pytest.mark.parametrize("name", ["baseline", "tapr"])
def test_two_processes_train_as_one_with_twice_the_batch(found, start_run, name):
    """The cosine of the original ran once per process; here steps, rates and gradients are those of one."""
    settings = {**found["_"][0], **MODULES[name], "batch_size": 8, "model_comment": "one"}
    result = start_run(**settings)
    alone = torch.load(result.run_dir / "checkpoint", weights_only=True)
    assert alone["global_step"] == 6
    both = json.loads(found[name][0]["results"])
    assert result.results["last"]["test"]["mse"] == pytest.approx(both["last"]["test"]["mse"], rel=1e-3)
    for key, tensor in alone["model"].items():
        if key.endswith("key_projection.bias"):
            continue  # softmax takes no notice of it: Adam makes steps of its gradient's rounding errors
        torch.testing.assert_close(tensor, found[name][0]["model"][key], rtol=2e-3, atol=2e-5, msg=key)


def test_a_resume_on_two_processes_is_exact_in_the_second_epoch(found):
    """Through the rest of a sharded loader the epoch did not reach the sampler: the order was the first's."""
    for whole, resumed in zip(found["whole"], found["resumed"], strict=True):
        assert resumed["order"] == whole["order"][-len(resumed["order"]) :] and len(resumed["order"]) == 8
        differing = [k for k, t in whole["model"].items() if not torch.equal(t, resumed["model"][k])]
        assert not differing


def test_a_tracker_and_a_look_inside_are_the_main_processs_alone_and_change_nothing(found):
    """Two writers would mix in one log; a look that one process takes must not move its dropout."""
    one, _ = found["watched"]
    plain = found["gram"][0]["model"]
    assert all(torch.equal(tensor, plain[key]) for key, tensor in one["model"].items())
    folder = Path(one["folder"]) / TENSORBOARD_FOLDER
    assert len(list(folder.glob("events.out.*"))) == 1
    events = EventAccumulator(str(folder))
    events.Reload()
    steps = [event.step for event in events.Scalars("train/loss")]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) > 2
