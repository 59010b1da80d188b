"""Flags without effect are named, and those that are named are in fact not read."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from data_provider.data_factory import build_data, training_loader
from models.registry import MODELS
from utils import config as settings
from utils.config import GROUPS, Config, Need, iter_settings
from utils.reporting.unused_flags import unread_flags, unread_reasons
from utils.training.forward import forecast_state
from utils.training.objective import Objective
from utils.training.optim import build_optimizer
from utils.types import FitSource

SMALL: dict[str, Any] = {
    "data": "synthetic",
    "seq_len": 48,
    "pred_len": 12,
    "label_len": 24,
    "season": 24,
    "enc_in": 7,
    "freq": "h",
    "llm_layers": 1,
    "d_model": 16,
    "d_ff": 16,
    "n_heads": 2,
    "num_tokens": 20,
    "memory_size": 50,
    "d_repr": 16,
    "batch_size": 2,
}
TOLD_OF_TRAINING = frozenset({"save_steps", "save_total_limit", "log_steps"})


def named(config: Config, model: str) -> set[str]:
    return {text.split()[0].removeprefix("--") for text in unread_flags(config, MODELS[model])}


@pytest.mark.parametrize(
    ("model", "changes", "expected"),
    [
        ("TimeLLM", {"top_k": 3, "n_scales": 2, "d_model": 32}, {"top_k", "n_scales"}),
        ("TimeLLM_Enhanced", {"use_tapr": True, "top_k": 3, "n_scales": 2}, {"top_k"}),
        ("TimeLLM_Enhanced", {"use_gram": True, "retrieval_key": "raw", "d_repr": 32}, {"d_repr"}),
        ("TimeLLM_Enhanced", {"use_tapr": True, "retrieval_key": "hybrid"}, {"retrieval_key"}),
        ("Linear", {"llm_layers": 2, "input_dropout": 0.1, "d_ff": 32}, {"llm_layers", "d_ff"}),
        ("PatchTST", {"d_model": 32, "num_tokens": 9, "lambda_dir": 0.1}, {"num_tokens", "lambda_dir"}),
        ("DLinear", {"e_layers": 4, "moving_avg": 9, "input_dropout": 0.1}, {"e_layers", "input_dropout"}),
        ("TimeLLM", {"moving_avg": 9, "factor": 3.0}, {"moving_avg", "factor"}),
        ("Ridge", {"learning_rate": 0.1, "batch_size": 8}, {"learning_rate"}),
        ("TimeLLM", {"is_training": 0, "learning_rate": 0.1, "eval_batch_size": 8}, {"learning_rate"}),
        ("TimeLLM", {"seasonal_patterns": "Daily", "eval_stride": 2}, {"seasonal_patterns"}),
        ("TimeLLM", {"data": "M4", "season": 3, "target": "x"}, {"target"}),
        ("TimeLLM", {"save_steps": 0, "save_total_limit": 9}, {"save_total_limit"}),
        ("TimeLLM", {"target": "load", "token_order": "prompt_first"}, {"target", "token_order"}),
    ],
)
def test_a_flag_without_effect_is_named(model, changes, expected):
    """Taken in silence, such a flag would be believed in."""
    assert named(Config.from_flat(changes), model) == expected


def test_defaults_and_what_the_data_decide_are_not_worth_a_line():
    assert not named(Config().replace(season=24, enc_in=7, freq="h"), "TimeLLM")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of the settings that are read from outside the configuration's own module."""
    seen: set[str] = set()
    own = Path(settings.__file__).name
    for part in GROUPS.values():
        own_names = frozenset(item.name for item in dataclasses.fields(part))

        def recorded(self: Any, name: str, names: frozenset[str] = own_names) -> Any:
            if name in names and not sys._getframe(1).f_code.co_filename.endswith(own):
                seen.add(name)
            return object.__getattribute__(self, name)

        monkeypatch.setattr(part, "__getattribute__", recorded)
    return seen


@pytest.mark.parametrize("model", [name for name in MODELS if name not in ("TimeLLM_Enhanced",)])
def test_what_is_named_is_not_read_by_the_model(model, reads, tiny_llama):
    """A flag that works, named as one that does not, would be worse than silence."""
    config = Config.from_flat({**SMALL, "llm_model_path": str(tiny_llama)})
    data = build_data(config.replace(percent=10))
    batch = next(iter(training_loader(data, config)))
    claimed = unread_reasons(config, MODELS[model]).keys() - TOLD_OF_TRAINING
    reads.clear()
    built = MODELS[model](config)
    built.fit_statistics(FitSource(data.source, data.validation))
    if built.is_trainable:
        build_optimizer(built, config.training)
        Objective(config)(forecast_state(built, batch), batch, step=1).total.backward()
    else:
        with torch.no_grad():
            forecast_state(built, batch)
    asked = {"use_tapr", "use_gram", "aux_warmup_steps", "token_order"}  # and without effect here
    assert claimed & reads <= asked


def test_every_need_is_one_that_a_setting_has():
    """A need that nothing has any more would go on being explained."""
    needs = [need for _, _, item in iter_settings() for need in item.metadata["needs"]]
    needs += [need for part in GROUPS.values() for need in getattr(part, "needs", ())]
    assert set(needs) == set(get_args(Need))
