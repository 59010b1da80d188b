"""What a run says of itself before it begins."""

from __future__ import annotations

import re
from typing import Any

import pytest

from data_provider.data_factory import build_data
from models.registry import MODELS
from utils.config import Config
from utils.reporting import run_header
from utils.reporting.run_header import opening_lines
from utils.training.experiment import resolve

SMALL = {"data": "synthetic", "seq_len": 48, "pred_len": 12, "label_len": 24, "d_model": 16, "n_heads": 2}


def lines_of(model: str, **settings: Any) -> str:
    config = Config.from_flat({**SMALL, **settings})
    data = build_data(config)
    config = resolve(config, data)
    told = opening_lines(
        config,
        data,
        MODELS[model](config),
        llm="none",
        steps_per_epoch=3,
        total_steps=6,
        processes=1,
        device="cpu",
    )
    return "\n".join(told)


BASELINE = ("e_layers", "d_layers", "moving_avg", "factor")


@pytest.mark.parametrize(
    ("model", "unread"),
    [
        ("Autoformer", []),
        ("DLinear", ["e_layers", "d_layers", "factor"]),
        ("PatchTST", ["d_layers", "moving_avg", "factor"]),
    ],
)
def test_settings_that_the_model_does_not_read_are_named(model: str, unread: list[str]) -> None:
    """A flag of another baseline, taken in silence, would be believed in."""
    told = lines_of(model, e_layers=4, d_layers=2, moving_avg=9, factor=3.0)
    named = re.findall(rf"--(\w+) \({model} has no such part\)", told)
    assert [name for name in named if name in BASELINE] == unread
    marks = "not read by this model: --label_len (24), the time marks"
    assert (marks in told) == (model != "Autoformer")


def test_defaults_of_other_baselines_are_not_worth_a_word() -> None:
    assert "not read by this model: --label_len (24), the time marks" in lines_of("Linear")


@pytest.mark.parametrize(("model", "steps"), [("Linear", "3 an epoch, 6 at most"), ("Ridge", "none")])
def test_a_closed_form_is_not_announced_as_steps(model: str, steps: str) -> None:
    assert f"steps: {steps}" in lines_of(model)


def test_an_estimate_that_fails_stops_no_run(tiny_gpt2, monkeypatch):
    """Sizes that a config tells layer by layer ended runs that had all they needed."""

    def fails(*_: Any, **__: Any) -> None:
        raise AttributeError("no head_dim")

    monkeypatch.setattr(run_header, "expected_peaks", fails)
    text = lines_of("TimeLLM", llm_model_path=str(tiny_gpt2), llm_layers=1, d_ff=16, num_tokens=20)
    assert "memory: no estimate for GPT2Model (AttributeError: no head_dim)" in text
