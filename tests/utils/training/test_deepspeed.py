"""DeepSpeed's ZeRO-2 on real CPU processes (gloo): what data parallel ones give, and whole checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
import torch
from accelerate.utils import is_deepspeed_available

import run_main
from tests.utils.training.comparing import last_payload, load, unequal
from utils.config import Config

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not is_deepspeed_available(), reason="DeepSpeed is not installed (requirements-deepspeed.txt)"
    ),
]

DEEPSPEED = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}
LORA = {"peft": "lora", "lora_rank": 2, "lora_targets": ("c_attn", "mlp.c_fc")}
WAYS: dict[str, dict[str, Any]] = {
    "document": {},
    "bf16": {"use_tapr": False, "use_gram": False, "mixed_precision": "bf16"},
    "adapters, prompt first": {**LORA, "token_order": "prompt_first", "learning_rate": 0.01},
    "accumulating": {"gradient_accumulation_steps": 2, "max_channels_per_step": 1, "max_grad_norm": 0.1},
}
STEPS = 4


@pytest.fixture(scope="module")
def found(tmp_path_factory, small_settings, two_processes) -> dict[str, Any]:
    """Each way by both engines, and runs that are cut at step 2 and go on with either, in two starts."""
    folder = tmp_path_factory.mktemp("zero")
    common = {**small_settings(folder), "max_steps": STEPS}
    saving = {**common, "dropout": 0.2, "save_steps": 2, "save_total_limit": 0}
    found: dict[str, Any] = {"saving": saving}
    for engine, other, launched in (("ddp", "zero", None), ("zero", "ddp", DEEPSPEED)):
        runs = {f"{engine} {way}": {**common, **s, "model_comment": engine} for way, s in WAYS.items()}
        runs[f"{engine} saved"] = {**saving, "model_comment": "saved", "checkpoints": str(folder / engine)}
        runs[f"{engine} again"] = {
            **saving,
            "model_comment": "saved",
            "resume_from_checkpoint": f"{{{engine} saved}}/checkpoint_step_2/checkpoint.pt",
            "checkpoints": str(folder / f"{engine} again"),
        }
        if f"{other} saved" in found:
            start = Path(found[f"{other} saved"][0]["folder"]) / "checkpoint_step_2/checkpoint.pt"
            runs[f"{engine} from {other}"] = {
                **runs[f"{engine} again"],
                "resume_from_checkpoint": str(start),
                "checkpoints": str(folder / f"{engine} from {other}"),
            }
            runs["not finite"] = {**common, "learning_rate": 1e30, "model_comment": "not finite"}
            runs["tested"] = {
                **saving,
                "model_comment": "saved",
                "is_training": 0,
                "resume_from_checkpoint": f"{{{engine} saved}}/checkpoint",
                "checkpoints": str(folder / "tested"),
            }
        (folder / f"start {engine}").mkdir()
        found |= two_processes(folder / f"start {engine}", runs, launched=launched)
    return found


def check_close(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> None:
    """Two processes each: the same windows, and weights and scores that differ by rounding alone."""
    for a, b in zip(one, other, strict=True):
        assert a["error"] is None and b["error"] is None
        assert a["processes"] == b["processes"] == 2 and a["backend"] == b["backend"] == "gloo"
        assert not a["copied"] and not b["copied"]
        assert a["order"] == b["order"] and not unequal(a["start"], b["start"])
        for name in a["trainable"]:
            if name.endswith("key_projection.bias"):
                continue  # a softmax passes over it: its gradient is rounding, which Adam makes a step of
            moved = (a["model"][name] - a["start"][name]).norm()
            assert (a["model"][name] - b["model"][name]).norm() <= 1e-3 * moved + 1e-7, name
        for weights in ("last", "best"):
            scores = [json.loads(process["results"])[weights] for process in (a, b)]
            assert scores[0]["test"]["mse"] == pytest.approx(scores[1]["test"]["mse"], rel=1e-6)
            assert scores[0]["test"]["windows"] == scores[1]["test"]["windows"]


@pytest.mark.parametrize("way", WAYS)
def test_it_trains_as_data_parallel_processes_do(found, way):
    check_close(found[f"ddp {way}"], found[f"zero {way}"])


def step_2(found: dict[str, Any], run: str) -> Path:
    return Path(found[run][0]["folder"]) / "checkpoint_step_2/checkpoint.pt"


def test_a_run_goes_on_to_the_bit(found):
    """With the state divided again as it was gathered."""
    for whole, resumed in zip(found["zero saved"], found["zero again"], strict=True):
        assert whole["error"] is None and resumed["error"] is None
        assert "resumed at optimizer step 2" in (Path(resumed["folder"]) / "run.log").read_text()
        assert not unequal(whole["model"], resumed["model"])
        ends = [last_payload(Path(process["folder"])) for process in (whole, resumed)]
        assert len(ends[0]["optimizer"]["state"]) == len(whole["trainable"])
        assert not unequal(ends[0]["optimizer"], ends[1]["optimizer"])
        assert json.loads(whole["results"])["last"] == json.loads(resumed["results"])["last"]


def test_its_checkpoints_are_those_of_data_parallel_processes(found):
    """The same names, shapes and settings, and the same numbers but for rounding."""
    zero, ddp = (load(step_2(found, run)) for run in ("zero saved", "ddp saved"))
    assert zero.keys() == ddp.keys() and zero["config"] == {**ddp["config"], "checkpoints": ANY}
    assert zero["optimizer"]["param_groups"] == ddp["optimizer"]["param_groups"]
    assert zero["scheduler"] == ddp["scheduler"] and zero["num_processes"] == 2
    assert zero["optimizer"]["state"].keys() == ddp["optimizer"]["state"].keys()
    for i, state in ddp["optimizer"]["state"].items():
        for name, value in state.items():
            found_value, size = zero["optimizer"]["state"][i][name], float(value.abs().max())
            torch.testing.assert_close(found_value, value, rtol=1e-3, atol=1e-5 * size + 1e-9)


def test_a_run_without_it_goes_on_with_it(found):
    check_close(found["ddp again"], found["zero from ddp"])


def test_one_process_without_it_goes_on_from_it(found, tmp_path):
    """As from data parallel processes: a global batch of two windows from each of two."""
    ends = []
    for engine in ("ddp", "zero"):
        settings = {
            **found["saving"],
            "model_comment": "saved",
            "resume_from_checkpoint": str(step_2(found, f"{engine} saved")),
            "checkpoints": str(tmp_path / engine),
        }
        ends.append(run_main.train(Config.from_flat(settings), model="TimeLLM_Enhanced"))
    payloads = [last_payload(end.run_dir) for end in ends]
    assert [payload["num_processes"] for payload in payloads] == [1, 1]
    assert [payload["global_step"] for payload in payloads] == [STEPS, STEPS]
    scores = [end.results["last"]["test"]["mse"] for end in ends]
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)


def test_a_checkpoint_is_tested_without_training(found):
    """Two processes under DeepSpeed's launcher, with no engine."""
    for trained, tested in zip(found["zero saved"], found["tested"], strict=True):
        assert tested["error"] is None and tested["order"] == []
        scores = [json.loads(process["results"]) for process in (trained, tested)]
        expected = pytest.approx(scores[0]["best"]["test"]["mse"], rel=1e-6)
        assert scores[1]["checkpoint"]["test"]["mse"] == expected


def test_a_loss_that_is_not_finite_moves_nothing(found):
    """The engine makes its step within the backward pass: the loss is looked at before it."""
    for process in found["not finite"]:
        assert "NonFiniteLossError: the loss is nan at optimizer step 2" in process["error"]
        assert process["model"] and all(torch.isfinite(t).all() for t in process["model"].values())


def test_it_is_said(found):
    said = (Path(found["zero document"][0]["folder"]) / "run.log").read_text()
    assert "DeepSpeed: gradients and optimizer are divided among 2 process(es), ZeRO-2" in said
