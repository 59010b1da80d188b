"""--peft lora in whole runs: saved as adapters, resumed bit for bit, begun from other weights, spread."""

from __future__ import annotations

import logging

import pytest

from tests.utils.training.comparing import last_payload, load, records
from tests.utils.training.test_resuming import copied, different
from utils.training.checkpoint import CheckpointError
from utils.training.run_folder import CONFIG_FILE, ENVIRONMENT_FILE, read_json

LORA = {"peft": "lora", "lora_rank": 2, "lora_targets": ("c_attn", "mlp.c_fc")}
BOTH = {"use_tapr": True, "use_gram": True, "dropout": 0.2}
SAVED = {"save_steps": 4, "save_total_limit": 0}


def of_llm(payload: dict) -> set[str]:
    return {name for name in payload["model"] if name.startswith("llm_model.")}


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_resumed_run_ends_as_one_that_was_not_cut_off(start_run, tmp_path, dropout):
    """Adapters, their moments and their dropout's random state, to the bit."""
    settings = {**BOTH, **LORA, **SAVED, "lora_dropout": dropout, "train_epochs": 2, "eval_steps": 5}
    whole = start_run(**settings)
    start = copied(whole.run_dir, tmp_path / "copy", up_to=8)
    resumed = start_run(**settings, resume_from_checkpoint=str(start))
    assert not different(whole.run_dir, resumed.run_dir)
    assert records(resumed.run_dir) == records(whole.run_dir)
    assert resumed.results["last"] == whole.results["last"]
    end, began = last_payload(whole.run_dir), load(start)
    assert len(of_llm(end)) == 4 and all(".lora_" in name for name in of_llm(end))
    assert not any((end["model"][n] == began["model"][n]).all() for n in of_llm(end))


def test_a_run_says_and_records_its_adapters(start_run, caplog):
    with caplog.at_level(logging.INFO):
        run = start_run(**LORA, max_steps=1)
    assert "M of them in adapters), " in caplog.text
    assert read_json(run.run_dir / CONFIG_FILE)["lora_targets"] == ["c_attn", "mlp.c_fc"]
    assert read_json(run.run_dir / ENVIRONMENT_FILE)["packages"]["peft"]
    assert "_lora_" in run.run_dir.name


def test_a_checkpoint_of_other_adapters_is_refused(start_run):
    run = start_run(**LORA, max_steps=1)
    for other in ({"peft": "none"}, {**LORA, "lora_alpha": 4}, {**LORA, "lora_targets": ()}):
        with pytest.raises(CheckpointError, match="--(peft|lora_alpha|lora_targets): the checkpoint has"):
            start_run(**{**LORA, **other}, max_steps=2, resume_from_checkpoint=str(run.run_dir))


def test_runs_begin_from_weights_with_adapters_and_without(start_run, caplog):
    """Without, the adapters begin with no effect: the first step's loss is that of the run without them."""
    common = {"max_steps": 1, "eval_steps": 1, "lr_warmup_steps": 1000, "learning_rate": 1e-9, "dropout": 0.0}
    first = start_run(max_steps=4)
    again = start_run(**common, init_from=str(first.run_dir))
    adapted = start_run(**common, **LORA, init_from=str(first.run_dir))
    assert "--init_from: its weights have no adapters" in caplog.text
    assert records(adapted.run_dir)[0]["loss"] == records(again.run_dir)[0]["loss"]
    trained = start_run(**LORA, max_steps=4)
    begun = start_run(**common, **LORA, init_from=str(trained.run_dir))
    own, theirs = (load(r.run_dir / "checkpoint")["model"] for r in (begun, trained))
    assert all((own[n] - theirs[n]).abs().max() < 1e-6 for n in of_llm({"model": own}))
    with pytest.raises(CheckpointError, match=r"(?s)--init_from.*do not fit this model.*lora_A"):
        start_run(**common, init_from=str(trained.run_dir))


def test_a_spread_llm_may_be_gathered_on_resuming(start_run, tmp_path):
    """Where the layers lie is no part of the run."""
    settings = {**BOTH, **SAVED, "cpu": False}
    whole = start_run(**settings, llm_device_map="auto")
    start = copied(whole.run_dir, tmp_path / "copy", up_to=4)
    gathered = start_run(**settings, resume_from_checkpoint=str(start))
    assert gathered.run_dir == start.parent.parent
    assert [line for line in different(whole.run_dir, gathered.run_dir) if "llm_device_map" not in line] == []
