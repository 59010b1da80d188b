"""A run that begins at a solved start: step 0 is a candidate, and the start is solved once."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

import run_main_enhanced
from layers.start_fitting import StartFit
from models.registry import MODELS
from tests.conftest import AsWords, TinySettings, WriteSeries, forget_accelerator
from utils.config import Config
from utils.training import checkpoint as checkpoints
from utils.training.by_part import NAMES
from utils.training.experiment import RunResult
from utils.types import FitSource

Settings = dict[str, Any]


@pytest.fixture(scope="module")
def longer(
    tmp_path_factory: pytest.TempPathFactory, write_series: WriteSeries, tiny_settings: TinySettings
) -> Settings:
    """Settings of a run with both modules whose windows have neighbours."""
    home = tmp_path_factory.mktemp("start")
    settings = tiny_settings(write_series(home / "waves.csv", 400), home / "checkpoints")
    return {**settings, "use_tapr": True, "use_gram": True, "max_steps": 2, "levels": ()}


def run_with(settings: Settings, as_words: AsWords, **changes: Any) -> RunResult:
    given = {k: v for k, v in {**settings, **changes}.items() if k != "levels"}
    forget_accelerator()
    return run_main_enhanced.main([*as_words(given), "--levels"])


def events(run: RunResult, kind: str) -> list[dict[str, Any]]:
    lines = (run.run_dir / "metrics.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


@pytest.fixture(scope="module")
def begun(longer: Settings, as_words: AsWords) -> tuple[RunResult, list[str]]:
    """A run whose steps ruin it, and what it said."""
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    try:
        return run_with(longer, as_words, learning_rate=3.0), records
    finally:
        logging.getLogger().removeHandler(handler)


def test_where_no_step_helps_the_start_is_what_is_left(begun):
    """The first validation came after the first steps: a run could end worse than it began."""
    run, said = begun
    found = events(run, "validation")
    assert [event["step"] for event in found] == [0, 2]
    best, last = run.results["best"], run.results["last"]
    assert best["step"] == 0 and last["step"] == 2
    assert best["validation_mse"] == found[0]["validation"]["mse"] < found[1]["validation"]["mse"]
    assert checkpoints.load(run.run_dir / "checkpoint")["global_step"] == 0
    assert any(line.startswith("training added nothing: of 2 steps none") for line in said)
    parts = best["by_part"]
    assert list(parts) == list(NAMES)
    assert parts["joint"] == parts["llm"] == parts["all"]
    assert parts["all"]["mse"] == pytest.approx(best["test"]["mse"], rel=1e-6)
    assert last["by_part"]["llm"] != parts["llm"] and last["by_part"]["joint"] == parts["joint"]
    assert any(line.startswith("  part by part (mse mae): solved map") for line in said)
    assert run.results["start"]["retrieval"]["in"] in (True, False)
    assert not list(run.run_dir.glob("checkpoint_step_0"))


def test_a_run_stopped_after_its_start_resumes_with_it_and_validates_it_no_more(begun, longer, as_words):
    run, _ = begun
    resumed = run_with(
        longer, as_words, learning_rate=3.0, resume_from_checkpoint=str(run.run_dir / "checkpoint")
    )
    assert [event["step"] for event in events(resumed, "validation")] == [0, 2]
    assert resumed.results["best"]["step"] == 0
    assert resumed.results["best"]["test"] == run.results["best"]["test"]
    assert resumed.results["last"]["test"] == pytest.approx(run.results["last"]["test"], rel=1e-5)


def test_the_same_data_and_settings_are_solved_once_and_others_again(
    longer, as_words, begun, monkeypatch, tmp_path, write_series
):
    """Runs that differ in their seed alone solved the same start again."""
    solved: list[Any] = []
    once = StartFit.run

    def counted(self: StartFit) -> Any:
        solved.append(self)
        return once(self)

    monkeypatch.setattr(StartFit, "run", counted)
    other = run_with(longer, as_words, seed=5, max_steps=1)
    assert not solved
    kept = checkpoints.load(other.run_dir / "checkpoint")["model"]
    before = checkpoints.load(begun[0].run_dir / "checkpoint")["model"]
    for name in (name for name in kept if name.startswith("start.")):
        assert torch.equal(kept[name], before[name]), name
    run_with(longer, as_words, top_k=3, max_steps=1)
    assert len(solved) == 1
    data = write_series(tmp_path / "waves.csv", 400, seed=1)
    run_with({**longer, "root_path": str(data.parent)}, as_words, max_steps=1)
    assert len(solved) == 2
    for path in Path(longer["checkpoints"]).glob(".solved/*.pt"):
        path.write_bytes(path.read_bytes()[:-200])
    run_with(longer, as_words, seed=6, max_steps=1)  # what is broken is solved again
    assert len(solved) == 3


@pytest.mark.parametrize("switches", [{}, {"use_time_marks": True}, {"use_tapr": False, "use_gram": False}])
def test_an_evaluation_at_the_start_leaves_the_llm_out_and_is_the_same_to_the_bit(
    longer, switches, data_of_run
):
    model, batch = data_of_run({**longer, **switches, "start": "solved"})
    forecast = {}
    calls: list[int] = []
    taken = model._pass

    def counted(*words: Any, **named: Any) -> Any:
        calls.append(1)
        return taken(*words, **named)

    counted.way, counted.reuses_prefix, counted.trained = taken.way, False, False  # type: ignore[attr-defined]
    model._pass = counted
    with torch.no_grad():
        for leaves_out in (True, False):
            model.leaves_out_idle_llm = leaves_out
            forecast[leaves_out] = forward(model, batch)
            assert bool(calls) != leaves_out
    assert torch.equal(forecast[True], forecast[False])
    model.leaves_out_idle_llm = True
    calls.clear()
    with torch.no_grad():
        model.output_projection.linear.bias[0] += 1
        assert not torch.equal(forward(model, batch), forecast[True]) and calls


def forward(model: Any, batch: Any) -> torch.Tensor:
    from utils.training.forward import forecast_state

    return forecast_state(model.eval(), batch).prediction


@pytest.fixture
def data_of_run() -> Any:
    """A fitted model of these settings, and its first test windows."""
    from data_provider.data_factory import build_data
    from utils.training.experiment import resolve
    from utils.training.time_estimate import first_items

    def make(settings: Settings) -> tuple[Any, Any]:
        config = Config.from_flat(settings)
        data = build_data(config)
        torch.manual_seed(0)
        model = MODELS["TimeLLM_Enhanced"](resolve(config, data))
        model.fit_statistics(FitSource(data.source, data.validation))
        return model, first_items(data.test, 3, torch.device("cpu"))

    return make


def test_a_run_begun_without_a_start_goes_on_without(longer, as_words, tmp_path):
    """With a start by default, every run of an earlier version was refused."""
    settings = {**longer, "checkpoints": str(tmp_path), "save_steps": 1, "max_steps": 1}
    old = run_with(settings, as_words, start="none")
    assert "by_part" not in old.results["best"]
    for where, steps in (("auto", 1), (str(old.run_dir), 2)):
        resumed = run_with({**settings, "max_steps": steps}, as_words, resume_from_checkpoint=where)
        assert resumed.run_dir == old.run_dir and resumed.results["start"] == {}
    fresh = run_with(settings, as_words)
    assert fresh.run_dir != old.run_dir and fresh.results["start"]


def test_weights_of_a_run_without_a_start_begin_one_that_is_solved(longer, as_words, tmp_path):
    settings = {**longer, "checkpoints": str(tmp_path), "max_steps": 1}
    old = run_with(settings, as_words, start="none")
    run = run_with(settings, as_words, init_from=str(old.run_dir / "checkpoint"))
    assert run.results["start"]["penalties"][0] > 0
    assert [event["step"] for event in events(run, "validation")] == [0, 1]
