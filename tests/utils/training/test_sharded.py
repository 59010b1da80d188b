"""--shard_llm on two real processes (gloo, on the CPU): to the bit what a whole LLM gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import run_main
from tests.utils.training.comparing import last_payload, load, unequal
from utils.config import Config

pytestmark = pytest.mark.slow

LORA = {"peft": "lora", "lora_rank": 2, "lora_targets": ("c_attn", "mlp.c_fc"), "lora_dropout": 0.1}
WAYS: dict[str, dict[str, Any]] = {
    "document": {"debug_shapes": True},
    "no module": {"use_tapr": False, "use_gram": False, "mixed_precision": "bf16"},
    "adapters": {**LORA, "dropout": 0.2, "token_order": "prompt_first", "gradient_checkpointing": True},
    "accumulating": {
        **{"gradient_accumulation_steps": 2, "max_channels_per_step": 1, "max_grad_norm": 0.1},
        **{"llm_ablation": "random", "source_tokens": "prototypes", "eval_test_each_epoch": True},
    },
}
STEPS = 4


@pytest.fixture(scope="module")
def found(tmp_path_factory, small_settings, two_processes) -> dict[str, Any]:
    """Each way with a whole and with a divided LLM, and runs that go on with the other kind, in one start."""
    folder = tmp_path_factory.mktemp("sharded")
    common = {**small_settings(folder), "max_steps": STEPS}
    runs = {}
    for name, settings in WAYS.items():
        for kind in ("whole", "divided"):
            comment = {"shard_llm": kind == "divided", "model_comment": kind}
            runs[f"{name}: {kind}"] = {**common, **settings, **comment}
    saving = {**common, "dropout": 0.2, "save_steps": 2, "save_total_limit": 0}
    for kind, other in (("whole", "divided"), ("divided", "whole")):
        runs[f"saved {kind}"] = {**saving, "shard_llm": kind == "divided", "model_comment": f"saved {kind}"}
        runs[f"then {other}"] = {
            **saving,
            "shard_llm": other == "divided",
            "model_comment": f"saved {kind}",
            "resume_from_checkpoint": f"{{saved {kind}}}/checkpoint_step_2/checkpoint.pt",
            "checkpoints": str(folder / f"then {other}"),
        }
    found = two_processes(folder, runs)
    assert not [(name, p["error"]) for name in found for p in found[name] if p["error"]]
    return {**found, "saving": saving, "series": folder / "waves.csv"}


def check_alike(whole: list[dict[str, Any]], divided: list[dict[str, Any]]) -> None:
    """Two processes each: weights and all scores to the bit, and half of each layer where it is divided."""
    for one, other in zip(whole, divided, strict=True):
        assert one["processes"] == other["processes"] == 2
        assert one["order"] == other["order"][-len(one["order"]) :]  # behind a look inside, which takes both
        assert not unequal(one["model"], other["model"])
        assert not one["shares"] and other["shares"]
        assert not one["copied"]  # mapped files are there once for all processes
        assert all(2 * own == every for own, every in other["shares"].values())
        assert not {*other["shares"]} & {*other["trainable"]}
        results = [json.loads(process["results"]) for process in (one, other)]
        assert [results[0][kind] for kind in ("last", "best")] == [
            results[1][kind] for kind in ("last", "best")
        ]


@pytest.mark.parametrize("name", WAYS)
def test_a_divided_llm_trains_and_tests_as_a_whole_one(found, name):
    check_alike(found[f"{name}: whole"], found[f"{name}: divided"])


@pytest.mark.parametrize("other", ["whole", "divided"])
def test_runs_go_on_with_the_other_kind(found, other):
    """To the bit: what is saved is what is trained, which is whole in both."""
    kind = {"whole": "divided", "divided": "whole"}[other]
    for began, went_on in zip(found[f"saved {kind}"], found[f"then {other}"], strict=True):
        assert began["processes"] == went_on["processes"] == 2
        assert bool(went_on["shares"]) == (other == "divided")
        assert "resumed at optimizer step 2" in (Path(went_on["folder"]) / "run.log").read_text()
        assert not unequal(began["model"], went_on["model"])
        assert json.loads(began["results"])["last"] == json.loads(went_on["results"])["last"]


def test_a_checkpoint_holds_the_same_and_no_share(found):
    """Optimizer, progress and weights; its file tells the two kinds apart by the setting alone."""
    folders = (Path(found[f"saved {kind}"][0]["folder"]) for kind in ("whole", "divided"))
    whole, divided = (load(folder / "checkpoint_step_2/checkpoint.pt") for folder in folders)
    assert [p["config"].pop("shard_llm") for p in (whole, divided)] == [False, True]
    for payload in (whole, divided):
        del payload["config"]["model_comment"]
    assert not unequal(whole, divided)
    assert not [name for name in divided["model"] if name.startswith("llm_model.")]


def test_one_process_goes_on_from_a_divided_run_and_tests_it(found, tmp_path):
    """With nothing to divide the LLM among; as one process goes on from two that hold it whole."""
    ends = []
    for kind in ("whole", "divided"):
        start = Path(found[f"saved {kind}"][0]["folder"]) / "checkpoint_step_2/checkpoint.pt"
        settings = {
            **found["saving"],
            "model_comment": f"saved {kind}",
            "shard_llm": kind == "divided",
            "resume_from_checkpoint": str(start),
            "checkpoints": str(tmp_path),
        }
        ends.append(run_main.train(Config.from_flat(settings), model="TimeLLM_Enhanced"))
    payloads = [last_payload(end.run_dir) for end in ends]
    assert [payload["num_processes"] for payload in payloads] == [1, 1]
    assert not unequal(payloads[0]["model"], payloads[1]["model"])
    assert ends[0].results["last"] == ends[1].results["last"]
    assert "--shard_llm: one process: nothing is sharded" in (ends[1].run_dir / "run.log").read_text()


def test_a_run_says_what_is_divided(found):
    said = (Path(found["document: divided"][0]["folder"]) / "run.log").read_text()
    assert "--shard_llm: the LLM's frozen layers (" in said and "divided among 2 processes" in said
    assert "LLM Input" in said  # --debug_shapes is a pass, which takes both processes
    assert not torch.distributed.is_initialized()
