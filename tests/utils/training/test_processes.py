"""Training on two real processes (gloo, on the CPU): all that is built is used, and both agree throughout."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data_provider.data_factory import build_data, evaluation_loader
from models.registry import MODELS
from tests.models.test_timellm_enhanced import BOTH
from tests.pairwise import pairwise
from tests.utils.training.comparing import last_payload, load, records, unequal
from tests.utils.training.test_batch_size import AUTO, batches
from tests.utils.training.test_intervals import by_hand
from tests.utils.training.test_short_term import ENHANCED, settings_of
from utils.config import Config, ConfigError, iter_settings, setting_type
from utils.training.forward import forecast_state
from utils.training.run_folder import DETAILS_FILE
from utils.training.tracking import TENSORBOARD_FOLDER
from utils.training.window_errors import read_details

pytestmark = pytest.mark.slow

STEPS = 3
"""Optimizer steps of a run: DistributedDataParallel notices an unused parameter at the next forward only."""
ELSEWHERE = {
    "lradj": "changes the rate alone",
    "fp16": "needs a GPU",
    "llm_device_map": "for one process alone, see tests/layers/test_larger_llms.py",
    "load_in_4bit": "needs a package that is an extra",
    "int8": "needs a package that is an extra, see tests/layers/test_llm_kept.py",
    "seasonal_patterns": "read by M4 alone",
    "short_term_forecast": "M4's, see test_short_term.py",
    "SMAPE": "M4's, see test_short_term.py",
    "wandb": "needs a package that is an extra, see test_tracking.py",
    "auto_batch_size": "run below",
    "debug_shapes": "takes windows of its own, run below",
    "dump_prompt": "takes windows of its own",
    "shard_llm": "see test_sharded.py",
    "cpu": "always",
    "use_tapr": "both modules are on",
    "use_gram": "both modules are on",
    "round_dates": "decides how a file is read",
    "repeated_times": "decides how a file is read",
    "trust_remote_code": "decides how a file is read",
}
"""Settings and choices that no pairwise run takes, and why."""
NUMBERS: dict[str, list[Any]] = {
    "n_scales": [1, 2, 3, 4, 5],
    **{f"lambda_{name}": [0.5, 0.0] for name in ("trend", "retrieval", "dir", "mag", "hcl", "ord")},
    "memory_size": [40, "all"],
    "top_k": [5, 1, 500],
    "aux_warmup_steps": [1, 0],
    "dropout": [0.0, 0.2],
    "input_dropout": [0.0, 0.3],
    "gradient_accumulation_steps": [1, 2],
    "max_grad_norm": [0.0, 0.1],
    "max_channels_per_step": [None, 1],
}
"""Values of settings that are no choice but decide what is built or summed."""
RUNS = 10


def choices() -> dict[str, list[Any]]:
    """Every choice of every setting, also of those that are added later, but for `ELSEWHERE`."""
    found: dict[str, list[Any]] = {}
    for group, name, _ in iter_settings():
        types, literals = setting_type(group, name)
        found[name] = [False, True] if bool in types else [c for c in literals if c not in ELSEWHERE]
    found |= NUMBERS
    return {name: found[name] for name in found if len(found[name]) > 1 and name not in ELSEWHERE}


def accepted(row: dict[str, Any]) -> bool:
    try:
        Config.from_flat({**BOTH, "cpu": True, **row}, models=MODELS)
    except ConfigError:
        return False
    return True


@cache
def table() -> list[dict[str, Any]]:
    return pairwise(choices(), count=RUNS, accepted=accepted)


MODULES: dict[str, dict[str, Any]] = {"baseline": {}, "gram": {"use_gram": True}, "both": BOTH}
PAIRWISE = [f"pairwise {i}" for i in range(RUNS)]
OTHERS = [name for name, model in MODELS.items() if model.is_named_by_flag]
SHORT = [*PAIRWISE, *OTHERS]
TENSORS = """output_projection.linear.weight tapr.label_cuts gram.retriever.memory_values
gram.retriever.memory_start LLM"""
NUDGED = {f"nudged {tensor}": tensor for tensor in TENSORS.split()}
"""Runs with both modules in which the second process has one number of this tensor, or its LLM, otherwise."""

Found = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def common(tmp_path_factory, write_series, tiny_settings) -> dict[str, Any]:
    """91 rows: 24 training windows, 3 for validation (one batch: the second process gets none) and 11
    for the test (three batches of 4, the last of 3).
    """
    folder = tmp_path_factory.mktemp("processes")
    return {
        **tiny_settings(write_series(folder / "short.csv", 91), folder / "checkpoints"),
        "memory_size": 20,
        "eval_batch_size": 4,
        "train_epochs": 2,
        "dropout": 0.0,
    }


@pytest.fixture(scope="module")
def found(tmp_path_factory, write_series, common, two_processes) -> Found:
    """All runs in one start, which costs more than they; the refused ones first: what they leave behind
    must not bind the next.

    130 rows: 52 training windows, some of which overlap the whole memory and find nothing.
    """
    folder = tmp_path_factory.mktemp("runs")
    waves = write_series(folder / "waves.csv", 130)
    lifted = pd.read_csv(waves, index_col="date") + 10  # one run has a floor of 0
    lifted.to_csv(waves)
    short = {
        **common,
        "root_path": str(folder),
        "data_path": waves.name,
        "memory_size": 40,
        "batch_size": 2,
        "eval_batch_size": 10,
        "max_steps": STEPS,
        "aux_warmup_steps": 1,
    }
    runs = {name: {**short, **BOTH} for name in NUDGED}
    runs |= {name: {**short, **BOTH, **row} for name, row in zip(PAIRWISE, table(), strict=True)}
    runs |= {name: {**short, "model": name} for name in OTHERS}
    runs |= {name: {**common, **switches} for name, switches in MODULES.items()}
    saved = {**common, "dropout": 0.2, "use_gram": True, "save_steps": 1, "save_total_limit": 0, "seed": 3}
    runs["whole"] = saved
    watched = {"report_to": "tensorboard", "debug_shapes": True, "log_steps": 1, "model_comment": "watched"}
    runs["watched"] = {**common, **MODULES["gram"], **watched}
    runs["parts"] = {**common, **BOTH, "max_channels_per_step": 1}
    runs["m4"] = {**settings_of(folder / "m4", common), **ENHANCED, "max_steps": 3}
    runs["auto batch"] = {**common, **AUTO, "batch_size": 4}
    runs["calibrated"] = {
        **{name: value for name, value in short.items() if not name.startswith("llm")},
        **{"data_path": write_series(folder / "longer.csv", 300).name, "model": "DLinear"},
        **{"levels": [0.5, 0.8, 0.9], "max_steps": 2, "eval_batch_size": 4},
    }
    # in mid-epoch of the second epoch, elsewhere: steps 5 and 6 are taken again
    runs["resumed"] = {
        **saved,
        "resume_from_checkpoint": "{whole}/checkpoint_step_4/checkpoint.pt",
        "checkpoints": str(folder / "elsewhere"),
    }
    found = two_processes(folder, runs, nudged=NUDGED)
    assert not [(n, p["error"]) for n in found.keys() - NUDGED.keys() for p in found[n] if p["error"]]
    return found


def test_ten_runs_take_every_choice_of_every_setting():
    """A setting that is added later is run on two processes without anybody's thinking of it."""
    for name, options in choices().items():
        taken = [row.get(name) for row in table()]
        assert all(option in taken for option in options), name


@pytest.mark.parametrize("name", SHORT)
def test_two_processes_train_under_every_switch(found: Found, name: str) -> None:
    """find_unused_parameters=False: a part that is off but built stops the run at its second step."""
    one, two = found[name]
    assert one["processes"] == two["processes"] == 2 and one["backend"] == "gloo"
    steps = _steps(one)
    assert bool(one["order"]) == bool(two["order"]) == bool(steps)
    assert not set(one["order"]) & set(two["order"])  # each trains on its own windows
    assert not unequal(one["model"], two["model"])
    assert all(tensor.isfinite().all() for tensor in one["model"].values())
    assert not unequal(one["start"], two["start"])  # also what the first process alone solved for
    assert bool(_moved(one)) == bool(steps) and (name in PAIRWISE or _moved(one) == _trained(one))
    scores = [json.loads(process["results"])["last"] for process in (one, two)]
    assert scores[0] == scores[1]
    assert scores[0]["step"] == steps
    assert math.isfinite(scores[0]["test"]["mse"])
    entries = [entry for entry in records(Path(one["folder"])) if entry["event"] == "train"]
    assert [entry.pop("step") for entry in entries] == list(range(1, steps + 1))
    assert all(math.isfinite(v) for entry in entries for v in entry.values() if not isinstance(v, str))


def _steps(process: dict[str, Any]) -> int:
    """Optimizer steps of a run: a model that is fitted in closed form takes none."""
    return STEPS if process["trainable"] else 0


def _trained(process: dict[str, Any]) -> set[str]:
    """The parts of the model that have trained parameters."""
    return {name.split(".")[0] for name in process["trainable"]}


def _moved(process: dict[str, Any]) -> set[str]:
    """Those of them that are no longer what they were."""
    start, end = process["start"], process["model"]
    return {name.split(".")[0] for name in process["trainable"] if not torch.equal(start[name], end[name])}


def test_every_part_learns_in_some_run(found: Found) -> None:
    """A weight of zero on its loss, or a memory without a neighbour, may leave one of them as it was."""
    runs = [found[name][0] for name in PAIRWISE]
    assert set().union(*map(_moved, runs)) == set().union(*map(_trained, runs))


@pytest.mark.parametrize("name", NUDGED)
def test_processes_that_start_differently_refuse_to_train(found: Found, name: str) -> None:
    """DDP would overwrite the weights of all but the first without a word, and train on two memories.

    Both must raise: one that went on would wait for the other in its first step.
    """
    one, two = found[name]
    assert one["error"] is not None
    assert one["error"].startswith("RuntimeError: processes start from different weights or memories")
    assert one["error"] == two["error"]
    assert one["order"] == two["order"] == []


@pytest.mark.parametrize("name", ["baseline", "both"])
def test_errors_window_by_window_are_those_of_one_process(found, common, name):
    """Three batches over two processes, the last one smaller: in order, each window once, exact."""
    folder = Path(found[name][0]["folder"])
    kept = read_details(folder / DETAILS_FILE)["last"]
    scores = json.loads(found[name][0]["results"])["last"]["test"]
    assert len(kept.squared) == 11 and (np.diff(kept.start) == 1).all()
    assert kept.squared.mean(dtype=np.float64) == pytest.approx(scores["mse"], rel=1e-6)
    assert kept.horizon_squared.mean() == pytest.approx(scores["mse"], rel=1e-9)
    config = Config.from_flat({**common, **MODULES[name]})
    model = MODELS["TimeLLM_Enhanced"](config)
    model.load_state_dict(torch.load(folder / "checkpoint", weights_only=True)["model"])
    batch = next(iter(evaluation_loader(build_data(config).test, 11)))
    with torch.no_grad():
        error = forecast_state(model.eval(), batch).prediction - batch.y
    best = read_details(folder / DETAILS_FILE).get("best", kept)
    np.testing.assert_allclose(best.squared, error.square().mean(dim=(1, 2)), rtol=1e-4)
    if name == "both":
        assert best.gate_counts.sum() == 22


def test_a_resume_on_two_processes_is_exact_in_the_second_epoch(found):
    """Through the rest of a sharded loader the epoch did not reach the sampler: the order was the first's.

    Every process draws its own dropout: with the first one's random state in both, half of it is lost.
    """
    states = last_payload(Path(found["whole"][0]["folder"]))["rng_state"]
    assert len(states) == 2 and not torch.equal(states[0]["torch"], states[1]["torch"])
    for whole, resumed in zip(found["whole"], found["resumed"], strict=True):
        assert resumed["order"] == whole["order"][-len(resumed["order"]) :] and len(resumed["order"]) == 8
        assert not unequal(whole["model"], resumed["model"])


def test_parts_of_a_window_exchange_their_gradients_once(found):
    """In the last part alone; of every weight the same step comes out."""
    (whole, _), (one, two) = found["both"], found["parts"]
    assert not unequal(one["model"], two["model"])
    for name, weight in whole["model"].items():
        if not name.endswith("key_projection.bias"):
            torch.testing.assert_close(one["model"][name], weight, rtol=1e-3, atol=2e-3, msg=name)


def test_every_series_of_m4_is_scored_once(found):
    assert json.loads(found["m4"][0]["results"])["best"]["test"]["windows"] == 24


def test_two_processes_choose_their_batch_together(found):
    """Batches of two sizes would make steps of two lengths, and the processes wait for each other."""
    (record,) = batches(Path(found["auto batch"][0]["folder"]))
    assert record["chosen"]["windows"] == 8 and record["chosen"]["processes"] == 2


def test_two_processes_calibrate_as_one(found):
    """Each window once, whichever process has it; the same quantiles, and the same coverage."""
    one, two = found["calibrated"]
    intervals = [json.loads(process["results"])["best"]["intervals"] for process in (one, two)]
    assert intervals[0] == intervals[1]
    assert (intervals[0]["calibration_windows"], intervals[0]["windows"]) == (23, 53)
    kept = load(Path(one["folder"]) / "checkpoint")["calibration"]
    absolute, spread = by_hand(Path(one["folder"]), "validation")
    scores = absolute / spread[:, None] if kept["score"] == "scaled" else absolute
    wanted = np.sort(scores, axis=0)[kept["ranks"].numpy() - 1]
    np.testing.assert_allclose(kept["values"].numpy(), wanted, rtol=1e-4, atol=1e-6)


def test_a_tracker_and_a_look_inside_are_the_main_processs_alone_and_change_nothing(found):
    """Two writers would mix in one log; a look that one process takes must not move its dropout."""
    one, _ = found["watched"]
    assert not unequal(one["model"], found["gram"][0]["model"])
    folder = Path(one["folder"]) / TENSORBOARD_FOLDER
    assert len(list(folder.glob("events.out.*"))) == 1
    events = EventAccumulator(str(folder))
    events.Reload()
    steps = [event.step for event in events.Scalars("train/loss")]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) > 2
